"""Show rows: lines on the terminal, a JSON list, and the page docs/benchmarks.md with its chart."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastgen.bench.runner import Row

RowDict = dict[str, Any]

TERMINAL = "{case:<46} {peer:<30} {ours:>11} {theirs:>11} {ratio:>24}  {limit:<28} {memory:>17}"
MARKDOWN = (
    "Case",
    "Against",
    "fastgen",
    "Peer",
    "Ratio (95% interval)",
    "Share of the limit",
    "MiB added, fastgen / peer",
)


def terminal_header() -> str:
    """Return the heading of the terminal's table."""
    return TERMINAL.format(
        case="case",
        peer="against",
        ours="fastgen",
        theirs="peer",
        ratio="ratio (95% interval)",
        limit="share of the limit",
        memory="MiB added",
    )


def terminal_line(row: Row) -> str:
    """Return one row as a line; a wrong answer and an absent peer say so where the times would stand."""
    cells = _cells(asdict(row))
    case = f"{row.op} {row.case}"
    if row.match is True:
        return TERMINAL.format(case=case, peer=row.peer, **cells).rstrip()
    return f"{case:<46} {row.peer:<30} {'MISMATCH' if row.failed else 'absent'}: {row.note}"


def _cells(row: RowDict) -> dict[str, str]:
    """Return the measured values as words, empty where there is none."""
    if row["fastgen_ms"] is None:
        return dict.fromkeys(("ours", "theirs", "ratio", "limit", "memory"), "")
    limit = f"{row['limit_fraction']:.0%} of {row['limit']}" if row["limit"] else ""
    peaks = [row["peak_mb"], row["peer_peak_mb"]]
    return {
        "ours": milliseconds(row["fastgen_ms"]),
        "theirs": milliseconds(row["peer_ms"]),
        "ratio": f"{row['ratio']:.3g}x ({row['ratio_lo']:.3g}..{row['ratio_hi']:.3g})",
        "limit": limit,
        "memory": " / ".join(f"{peak:.1f}" for peak in peaks) if None not in peaks else "",
    }


def milliseconds(value: float) -> str:
    """Return a time with three digits and a unit that suits its size."""
    for unit, scale in (("s", 1e-3), ("ms", 1.0), ("us", 1e3)):
        if value * scale >= 0.9995:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} ns"


def check_writable(path: Path) -> None:
    """Raise OSError before hours of measuring if the file could not be written at their end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    with path.open("a"):
        pass
    if not existed:
        path.unlink()


def write_json(rows: Iterable[Row], path: Path) -> None:
    """Write the rows as a JSON list of objects, with all digits."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    aside.replace(path)


def read_json(path: Path) -> list[RowDict]:
    """Read what `write_json` wrote; a file of another kind is refused."""
    try:
        rows = json.loads(path.read_text())
        rows[0]["op"], rows[0]["machine"], rows[0]["limits"]
    except (json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is not a file written by `fastgen bench --json`") from error
    return rows


def markdown(rows: Sequence[RowDict], chart: str) -> str:
    """Return docs/benchmarks.md, or _gpu.md: how and on what it was measured, the chart, one table an op."""
    machine, versions = rows[0]["machine"], rows[0]["versions"]
    gpu = machine.get("gpu", "")
    parts = [
        f"# Benchmarks{' on a GPU' if gpu else ''}\n",
        f"Written by `make {'gpu' if gpu else 'bench'}`; not edited by hand.\n",
        f"Measured on {gpu and f'one {gpu}, with '}{machine['cpu']} ({machine['cores']} cores), "
        f"{machine['memory_gib']} GiB, {machine['system']}, {rows[0]['threads']} threads, "
        f"instruction set {rows[0]['isa']}.\n",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n",
        f"![Ratios of time against the fastest peer of each case]({chart})\n",
        HOW,
    ]
    for op in dict.fromkeys(row["op"] for row in rows):
        mine = [row for row in rows if row["op"] == op]
        parts.append(f"## {op}\n")
        for date in dict.fromkeys(row["date"] for row in mine):
            same_run = [row for row in mine if row["date"] == date]
            parts += [_run(same_run[0]), _markdown_table(same_run)]
    return "\n".join(parts)


def _run(row: RowDict) -> str:
    limits = row["limits"]
    return (
        f"Measured on {row['date'][:10]}; limits in the same run: copy {limits['copy_bytes'] / 1e9:.1f} "
        f"GB/s, read {limits['read_bytes'] / 1e9:.1f} GB/s, FMA {limits['flops'] / 1e9:.0f} GFLOP/s, "
        f"random words {limits['draws'] / 1e9:.2f} G/s.\n"
    )


HOW = """\
Runs alternate A B A B in one process, which comes to rest before each; the ratio is the median of the
pairwise ratios (peer's time over fastgen's) with its 95% interval. Outputs are compared first: with the
reference on the same noise, with functions that draw nothing within roundings, with foreign generators as
distributions (Welch's t-test on each statistic, false-alarm rate 1e-6 a comparison); no time is given for a
wrong answer. Compilation, imports and conversions of inputs are outside the clock. The
share of the limit is the time that the named limit alone would take for the work, over fastgen's time; above
100% the work was done in fewer operations than it was counted with. Peak memory is what one warm call adds to
the resident set, its result included. The chart shows each case against its fastest peer. Each op is measured
in a process of its own. `prefill N` of `generate` is the time to the first token after a prompt of N tokens.
"""


def _markdown_table(rows: Sequence[RowDict]) -> str:
    lines = ["| " + " | ".join(MARKDOWN) + " |", "|---|---|--:|--:|--:|--:|--:|"]
    for row in rows:
        cells = _cells(row)
        if row["match"] is None:
            cells["theirs"] = f"absent: {row['note']}"
        elif row["match"] is False:
            cells["theirs"] = f"MISMATCH: {row['note']}"
        values = [
            row["case"],
            row["peer"],
            *_with_rates(row, cells),
            cells["ratio"],
            cells["limit"],
            cells["memory"],
        ]
        lines.append("| " + " | ".join(value.replace("|", "\\|") for value in values) + " |")
    return "\n".join(lines) + "\n"


def _with_rates(row: RowDict, cells: dict[str, str]) -> list[str]:
    if row["rate"] is None:
        return [cells["ours"], cells["theirs"]]
    ours, theirs = (_rate(row[side], row["rate_unit"]) for side in ("rate", "peer_rate"))
    return [f"{cells['ours']} ({ours})", f"{cells['theirs']} ({theirs})"]


def _rate(value: float, unit: str) -> str:
    """Items a nanosecond, or a second where a nanosecond has hardly any."""
    if value >= 1e-3:
        return f"{value:.3g} {unit}"
    return f"{1e9 * value:.3g} {unit.removesuffix('/ns')}/s"
