"""Put the ratios of `fastgen bench --json FILE` into the README: readme_table.py [FILE] [README]."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- ratios: begin", "<!-- ratios: end -->"


def table(rows: list[dict]) -> str:
    """One line for the peers of each case, the reference left out, with machine and date."""
    timed = [row for row in rows if row["ratio"] is not None and row["peer"] != "reference"]
    if not timed:
        raise ValueError("the file holds no ratio")
    lines = ["| op | case | against | times as fast (95% interval) |", "|---|---|---|--:|"]
    for row in timed:
        ratio = f"{row['ratio']:.3g} ({row['ratio_lo']:.3g} to {row['ratio_hi']:.3g})"
        lines.append(f"| {row['op']} | {row['case']} | {row['peer']} | {ratio} |")
    machine = rows[0]["machine"]
    where = f"{machine['cpu']}, {rows[0]['threads']} threads, {rows[0]['isa']}, {rows[0]['date'][:10]}"
    return "\n".join([*lines, "", f"Measured on {where}; more in [docs/benchmarks.md](docs/benchmarks.md)."])


def fill(text: str, rows: list[dict]) -> str:
    """The text with the table between its marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"wanted one {BEGIN} ... and one {END}")
    head, _, rest = text.partition(BEGIN)
    mark, _, rest = rest.partition("\n")
    return f"{head}{BEGIN}{mark}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Read, fill, write."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build/bench.json"
    readme = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "README.md"
    readme.write_text(fill(readme.read_text(), json.loads(source.read_text())))


if __name__ == "__main__":
    main()
