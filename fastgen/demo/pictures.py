"""Pictures as text for one self-contained page: pixels as PNG, charts as SVG in the page's colours."""

import base64
import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fastgen.demo.comparison import Comparison
from fastgen.demo.spins import CRITICAL_TEMPERATURE, Spins
from fastgen.models import TemperatureSweep, onsager_magnetisation

COLOURS = ("#3b7dd8", "#d9822b", "#2e9e6b", "#b04fb5")  # readable on white and on black
INK, FAINT = "#010203", "#010204"  # stand for the page's own colours, and are replaced in the SVG
BINDER_CRITICAL = 0.61069  # Kamieniarz and Bloete 1993, square lattice with periodic edges

_salt = itertools.count()


def png(ink: Tensor) -> str:
    """A data address of black ink on a transparent ground; `ink` is (H, W), 0 for none and 1 for full."""
    alpha = Image.fromarray((ink.double().clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    file = io.BytesIO()
    Image.merge("LA", (Image.new("L", alpha.size), alpha)).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def tiles(pictures: Tensor, gap: int = 2) -> Tensor:
    """(rows, columns, H, W) put side by side as one (H', W'), with `gap` empty pixels between them."""
    padded = torch.nn.functional.pad(pictures.double(), (0, gap, 0, gap))
    return padded.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[:-gap, :-gap]


@contextmanager
def _chart(width: float, height: float) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that holds the SVG once the block has ended."""
    from matplotlib import rc_context  # noqa: PLC0415 (an optional extra)
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        "svg.hashsalt": f"fastgen {next(_salt)}",  # two charts on a page share no id
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    style |= dict.fromkeys(
        ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK
    )
    result: list[str] = []
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure.subplots(), result
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    result.append(svg)


def density(values: Tensor) -> str:
    """A data address of a density or of counts (H, W), full ink near the largest value."""
    values = values.double()
    return png((values / values.flatten().quantile(0.995).clamp(min=1e-300)).clamp(0, 1).sqrt())


def ratios(comparisons: Sequence[Comparison]) -> str:
    """Bars of the other's time over fastgen's, with the 95% interval: to the right of 1, or to the left."""
    with _chart(7.5, 0.7 + 0.5 * len(comparisons)) as (axes, svg):
        for place, row in enumerate(comparisons):
            timed = row.timed
            spread = [[timed.ratio - timed.ratio_lo], [timed.ratio_hi - timed.ratio]]
            bar: dict[str, Any] = {"left": 1, "color": COLOURS[0], "height": 0.55}
            axes.barh(place, timed.ratio - 1, xerr=spread, ecolor=INK, capsize=3, **bar)
            axes.annotate(
                f"{timed.ratio:.3g} x",
                (timed.ratio_hi, place),
                (8, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(comparisons)), [f"{row.case.op}, {row.peer}" for row in comparisons])
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        least = min(row.timed.ratio_lo for row in comparisons)
        axes.set_xlim(min(0.7, 0.8 * least), 2 * max(1, *(row.timed.ratio_hi for row in comparisons)))
        axes.axvline(1, color=INK, linewidth=0.8)
        axes.set_xlabel("times as fast (log scale, 95% interval)")
    return svg[0]


def _points(axes: Any, sweep: TemperatureSweep, observable: str, **style: Any) -> None:
    value, error = getattr(sweep, observable)
    line = {"linestyle": "none", "marker": "o", "markersize": 3.5, "elinewidth": 1, "capsize": 2}
    axes.errorbar(1 / sweep.beta, value, yerr=error, **(line | style))


def magnetisation(spins: Spins) -> str:
    """Magnetisation against temperature, over the exact curve of the infinite lattice."""
    with _chart(7.5, 4) as (axes, svg):
        # Close to the critical temperature the exact curve falls like the eighth root: points crowd there.
        below = CRITICAL_TEMPERATURE * (1 - 0.4 * torch.linspace(1, 0, 200, dtype=torch.float64) ** 4)
        exact = [*below.tolist()[:-1], CRITICAL_TEMPERATURE, CRITICAL_TEMPERATURE, 3.25]
        curve = [*(onsager_magnetisation(1 / t) for t in exact[:-2]), 0.0, 0.0]
        axes.plot(exact, curve, color=INK, linewidth=1.2, label="infinite lattice, exact")
        for colour, (side, sweep) in zip(COLOURS, spins.curve.items(), strict=False):
            _points(axes, sweep, "magnetisation", color=colour, label=f"{side} x {side}")
        axes.axvline(CRITICAL_TEMPERATURE, color=FAINT, linewidth=1, zorder=0)
        axes.annotate(" $T_c$", (CRITICAL_TEMPERATURE, 1.0), va="top")
        axes.set_xlabel("temperature T, in units of J")
        axes.set_ylabel("magnetisation a spin, mean of |m|")
        axes.set_ylim(0, 1.05)
        axes.legend()
    return svg[0]


def binder(spins: Spins) -> str:
    """Binder cumulants of several sizes, which cross at the critical temperature."""
    with _chart(7.5, 4) as (axes, svg):
        for colour, (side, sweep) in zip(COLOURS, spins.binder.items(), strict=False):
            label = f"{side} x {side}"
            _points(axes, sweep, "binder", color=colour, label=label, linestyle="-", linewidth=0.8)
        axes.axvline(CRITICAL_TEMPERATURE, color=FAINT, linewidth=1, zorder=0)
        axes.axhline(BINDER_CRITICAL, color=FAINT, linewidth=1, zorder=0)
        axes.annotate(" $T_c$, exact", (CRITICAL_TEMPERATURE, axes.get_ylim()[1]), va="top")
        axes.set_xlabel("temperature T, in units of J")
        axes.set_ylabel("Binder cumulant U")
        axes.legend(loc="lower left")
    return svg[0]
