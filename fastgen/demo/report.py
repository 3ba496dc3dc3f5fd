"""The page: numbers and pictures put into report.html, which needs no other file and no network."""

import datetime
import platform
from collections.abc import Sequence
from pathlib import Path

import jinja2
import torch

import fastgen
from fastgen import files, native
from fastgen.bench import machine
from fastgen.demo import pictures
from fastgen.demo.comparison import Comparison
from fastgen.demo.digits import Digits
from fastgen.demo.flows import Flows, Plane
from fastgen.demo.promises import Promise
from fastgen.demo.settings import Settings
from fastgen.demo.spins import CRITICAL_TEMPERATURE, LATTICE_TEMPERATURES, Spins
from fastgen.demo.texts import CUE, Texts


def write(
    path: Path,
    settings: Settings,
    digits: Digits,
    spins: Spins,
    flows: Flows,
    texts: Texts,
    comparisons: Sequence[Comparison],
    promises: Sequence[Promise],
    took: float,
) -> None:
    """Write the page; `took` is the time in seconds that everything before took."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastgen.demo", "."),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        settings=settings,
        likelihood=digits.log_likelihood,
        train_images=4000,
        test_images=len(digits.test),
        chains=_chains(digits),
        inpainting=_inpainting(digits),
        lattices=[
            (factor, factor * CRITICAL_TEMPERATURE, pictures.png((lattice > 0).double()))
            for factor, lattice in zip(LATTICE_TEMPERATURES, spins.lattices, strict=True)
        ],
        magnetisation=pictures.magnetisation(spins),
        binder=pictures.binder(spins),
        critical=CRITICAL_TEMPERATURE,
        planes=[(plane, _stages(plane)) for plane in flows.planes],
        flow=flows.held_out,
        flow_images=1442,
        flow_samples=pictures.png(pictures.tiles(flows.samples / 255, gap=1)),
        walks=pictures.png(pictures.tiles(flows.walks / 255, gap=1)),
        texts=texts,
        cue=CUE,
        ratios=pictures.ratios(comparisons),
        comparisons=comparisons,
        promises=promises,
        facts=_facts(took),
    )
    with files.replacing(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _chains(digits: Digits) -> str:
    """One chain a row, one look a column."""
    return pictures.png(pictures.tiles(digits.chains.transpose(0, 1)))


def _inpainting(digits: Digits) -> str:
    """One image a column: what was given, two fillings, the truth."""
    given, known = digits.given.double(), digits.known
    shown = torch.where(known, given, torch.tensor(0.25, dtype=torch.float64))  # grey where nothing is known
    fillings = torch.where(known, given[:, None], digits.inpainted.double())
    return pictures.png(pictures.tiles(torch.stack([shown, *fillings.unbind(1), given])))


def _stages(plane: Plane) -> list[tuple[str, str]]:
    """A label and a picture of each stage, and of the data in the end."""
    names = ["noise", *(f"after {i}" for i in range(1, len(plane.stages))), "the data"]
    return list(zip(names, map(pictures.density, [*plane.stages, plane.points]), strict=True))


def _facts(took: float) -> dict[str, str]:
    """Machine, build and versions, as they stand at the end of the page."""
    found = machine.machine("cpu")
    isa = native.module.isa() if native.module else f"reference only ({native.reason})"
    return {
        "made": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, in {took:.0f} s",
        "machine": f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB, {platform.system()}",
        "threads": str(torch.get_num_threads()),
        "instruction set": isa,
        "fastgen": fastgen.__version__,
        "versions": ", ".join(f"{n} {v}" for n, v in machine.versions().items() if n != "fastgen"),
    }
