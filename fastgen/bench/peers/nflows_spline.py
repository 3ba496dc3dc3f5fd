"""nflows' spline as its coupling layers call it: with slices of one packed tensor of parameters."""

from torch import Tensor


def spline(x: Tensor, params: Tensor, *, bins: int, inverse: bool, bound: float) -> tuple[Tensor, Tensor]:
    """Return y and the log-determinants, added as nflows' layers add them."""
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline  # noqa: PLC0415
    from nflows.utils.torchutils import sum_except_batch  # noqa: PLC0415

    y, log_det = unconstrained_rational_quadratic_spline(
        inputs=x,
        unnormalized_widths=params[..., :bins],
        unnormalized_heights=params[..., bins : 2 * bins],
        unnormalized_derivatives=params[..., 2 * bins :],
        inverse=inverse,
        tails="linear",
        tail_bound=bound,
    )
    return y, sum_except_batch(log_det)
