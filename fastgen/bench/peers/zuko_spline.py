"""zuko's spline as its NSF calls it: a transform built from the slices of one packed tensor, then applied."""

from torch import Tensor


def spline(x: Tensor, params: Tensor, *, bins: int, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Return y and the log-determinants, added as zuko's flows add them."""
    from zuko.transforms import MonotonicRQSTransform  # noqa: PLC0415

    transform = MonotonicRQSTransform(*params.split([bins, bins, bins - 1], -1), bound=bound)
    y, log_det = (transform.inv if inverse else transform).call_and_ladj(x)
    return y, log_det.sum(-1)
