"""A run in several processes: the first does everything, and has the others take part where a step trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from optimum_slim import processes
from optimum_slim.errors import SlimError
from optimum_slim.model.checkpoint import load_model
from optimum_slim.planning import Plan, PlannedStep
from optimum_slim.progress import silence
from optimum_slim.report.report import Report
from optimum_slim.workspace import Visit, Workspace, identity


@contextmanager
def company(lead: processes.Lead, step: PlannedStep, plan: Plan, work: Workspace) -> Iterator[None]:
    """Has the other processes take part in what is done inside, if it trains; the rest the first does alone."""
    if "training_data" not in step.asks or processes.count() == 1:
        yield
        return
    done = work.done()
    call = {
        "step": plan.steps.index(step),
        "workspace": work.mark(),
        "model": done[1].name if done else None,
        "training": training_folder(step, plan),
    }
    with lead.calling(call):
        work.share(_read(call))
        yield


def follow(plan: Plan, supplies: Callable[[Visit], Any]) -> Report:
    """What processes other than the first do: they train with it, each on its part of every batch, until the report is
    there.

    Args:
        plan: made by this process. supplies: what gives a step its supplies by this process's sight of the workspace.
    """
    silence()

    def take_part(call: dict[str, Any]) -> None:
        step = plan.steps[call["step"]]
        with Visit(*call["workspace"]) as visit:
            visit.share(_read(call))
            model = placed(load_model(visit.folder / call["model"] if call["model"] else plan.folder), plan)
            step.technique.apply(model, **supplies(visit).asked_by(step))

    return Report(**processes.follow(take_part))


def same_for_all(plan: Plan) -> None:
    """Refuses to run with processes that read other files than the first, or run other versions.

    Raises:
        SlimError: names what differs.
    """
    mine = identity(plan)
    differing = [key for key, value in processes.told(mine).items() if mine[key] != value]
    if differing:
        raise SlimError(f"its {' and '.join(differing)} differ from the first process's; give all machines the same")


def placed(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Moves the model to where it trains, in place; a streamed one stays where it is."""
    if plan.streamed:
        return model
    wanted = plan.recipe.device
    device = ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted
    return torch.nn.Module.to(model, device)


def training_folder(step: PlannedStep, plan: Plan) -> str:
    """Where in the workspace a step keeps the checkpoints of its training."""
    return f"training-{plan.steps.index(step) + 1:02d}"


def _read(call: dict[str, Any]) -> list[str]:
    """The folders of the workspace that all processes read."""
    return [name for name in (call["model"], call["training"]) if name]
