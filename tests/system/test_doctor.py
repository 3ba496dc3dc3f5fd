"""`fastgen doctor`: it shows what is here, finds a wrong kernel, and survives what is missing."""

import importlib.metadata
import os
import sys
import time

import pytest
import torch

from fastgen import cli, doctor, native
from fastgen.backends import _implementations
from fastgen.bench import cases
from fastgen.ops import linear
from fastgen.ops._registry import OPS


def run(capsys) -> tuple[int, str]:
    code = cli.main(["doctor"])
    return code, capsys.readouterr().out


def lines_of(text: str, op: str, implementation: str) -> list[str]:
    return [line for line in text.splitlines() if line.split()[:2] == [op, implementation]]


@pytest.fixture
def one_case(monkeypatch):
    """Only the draws of `uniform`, and none in Triton's interpreter, so that a test takes no time."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    table = cases.table(["random"], quick=True)
    uniform = [case for case in table if case.registered == "uniform"]
    monkeypatch.setattr(cases, "table", lambda *names, quick=None: uniform)
    monkeypatch.setattr(doctor, "backends", lambda: [s for s in BACKENDS() if s.op == "uniform"])


BACKENDS = doctor.backends
needs_native = pytest.mark.skipif(native.module is None, reason="the C++ extension is not built")


def test_every_op_is_listed_and_every_implementation_agrees_with_the_reference(capsys, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # interpreted kernels have tests of their own
    code, text = run(capsys)
    assert code == 0, text
    assert text.rstrip().endswith("all agree")
    for op in OPS:
        assert any(line.split()[:1] == [op] for line in text.splitlines())
        for isa in native.usable_isas() if "native" in OPS[op].implementations else ():
            assert any(f"native {isa} " in line and " ok " in line for line in lines_of(text, op, "native"))
    for wanted in ("CPU features", torch.__version__, "memory", "GPU", "threads", "triton"):
        assert wanted in text


@needs_native
def test_a_wrong_kernel_is_found(capsys, monkeypatch, one_case):
    right = _implementations["uniform"]["native"]

    def wrong(out, *arguments):
        right(out, *arguments)
        out.copy_(torch.nextafter(out, torch.ones(())))

    monkeypatch.setitem(_implementations["uniform"], "native", wrong)
    code, text = run(capsys)
    assert code == 1 and "elements differ" in text
    assert all("FAILED" in line for line in lines_of(text, "uniform", "native") if "2^12" in line)


@needs_native
def test_a_kernel_that_breaks_down_is_a_row(capsys, monkeypatch, one_case):
    def broken(*arguments):
        raise RuntimeError("no such instruction")

    monkeypatch.setitem(_implementations["uniform"], "native", broken)
    code, text = run(capsys)
    assert code == 1 and "RuntimeError: no such instruction" in text


def test_without_the_extension_the_doctor_says_so_and_all_is_well(capsys, monkeypatch, one_case):
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "reason", "the C++ extension is not built: reinstall")
    code, text = run(capsys)
    assert code == 0
    assert "native: the C++ extension is not built" in text
    assert any(
        line.split() == ["uniform", "cpu", "no", "no", "no", "reference"] for line in text.splitlines()
    )


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """A source tree with one source, and an extension built after it was written."""
    source, built = tmp_path / "csrc" / "cpu" / "linear.cpp", tmp_path / "_native.so"
    source.parent.mkdir(parents=True)
    for age, path in ((20, source), (30, tmp_path / "setup.py"), (10, built)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    monkeypatch.setattr(native, "ROOT", tmp_path)
    monkeypatch.setattr(native, "module", Built(native.module, str(built)))
    return source


class Built:
    """The extension, as though it were another file."""

    def __init__(self, module, file):
        self.module, self.__file__ = module, file

    def __getattr__(self, name):
        return getattr(self.module, name)


@needs_native
def test_an_extension_older_than_its_sources_is_named_with_what_mends_it(
    capsys, monkeypatch, one_case, checkout
):
    code, text = run(capsys)
    assert code == 0 and "older than" not in text
    os.utime(checkout)
    mends = f"older than csrc/cpu/linear.cpp; to build it anew, run: {sys.executable} -m pip install"
    code, text = run(capsys)
    assert code == 0 and text.count(mends) == 1 and f"-e {checkout.parents[2]}" in text

    def other(*arguments):
        raise TypeError("expected at most 5 arguments but received 6")

    monkeypatch.setitem(_implementations["uniform"], "native", other)
    code, text = run(capsys)
    assert code == 1 and text.rstrip().splitlines()[-1].split(": ", 1)[1].startswith(
        "the C++ extension is " + mends
    )


@pytest.mark.parametrize(
    "error, words",
    [
        (ModuleNotFoundError("no fastgen._native"), "is not built; where there is a C++20 compiler, run: "),
        (ImportError("undefined symbol: x"), "(undefined symbol: x); to build it anew, run: "),
    ],
)
def test_an_extension_that_is_not_there_or_does_not_load_is_said_with_what_mends_it(
    monkeypatch, error, words
):
    def fails(name):
        raise error

    monkeypatch.setattr(native.importlib, "import_module", fails)
    module, reason = native._load()
    assert module is None and words + native.mend() in reason
    assert native.mend().startswith(f"{sys.executable} -m pip install")


def test_a_missing_package_is_a_row_that_says_how_to_install_it(capsys, monkeypatch, one_case):
    version = importlib.metadata.version

    def without_thrml(package):
        if package == "thrml":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", without_thrml)
    code, text = run(capsys)
    assert code == 0
    assert any(
        line.split(maxsplit=1) == ["thrml", "not installed: pip install 'fastgen[bench]'"]
        for line in text.splitlines()
    )


def test_what_cannot_be_found_out_is_a_row(capsys, monkeypatch, one_case):
    def unknown(device):
        raise PermissionError("no /proc here")

    monkeypatch.setattr(doctor.machine, "machine", unknown)
    code, text = run(capsys)
    assert code == 0 and "PermissionError: no /proc here" in text and "instruction set" in text


def test_a_table_that_does_not_load_is_a_failed_check(capsys, monkeypatch):
    def broken(*names, quick=None):
        raise ImportError("no module named peer")

    monkeypatch.setattr(cases, "table", broken)
    code, text = run(capsys)
    assert code == 1 and "ImportError: no module named peer" in text


@needs_native
@pytest.mark.filterwarnings("ignore:fastgen runs linear")
def test_an_extension_older_than_the_package_is_named_and_does_without(monkeypatch):
    monkeypatch.setattr(torch.ops, "fastgen_native", object())
    status = next(s for s in BACKENDS() if (s.op, s.backend, s.device) == ("linear", "native", "cpu"))
    assert not status.usable and "older than this package and has no linear" in status.reason
    ones = torch.ones(2, 3)
    assert torch.equal(linear(ones, ones), torch.full((2, 2), 3.0))
