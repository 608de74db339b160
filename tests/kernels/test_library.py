"""The library is found, registered, and says what it can run."""

import warnings

import onnxruntime
import pytest

from optimum_slim.kernels import library
from optimum_slim.kernels.library import isa, library_path, register, self_test, supported_isas


def test_the_fastest_instruction_set_is_chosen():
    assert isa() == supported_isas()[0]
    assert supported_isas()[-1] == "portable"


def test_an_instruction_set_that_cannot_run_is_none(monkeypatch):
    monkeypatch.setenv("OPTIMUM_SLIM_ISA", "mmx")
    assert isa() is None


def test_every_instruction_set_passes_the_self_test():
    assert self_test() == [(name, True) for name in supported_isas()]


def test_the_self_test_leaves_the_environment_alone(monkeypatch):
    monkeypatch.setenv("OPTIMUM_SLIM_ISA", "portable")
    self_test()
    assert isa() == "portable"


def test_registering_works_and_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register(onnxruntime.SessionOptions())


def test_without_the_library_a_warning_says_so(monkeypatch):
    monkeypatch.setattr(library, "NAMES", ())
    monkeypatch.delenv("OPTIMUM_SLIM_LIBRARY", raising=False)
    with pytest.warns(UserWarning, match="not built"):
        assert not register(onnxruntime.SessionOptions())
    assert library_path() is None
    assert isa() is None
    assert supported_isas() == []
    assert self_test() == []


def test_a_file_that_is_no_library_is_refused_with_a_warning(monkeypatch, tmp_path):
    (tmp_path / "broken.so").write_bytes(b"no library")
    monkeypatch.setenv("OPTIMUM_SLIM_LIBRARY", str(tmp_path / "broken.so"))
    with pytest.warns(UserWarning, match="refused"):
        assert not register(onnxruntime.SessionOptions())
    assert isa() is None


def test_a_path_to_nothing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("OPTIMUM_SLIM_LIBRARY", str(tmp_path / "missing.so"))
    with pytest.warns(UserWarning, match=r"OPTIMUM_SLIM_LIBRARY.*missing\.so"):
        assert not register(onnxruntime.SessionOptions())
