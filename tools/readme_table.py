"""Put ratios of `fastgen bench --json FILE` into the README: readme_table.py FILE... [--readme README]."""

import argparse
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- ratios: begin", "<!-- ratios: end -->"

# What a reader looks for first; all of it is in docs/benchmarks.md.
HEADLINES = {
    "generate": (
        "SmolLM2 Q4_1 batch 1",
        "SmolLM2 float32 batch 1",
        "SmolLM2 int8 batch 32",
        "SmolLM2 Q4_1 prefill 512",
        "GPT-2 124M float32 batch 16",
    ),
    "sample_logits": ("B 8, V 151936, top-k 50, top-p 0.9",),
    "attention": ("1x9x1024x64 causal",),
    "decode_attention": ("B 1, cache 4096, 9/3 heads, D 64",),
    "packed_linear": ("B 1, 576 to 1536 q4_1",),
    "loop": (
        "accelerated nflows MAF sampling 512 x 64, hidden 256 x 2",
        "accelerated zuko NSF (autoregressive) sampling 512 x 32, hidden 256 x 2",
        "zuko NSF log_prob 1024 x 32, 5 layers, hidden 128, 8 bins",
        "Glow sampling B 16, 3x32x32, 3 levels x 16 steps, hidden 256",
    ),
    "rq_spline": ("4096x32, 8 bins, forward", "4096x32, 8 bins, forward and backward"),
    "affine_coupling": ("4096x1536 tanh, forward",),
    "ising": ("16x512x512 beta 0.44, 10 sweeps", "16x128x128 beta 0.44, 100 sweeps"),
    "rbm_gibbs": ("B 256, 784x512, 10 steps", "B 1, 784x512, 1000 steps"),
    "random": ("uniform 2^24 into out", "normal 2^24 into out"),
}


def table(rows: list[dict]) -> str:
    """One line for each headline with a ratio, its peers side by side, and on what it was measured."""
    timed = [row for row in rows if row["ratio"] is not None and row["peer"] != "reference"]
    lines = ["| op | case | times as fast as |", "|---|---|---|"]
    for op, names in HEADLINES.items():
        for name in names:
            peers = [row for row in timed if (row["op"], row["case"]) == (op, name)]
            ratios = ", ".join(f"{row['peer']} **{row['ratio']:.3g}**" for row in peers)
            lines += [f"| {op} | {name} | {ratios} |"] if peers else []
    if len(lines) == 2:
        raise ValueError("the files hold no ratio of a headline")
    machine = timed[0]["machine"]
    days = sorted({row["date"][:10] for row in timed})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    where = f"{machine['cpu']}, {timed[0]['threads']} threads, {timed[0]['isa']}, {when}"
    more = "intervals, times and more cases are in [docs/benchmarks.md](docs/benchmarks.md)."
    return "\n".join([*lines, "", f"Medians on {where};", more])


def fill(text: str, rows: list[dict]) -> str:
    """The text with the table between its marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"wanted one {BEGIN} ... and one {END}")
    head, _, rest = text.partition(BEGIN)
    mark, _, rest = rest.partition("\n")
    return f"{head}{BEGIN}{mark}\n{table(rows)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Read, fill, write."""
    parser = argparse.ArgumentParser(description="put the ratios into the README")
    parser.add_argument("source", type=Path, nargs="+", help="files written by `fastgen bench --json`")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    given = parser.parse_args()
    rows = [row for source in given.source for row in json.loads(source.read_text())]
    given.readme.write_text(fill(given.readme.read_text(), rows))


if __name__ == "__main__":
    main()
