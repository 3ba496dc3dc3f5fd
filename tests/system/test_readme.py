"""Every command and every block of Python in the README and the docs does what it is there for."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import fastgen
from fastgen import cli
from fastgen.bench.cases import table

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "docs/architecture.md"]
PAGES.append(ROOT / "docs/models.md")
ELSEWHERE = {"fastgen doctor", "fastgen demo --out out"}  # run by their own tests


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def cases(language: str) -> list:
    found = [(page, block) for page in PAGES for block in blocks(page, language)]
    return [pytest.param(block, id=f"{page.name}-{i}") for i, (page, block) in enumerate(found)]


def commands() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    return list(dict.fromkeys(line.partition("#")[0].strip() for line in lines))


def test_no_block_is_left_out():
    for page in PAGES:
        opened = re.findall(r"^```(\w*)\n(?=.*?^```$)", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        assert set(opened) <= {"python", "bash", ""}, page


@pytest.mark.parametrize("block", cases("python"))
def test_python(block, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_of_fastgen_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = [c for c in commands() if c.startswith("fastgen ") and c not in ELSEWHERE]
    assert len(mine) >= 4
    for command in mine:
        assert cli.main(shlex.split(command)[1:]) == 0, f"{command}: {capsys.readouterr().err}"


def test_every_make_target_exists():
    targets = {word for c in commands() if c.startswith("make") for word in (c.split()[1:] or ["all"])}
    text = "".join(page.read_text() for page in PAGES)
    targets |= set(re.findall(r"`make ([\w-]+)`", text))
    known = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= targets <= known


def test_every_command_is_of_a_kind_that_is_tested():
    others = [c for c in commands() if c and not c.startswith(("fastgen ", "make"))]
    assert others == ["pip install ."]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.skipif(tomllib is None, reason="tomllib comes with Python 3.11")
def test_the_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (
        project["version"] == fastgen.__version__
        and fastgen.__version__ in (ROOT / "CHANGELOG.md").read_text()
    )


def test_the_table_of_ratios_is_filled_in_from_measurements(tmp_path):
    op, name = "ising", "16x512x512 beta 0.44, 10 sweeps"
    row = {"op": op, "case": name, "peer": "eager", "ratio": 61.23, "date": "2020-02-02T00:00:00"}
    row |= {"machine": {"cpu": "a CPU"}, "threads": 2, "isa": "avx2"}
    one, two, readme = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "README.md"
    one.write_text(json.dumps([row, row | {"peer": "reference"}, row | {"case": "no headline"}]))
    two.write_text(json.dumps([row | {"peer": "thrml", "ratio": 100.0, "date": "2020-02-03T00:00:00"}]))
    readme.write_text((ROOT / "README.md").read_text())
    for _ in range(2):
        tool = str(ROOT / "tools/readme_table.py")
        subprocess.run([sys.executable, tool, str(one), str(two), "--readme", str(readme)], check=True)
    text = readme.read_text()
    assert text.count(f"| {op} | {name} | eager **61.2**, thrml **100** |") == 1
    assert "a CPU, 2 threads, avx2, 2020-02-02 to 2020-02-03" in text and "## Same seed" in text


def test_every_headline_is_a_case_of_the_table():
    headlines = runpy.run_path(str(ROOT / "tools/readme_table.py"))["HEADLINES"]
    for op, names in headlines.items():
        assert set(names) <= {case.name for case in table([op])}, op
