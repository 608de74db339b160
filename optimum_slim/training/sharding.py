"""Weights spread over processes while they train (FSDP2): a model that one process cannot hold with its gradients and
AdamW's moments. Sharding is done to copies; the models that techniques were given stay plain."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from optimum_slim import processes


def why_not_sharded() -> Iterator[str]:
    """What is wrong with how the processes were started, in words for the user."""
    if processes.sharded() and os.environ.get("FSDP_VERSION") != "2":
        yield "processes: weights are spread by FSDP2; pass --fsdp_version 2 to `accelerate launch`"


def shard_on_cpus(accelerator: Accelerator) -> None:
    """Has accelerate shard on CPUs, too: torch can, but accelerate heeds its own settings of FSDP on GPUs only."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP


def spread(model: PreTrainedModel, accelerator: Accelerator) -> PreTrainedModel:
    """A copy of a model, each process with its part of every weight."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    return fsdp2_prepare_model(accelerator, copy.deepcopy(model))


def gather(sharded: nn.Module, model: PreTrainedModel) -> None:
    """Takes the weights of a sharded copy back into `model` of the first process, in place."""
    weights = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if processes.index() == 0:
        model.load_state_dict(weights)


@torch.no_grad()
def put_zeros(weight: Tensor, places: Tensor) -> None:
    """Zeros a weight in place, also one of which this process has a part only.

    Args:
        places: bool of the whole weight's shape, the same in all processes.
    """
    if isinstance(weight, DTensor):
        part = distribute_tensor(places, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.to_local().masked_fill_(part.to_local(), 0)
    else:
        weight.masked_fill_(places, 0)
