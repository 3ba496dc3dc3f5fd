"""Charts of ratios, in the demo and on the benchmark page: a bar goes from 1 to the ratio, more or less."""

from types import SimpleNamespace

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from fastgen.bench import page, timing
from fastgen.demo import pictures

RATIOS = [(0.05, 0.04, 0.06), (0.8, 0.7, 0.9), (1.0, 0.9, 1.1), (30.0, 20.0, 40.0)]


def of_the_demo(ratios, path):
    timed = [timing.Comparison(1.0, ratio, ratio, low, high, 9) for ratio, low, high in ratios]
    case = SimpleNamespace(op="toy")
    pictures.ratios([SimpleNamespace(case=case, peer="eager", timed=each) for each in timed])


def of_the_page(ratios, path):
    names = ("ratio", "ratio_lo", "ratio_hi")
    rows = [
        {"op": "toy", "case": "a", "peer": "eager", **dict(zip(names, each, strict=True))} for each in ratios
    ]
    page.draw(rows, path)


@pytest.mark.parametrize("draw", [of_the_demo, of_the_page])
@pytest.mark.parametrize("ratios", [RATIOS, RATIOS[:2], RATIOS[3:]])
def test_every_bar_is_drawn_from_1_to_its_ratio_with_its_interval(draw, ratios, monkeypatch, tmp_path):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1])
    draw(ratios, tmp_path / "chart.svg")
    (axes,) = drawn[0].axes
    left, right = axes.get_xlim()
    assert axes.get_xscale() == "log" and left <= 1 <= right
    spans = [sorted((bar.get_x(), bar.get_x() + bar.get_width())) for bar in axes.patches]
    assert spans == [pytest.approx([min(1, ratio), max(1, ratio)]) for ratio, _, _ in ratios]
    bars = [each.errorbar for each in axes.containers if isinstance(each, BarContainer)]
    lines = [each.lines[2][0].get_segments()[0] for each in bars]
    assert [[x for x, _ in line] for line in lines] == [pytest.approx([low, high]) for _, low, high in ratios]
    assert all(left < low and high < right for _, low, high in ratios)
