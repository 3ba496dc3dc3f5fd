"""What the benchmark harness writes: rows as JSON, the page and its chart."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from bench_toy import FIELDS, right, run

from fastgen.bench import matching, page, report
from fastgen.bench.case import Peer, needs


def test_json_and_page(tmp_path):
    absent = Peer(
        "nowhere", build=right().build, match=matching.exact, missing=needs("no_such_module_anywhere")
    )
    rows = run(right("eager a|b"), absent)
    report.write_json(rows, tmp_path / "bench.json")
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [set(row) >= FIELDS for row in written] == [True, True]
    assert page.main([str(tmp_path / "bench.json"), str(tmp_path / "docs" / "benchmarks.md")]) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "## toy" in text and "eager a\\|b" in text and "absent: no_such_module_anywhere" in text
    assert f"torch {torch.__version__}" in text and "(benchmarks.svg)" in text
    first = (tmp_path / "docs" / "benchmarks.svg").read_bytes()
    page.main([str(tmp_path / "bench.json"), str(tmp_path / "docs" / "benchmarks.md")])
    assert (tmp_path / "docs" / "benchmarks.svg").read_bytes() == first


def test_the_chart_shows_the_fastest_peer_of_each_case():
    found = [("a", "reference", 1.0), ("a", "eager", 9.0), ("a", "rival", 2.0), ("a", "gone", None)]
    found += [("b", "eager", 3.0), ("c", "reference", 5.0)]
    rows = [{"op": "toy", "case": case, "peer": peer, "ratio": ratio} for case, peer, ratio in found]
    assert page.fastest_peers(rows) == [rows[2], rows[4]]


def test_the_module_runs_without_a_warning():
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "fastgen.bench.page", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stdout.startswith("usage: fastgen.bench.page") and not ran.stderr


def test_a_page_of_two_runs(tmp_path):
    for date in ("2020-02-02", "2020-02-03"):
        rows = [dataclasses.replace(row, date=date) for row in run(right("eager"))]
        report.write_json(rows, tmp_path / f"{date}.json")
    files = [str(tmp_path / name) for name in ("2020-02-02.json", "2020-02-03.json", "page.md")]
    assert page.main(files) == 0
    text = (tmp_path / "page.md").read_text()
    assert text.count("## toy") == 1 and text.count("limits in the same run") == 2
    assert "Measured on 2020-02-02" in text and "Measured on 2020-02-03" in text


def test_no_page_of_wrong_answers_or_of_other_files(tmp_path, capsys):
    wrong = Peer("eager wrong", lambda i: lambda: i["x"] + 1, matching.exact)
    report.write_json(run(wrong), tmp_path / "bench.json")
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    for name, words in (
        ("bench", "there are wrong answers"),
        ("other", "is not a file written by"),
        ("none", "No such"),
    ):
        with pytest.raises(SystemExit) as stopped:
            page.main([str(tmp_path / f"{name}.json"), str(tmp_path / "docs" / "benchmarks.md")])
        assert stopped.value.code == 1 and words in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()
