"""Tests run offline, on one thread, and leave no cache behind. What several of them look at is run once."""

import contextlib
import os
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

import pytest  # noqa: E402
import torch  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine a second thread makes each tiny linear wait 16 ms for it, and a process that is forked beside
    several threads of torch may wait for them for good. A run sets as many as its recipe says."""
    torch.set_num_threads(1)


@contextlib.contextmanager
def _five_rounds():
    from optimum_slim.deploy import benchmark

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "ROUNDS", 5)
        yield


@pytest.fixture(scope="module")
def few_rounds():
    """Runs of this module time their files for a moment only."""
    with _five_rounds():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A folder with `out`, which a run wrote, and beside it the `model` and `texts` that it was made of."""
    from optimum_slim.flow import slim
    from optimum_slim.recipe import read_recipe
    from tests.tiny import save_rows, save_tiny

    root = tmp_path_factory.mktemp("finished")
    save_tiny(root / "model", "bert")
    save_rows(root / "texts", "text-classification")
    content = {
        "slim": 1,
        "model": str(root / "model"),
        "data": {"source": str(root / "texts"), "max_length": 16},
        "deploy": {"precision": "int8-dynamic", "max_quality_loss": None, "target": {"tokens": [16]}},
    }
    with _five_rounds():
        slim(read_recipe(content), root / "out")
    return root
