"""Trains the models of fastgen/zoo, and those whose held-out figures docs/models.md holds.

    python tools/train_zoo.py [NAME ...] [--out DIR]

Each takes seconds to minutes on one core. Prints a row of the table of docs/models.md for each; models that
are small enough are written to DIR (fastgen/zoo by default).
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastgen import data
from fastgen.models import Flow
from fastgen.training import train
from fastgen.training.flows import DATASETS, batch_of, held_out, new_flow
from fastgen.training.texts import bits_per_character, transformer_of_characters

SHAKESPEARE = "transformer-shakespeare"
ZOO = Path(__file__).resolve().parents[1] / "fastgen" / "zoo"


@dataclass(frozen=True)
class Recipe:
    """What is trained on what, how, and whether the result is shipped."""

    family: str
    data: str
    options: dict[str, Any]
    epochs: int
    lr: float = 2e-3
    batch_size: int = 128
    conditional: bool = False
    patience: int | None = None  # epochs; a quarter of the training data then says when to stop
    shipped: bool = False


TOY: dict[str, Any] = {"epochs": 30, "lr": 5e-3, "batch_size": 512, "shipped": True}
TABLE: dict[str, Any] = {"epochs": 400, "lr": 1e-3, "patience": 30}

RECIPES = {
    "glow-digits": Recipe(
        "glow", "digits", {"scales": 2, "steps": 6, "hidden": 64}, 60, conditional=True, shipped=True
    ),
    "nsf-digits": Recipe("nsf", "digits", {"steps": 4, "hidden": 64, "bins": 4}, 60, shipped=True),
    "maf-digits": Recipe("maf", "digits", {"steps": 4, "hidden": 96, "blocks": 1}, 60, shipped=True),
    "realnvp-digits": Recipe("realnvp", "digits", {"steps": 8, "hidden": [96, 96]}, 60),
    "glow-mnist": Recipe(
        "glow", "mnist5k", {"scales": 2, "steps": 4, "hidden": 48}, 40, conditional=True, shipped=True
    ),
    "realnvp-mnist": Recipe("realnvp", "mnist5k", {"steps": 6, "hidden": [128, 128]}, 40),
    "maf-mnist": Recipe("maf", "mnist5k", {"steps": 3, "hidden": 256, "blocks": 1}, 40),
    "nsf-mnist": Recipe("nsf", "mnist5k", {"steps": 3, "hidden": 64, "bins": 4}, 40),
    "nsf-moons": Recipe("nsf", "moons", {"steps": 4, "hidden": 32}, **TOY),
    "nsf-checkerboard": Recipe("nsf", "checkerboard", {"steps": 4, "hidden": 32, "bins": 16}, **TOY),
    "realnvp-pinwheel": Recipe("realnvp", "pinwheel", {"steps": 6, "hidden": [32, 32]}, **TOY),
} | {
    f"{family}-{table.replace('_', '-')}": Recipe(
        family, table, options, **TABLE, shipped=(family, table) == ("maf", "breast_cancer")
    )
    for table in ("breast_cancer", "wine", "diabetes")
    for family, options in (
        ("realnvp", {"steps": 4, "hidden": [32]}),
        ("nsf", {"steps": 3, "hidden": 32, "blocks": 1, "bins": 4}),
        ("maf", {"steps": 3, "hidden": 48, "blocks": 1}),
    )
}


def fit(recipe: Recipe) -> Flow:
    """Train one model."""
    dataset = DATASETS[recipe.data]()
    flow = new_flow(recipe.family, dataset, conditional=recipe.conditional, seed=0, **recipe.options)
    train(
        flow,
        batch_of(flow, dataset),
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        lr=recipe.lr,
        weight_decay=1e-4,
        ema=0.99,
        clip_norm=10.0,
        validation=0.25 if recipe.patience else 0.0,
        patience=recipe.patience,
        seed=0,
        progress=False,
    )
    return flow.eval()


def row(name: str, recipe: Recipe, flow: Flow, seconds: float) -> str:
    """A row of the table: name, data, parameters, time, nats and bits per dimension of held-out data."""
    found = held_out(flow, DATASETS[recipe.data]())
    bits = f"{found.bits_per_dimension:.3f}" if flow.dequantization else ""
    parameters = sum(p.numel() for p in flow.parameters())
    known = f"{found.nats:.2f} ± {found.error:.2f}"
    return f"| {name} | {recipe.data} | {parameters:,} | {seconds:.0f} s | {known} | {bits} |"


def train_shakespeare(out: Path) -> str:
    """Train and ship the model of characters; its line of docs/models.md."""
    works, start = data.shakespeare(), time.perf_counter()
    model = transformer_of_characters(works.train.values(), progress=False)
    seconds = time.perf_counter() - start
    bits = bits_per_character(model, works.test.values())
    parameters = sum(p.numel() for p in model.parameters())
    model.save(out / SHAKESPEARE)
    return f"| {SHAKESPEARE} | shakespeare | {parameters:,} | {seconds:.0f} s | {bits:.3f} |"


def main() -> None:
    """Train what the arguments name, all by default."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = [*RECIPES, SHAKESPEARE]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--out", type=Path, default=ZOO, metavar="DIR", help="(default fastgen/zoo)")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(known))
    if unknown:
        parser.error(f"no recipe for {', '.join(unknown)}")
    torch.set_num_threads(1)
    for name in given.names or known:
        if name == SHAKESPEARE:
            print(train_shakespeare(given.out), flush=True)
            continue
        start = time.perf_counter()
        flow = fit(RECIPES[name])
        print(row(name, RECIPES[name], flow, time.perf_counter() - start), flush=True)
        if RECIPES[name].shipped:
            flow.save(given.out / name)


if __name__ == "__main__":
    main()
