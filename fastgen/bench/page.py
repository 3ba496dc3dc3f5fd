"""Write the page of results and its chart: `python -m fastgen.bench.page a.json b.json page.md`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastgen.bench.report import RowDict, markdown, read_json


def write(rows: Sequence[RowDict], target: Path) -> None:
    """Write `target` and, with the ending .svg, its chart; a wrong answer among the rows is refused."""
    wrong = [f"{row['op']} {row['case']} against {row['peer']}" for row in rows if row["match"] is False]
    if wrong:
        raise ValueError(f"there are wrong answers, so no page is written: {'; '.join(wrong)}")
    target.parent.mkdir(parents=True, exist_ok=True)
    chart = target.with_suffix(".svg")
    draw(fastest_peers(rows), chart)
    target.write_text(markdown(rows, chart.name))


def fastest_peers(rows: Sequence[RowDict]) -> list[RowDict]:
    """Return of each case the row against whom fastgen gains least, the reference being no rival."""
    least: dict[tuple[str, str], RowDict] = {}
    for row in rows:
        if row["ratio"] is None or row["peer"] == "reference":
            continue
        case = row["op"], row["case"]
        least[case] = min(least.get(case, row), row, key=lambda found: found["ratio"])
    return list(least.values())


def draw(rows: Sequence[RowDict], path: Path) -> None:
    """Draw the ratios with their intervals, one bar from 1 a row, one colour an op, on a logarithmic axis."""
    from matplotlib import rc_context  # noqa: PLC0415 (an optional extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    ops = list(dict.fromkeys(row["op"] for row in rows))
    figure = Figure(figsize=(12, 1.2 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        spread = [[row["ratio"] - row["ratio_lo"]], [row["ratio_hi"] - row["ratio"]]]
        bar: dict[str, Any] = {"left": 1, "color": f"C{ops.index(row['op'])}", "height": 0.72}
        axes.barh(place, row["ratio"] - 1, xerr=spread, capsize=2, **bar)
        axes.annotate(f" {row['ratio']:.3g}x", (row["ratio_hi"], place), va="center", fontsize=8)
    axes.set_yticks(
        range(len(rows)), [f"{row['op']} {row['case']}  |  {row['peer']}" for row in rows], fontsize=8
    )
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.margins(x=0.12, y=0.005)
    axes.set_xlabel("time of the peer over that of fastgen, 95% interval")
    # Without a date or random ids the same numbers give the same file.
    with rc_context({"svg.hashsalt": "fastgen"}):
        figure.savefig(path, metadata={"Date": None})


def main(argv: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="fastgen.bench.page", description="write docs/benchmarks.md and its chart"
    )
    parser.add_argument("source", type=Path, nargs="+", help="files written by `fastgen bench --json`")
    parser.add_argument("target", type=Path, help="the page to write; its chart goes beside it")
    given = parser.parse_args(argv)
    try:
        write([row for source in given.source for row in read_json(source)], given.target)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
