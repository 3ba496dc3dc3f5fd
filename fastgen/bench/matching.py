"""How outputs are compared: bit for bit, within roundings, or as distributions where the noise differs."""

from collections.abc import Callable
from typing import Any

import torch

from fastgen.bench.case import Match

FALSE_ALARM = 1e-6
"""Chance that two correct samplers are called different, for one comparison of all its statistics."""


def _tensors(output: Any) -> tuple[torch.Tensor, ...]:
    return tuple(x for x in output if x is not None) if isinstance(output, (tuple, list)) else (output,)


def exact(ours: list[Any], theirs: list[Any]) -> Match:
    """Every tensor of every output has the same shape, dtype and bits."""
    pairs = [
        pair for a, b in zip(ours, theirs, strict=True) for pair in zip(_tensors(a), _tensors(b), strict=True)
    ]
    for a, b in pairs:
        if a.shape != b.shape or a.dtype != b.dtype:
            return Match(False, f"{tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}")
        if not torch.equal(a, b):
            return Match(False, f"{int((a != b).sum())} of {a.numel()} elements differ")
    return Match(True, f"{sum(a.numel() for a, _ in pairs)} elements equal bit for bit")


def rows_equal(share: float) -> Callable[[list[Any], list[Any]], Match]:
    """Return a match: at least `share` of the rows (chains) have the same bits in every tensor.

    For samplers whose reference adds in another order: a draw that falls between two roundings of the same
    sum comes out differently, and from then on its chain goes its own way.
    """

    def match(ours: list[Any], theirs: list[Any]) -> Match:
        equal = [
            torch.stack(
                [(x == y).flatten(1).all(1) for x, y in zip(_tensors(a), _tensors(b), strict=True)]
            ).all(0)
            for a, b in zip(ours, theirs, strict=True)
        ]
        rows = torch.cat(equal)
        return Match(
            bool(rows.double().mean() >= share), f"{int(rows.sum())} of {len(rows)} chains equal bit for bit"
        )

    return match


def close(rtol: float, atol: float) -> Callable[[list[Any], list[Any]], Match]:
    """Return a match: no element is further than atol + rtol |theirs| from theirs.

    Infinities must be the same; NaN is near nothing, not even NaN, since a case computes numbers.
    """

    def match(ours: list[Any], theirs: list[Any]) -> Match:
        worst = 0.0
        for output, other in zip(ours, theirs, strict=True):
            for a, b in zip(_tensors(output), _tensors(other), strict=True):
                if a.shape != b.shape or a.dtype != b.dtype:
                    return Match(False, f"{tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}")
                worst = max(worst, _worst(a.double(), b.double(), rtol, atol))
        return Match(worst <= 1, f"difference at most {worst:.2g} of rtol {rtol:g} and atol {atol:g}")

    return match


def _worst(a: torch.Tensor, b: torch.Tensor, rtol: float, atol: float) -> float:
    """Return the largest difference as a share of what is allowed."""
    share = torch.where(a == b, 0.0, (a - b).abs() / (atol + rtol * b.abs()))
    return float(share.nan_to_num(nan=torch.inf).max()) if share.numel() else 0.0


def statistical(**statistics: Callable[[Any], torch.Tensor]) -> Callable[[list[Any], list[Any]], Match]:
    """Return a match by Welch's t-test on each named statistic.

    A statistic maps an output to one number a chain, shape (B,); chains are independent. The means of the two
    samplers may differ by chance only: the smallest p-value, times the number of statistics, must exceed
    `FALSE_ALARM`.
    """

    def match(ours: list[Any], theirs: list[Any]) -> Match:
        words, worst = [], 1.0
        for name, statistic in statistics.items():
            a, b = (
                torch.cat([statistic(output).double().cpu() for output in side]) for side in (ours, theirs)
            )
            p, sigmas = _welch(a, b)
            worst = min(worst, p * len(statistics))
            words.append(f"{name} {a.mean():.5g} against {b.mean():.5g} ({sigmas:+.1f} standard errors)")
        return Match(worst > FALSE_ALARM, "; ".join(words))

    return match


def _welch(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Return the two-sided p-value of equal means and the difference in standard errors."""
    from scipy import stats  # noqa: PLC0415 (an optional extra)

    error = float((a.var() / len(a) + b.var() / len(b)).sqrt())
    difference = float(a.mean() - b.mean())
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return 0.0, float("inf")
    if error == 0.0:
        return float(difference == 0.0), 0.0 if difference == 0.0 else float("inf")
    return float(stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False).pvalue), difference / error
