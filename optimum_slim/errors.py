"""What can go wrong for a user, as a tree.

SlimError
├── RecipeError        the recipe, or an override of it, has mistakes (all of them in one message)
├── DataError          the texts cannot be found, read or understood
├── ModelError         the model cannot be found, loaded, saved or exported
├── OutputError        the output or its workspace cannot be used
├── ProcessError       another process of the run has ended: whoever started them tells how (exit code 1)
└── QualityError       the run worked, but what came out is not good enough (exit code 1)
    └── VerifyError    the ONNX file does not compute what the PyTorch model computes
"""

from __future__ import annotations

from collections.abc import Sequence


class SlimError(Exception):
    """One clear message for the person at the keyboard; the commands print it without a traceback."""

    exit_code = 2


class RecipeError(SlimError):
    """Every mistake of a recipe at once: each names its key, what was wrong and what would be right."""

    def __init__(self, mistakes: Sequence[str], where: str = "the recipe"):
        self.mistakes = list(mistakes)
        count = "a mistake" if len(self.mistakes) == 1 else f"{len(self.mistakes)} mistakes"
        super().__init__("\n".join([f"{where} has {count}:", *(f"  - {mistake}" for mistake in self.mistakes)]))


class DataError(SlimError):
    pass


class ModelError(SlimError):
    pass


class OutputError(SlimError):
    pass


class ProcessError(SlimError):
    exit_code = 1


class QualityError(SlimError):
    exit_code = 1


class VerifyError(QualityError):
    pass
