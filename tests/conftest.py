"""Tests run offline, on one thread, and leave no cache behind."""

import os
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

import torch  # noqa: E402

torch.set_num_threads(1)  # on a busy machine a second thread makes each tiny linear wait 16 ms for it
