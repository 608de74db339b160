"""A training pass that is broken off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from optimum_slim.training import callbacks, trainer


@contextmanager
def stopped_after(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The pass inside ends with an InterruptedError when it has taken so many steps."""

    class Stopping(callbacks.Schedule):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step:
                raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Schedule", Stopping)
        with pytest.raises(InterruptedError):
            yield
