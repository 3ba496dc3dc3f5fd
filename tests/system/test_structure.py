"""The rules of the house: who imports whom, one op one word, sizes, no torch below the bindings."""

import ast
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastgen.bench import cases
from fastgen.ops._registry import OPS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path
    for room in ("fastgen", "kernels", "csrc", "tests", "benchmarks", "tools")
    for path in (ROOT / room).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".cu")
)

# From the bottom to the top; a room imports only from itself and from layers below its own.
LAYERS = (
    {"files", "native", "options", "random", "data", "stamps", "tolerances", "zoo"},
    {"backends"},
    {"reference", "kernels"},
    {"ops"},
    {"nn", "testing"},
    {"generation"},
    {"models"},
    {"integrations"},
    {"training", "sampling"},
    {"bench"},
    {"doctor", "demo"},
    {"cli"},
)
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}

PYTHON = ("fastgen", "kernels")
MAX_LINES, MAX_TEST_LINES, MAX_FUNCTION = 400, 600, 100


def room_of(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return "kernels" if inside.parts[0] == "kernels" else inside.with_suffix("").parts[1]


def imports(path: Path) -> Iterator[str]:
    """The rooms of fastgen that a file imports from, in functions too; "" is the package itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fastgen":
                yield parts[1] if len(parts) > 1 and parts[1] in HEIGHT else ""


def python_files() -> list[Path]:
    """All but the package itself, which gathers the public names of all rooms."""
    inside = [path for path in SOURCES if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in PYTHON]
    return [path for path in inside if path != ROOT / "fastgen/__init__.py"]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = room_of(path)
    for room in imports(path):
        if room == "":  # the package itself, say for its version: only above all that it imports
            assert HEIGHT[own] >= HEIGHT["sampling"], f"{own} imports fastgen itself"
        else:
            assert room == own or HEIGHT[room] < HEIGHT[own], f"{own} imports {room}"


def test_every_room_has_its_place():
    rooms = {
        path.stem if path.suffix == ".py" else path.name
        for path in (ROOT / "fastgen").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__"} <= set(HEIGHT)


def test_the_rule_sees_an_import_that_points_upwards(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from fastgen.ops import ising\n    import fastgen.cli\n")
    assert list(imports(wrong)) == ["ops", "cli"]


def words() -> list[str]:
    return sorted(path.stem for path in (ROOT / "fastgen/ops").glob("[!_]*.py"))


@pytest.mark.parametrize("op", words())
def test_one_op_has_one_word_in_every_room(op):
    for place in (
        "fastgen/reference/{}.py",
        "csrc/cpu/{}.cpp",
        "csrc/torch/{}.cpp",
        "tests/ops/test_{}.py",
        "fastgen/bench/cases/{}.py",
        "benchmarks/test_{}.py",
    ):
        assert (ROOT / place.format(op)).exists(), f"{op} has no {place.format(op)}"
    gpu = {"Triton": ROOT / f"kernels/{op}.py", "CUDA": ROOT / f"csrc/cuda/{op}.cu"}
    absent = [name for name, path in gpu.items() if not path.exists()]
    assert len(absent) < 2
    text = ast.get_docstring(ast.parse((ROOT / f"fastgen/ops/{op}.py").read_text())) or ""
    assert all(name in text for name in absent), f"ops/{op}.py does not say why there is no {absent}"


@pytest.mark.parametrize(
    "room", ["fastgen/reference/*.py", "fastgen/bench/cases/*.py", "csrc/torch/*.cpp", "benchmarks/test_*.py"]
)
def test_what_carries_an_ops_word_belongs_to_an_op(room):
    found = {path.stem.removesuffix("_cuda").removeprefix("test_") for path in ROOT.glob(room)} - {"__init__"}
    # "loop" and "generate" stand for whole models, which have cases and benchmarks, too.
    assert found - ({"loop", "generate"} if "bench" in room else set()) <= set(words())


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_has_a_small_case_with_the_reference(op):
    mine = [case for case in cases.table(quick=True) if (case.registered or case.op) == op]
    assert mine and all("reference" in [peer.name for peer in case.peers] for case in mine)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_have_sizes_that_read_well(path):
    text = path.read_text()
    limit = MAX_TEST_LINES if "tests" in path.parts else MAX_LINES
    assert len(text.splitlines()) <= limit
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION, node.name


@pytest.mark.parametrize("room", ["csrc/include", "csrc/cpu"])
def test_kernels_for_the_cpu_see_no_torch(room):
    for path in (ROOT / room).rglob("*.*"):
        assert not re.search(r"#include\s*[<\"](torch|ATen|c10)", path.read_text()), path


def test_a_source_distribution_holds_all_that_the_build_needs(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = [ROOT / "CMakeLists.txt", *ROOT.glob("csrc/**/CMakeLists.txt")]
    wanted += [path for path in SOURCES if path.relative_to(ROOT).parts[0] in ("fastgen", "kernels", "csrc")]
    assert [str(p.relative_to(ROOT)) for p in wanted if str(p.relative_to(ROOT)) not in held] == []
