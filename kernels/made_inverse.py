"""The inverse of a masked autoregressive network on a GPU: one program takes some rows through all degrees.

Units are sorted by the rank of their degree, so that what a unit sees is a prefix of the layer below. What
the units know lies in memory, where a program reads again what it wrote; the caches hold it. Inputs are added
in the same order whatever the batch, so a row's bits do not depend on the rows beside it.
"""

import torch
import triton
import triton.language as tl
from fastgen.kernels.linear import activate
from fastgen.kernels.rq_spline import _constants as spline_constants
from fastgen.kernels.rq_spline import clamp, locate
from fastgen.kernels.scale_maps import log_scale_of

SIDE = 16  # rows, units and inputs of a tile: a degree has few units
FIELDS = 12  # of a layer in the table
ACTIVATED, RESIDUAL, ADDEND, GATE = 1, 2, 4, 8


@triton.jit
def advance(
    layer, rank, row, here, table, firsts, numbers, weight, bias, context, seen, kept, ranks, columns,
    seen_width, kept_width, ACTIVATION: tl.constexpr, SIDE: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Give the units of a rank what they see, and the next layer what they give."""
    REAL: tl.constexpr = seen.dtype.element_ty
    DOUBLE: tl.constexpr = seen.dtype.element_ty == tl.float64
    fields = table + layer * FIELDS
    inputs, last = tl.load(fields), tl.load(fields + 1)
    weights, biases = weight + tl.load(fields + 2), bias + tl.load(fields + 3)
    below, above = tl.load(fields + 4), tl.load(fields + 5)  # columns of `seen`
    mine, partner = tl.load(fields + 6), tl.load(fields + 7)  # columns of `kept`
    addend, gate = tl.load(fields + 8), tl.load(fields + 9)  # columns of the context, or -1
    shows, name = tl.load(fields + 10), numbers + tl.load(fields + 11)
    reach = tl.load(firsts + layer * (ranks + 1) + rank + 1 - last)
    first = firsts + (layer + 1) * (ranks + 1) + rank
    end = tl.load(first + 1)
    for start in range(tl.load(first), end, SIDE):
        unit = start + tl.arange(0, SIDE)[None, :]
        there = unit < end
        both = here & there
        total = tl.zeros((SIDE, SIDE), REAL) + tl.load(biases + unit, mask=there, other=0.0).to(REAL)
        for known in range(0, reach, SIDE):
            i = known + tl.arange(0, SIDE)
            h = tl.load(
                seen + row * seen_width + below + i[None, :], mask=here & (i < reach)[None, :], other=0.0
            )
            w = tl.load(weights + unit * inputs + i[:, None], mask=there & (i < reach)[:, None], other=0.0)
            if DOUBLE:
                total += tl.sum(h[:, :, None] * w[None, :, :], axis=1)
            else:
                total = tl.dot(h, w, total, input_precision="tf32x3")
        total += tl.load(
            context + row * columns + addend + unit, mask=both & (addend + unit * 0 >= 0), other=0.0
        )
        total *= tl.load(context + row * columns + gate + unit, mask=both & (gate + unit * 0 >= 0), other=1.0)
        own = tl.load(name + unit, mask=there, other=0)
        total += tl.load(
            kept + row * kept_width + partner + own, mask=both & (partner + unit * 0 >= 0), other=0.0
        )
        tl.store(kept + row * kept_width + mine + own, total, mask=both & (mine + unit * 0 >= 0))
        shown = tl.where(shows + unit * 0 > 0, activate(total, ACTIVATION), total)
        tl.store(seen + row * seen_width + above + unit, shown, mask=both)
    tl.debug_barrier()  # what one thread stored is loaded by others


@triton.jit
def made_kernel(
    z, log_det_out, table, firsts, numbers, weight, bias, context, seen, kept, rows, features, parameters,
    layers, ranks, steps, columns, seen_width, kept_width, output,
    ACTIVATION: tl.constexpr, SPLINE: tl.constexpr, MAP: tl.constexpr, CLAMP: tl.constexpr,
    MIN_SCALE: tl.constexpr, BINS: tl.constexpr, INVERSE: tl.constexpr, TAIL: tl.constexpr,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BOTTOM: tl.constexpr, TOP: tl.constexpr,
    X_MINIMUM: tl.constexpr, Y_MINIMUM: tl.constexpr, MIN_DERIVATIVE: tl.constexpr,
    SCALE: tl.constexpr, CLIP: tl.constexpr, SIDE: tl.constexpr, FIELDS: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(rows / SIDE),); x becomes the first columns of `seen`."""
    lane = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)
    inside, row = lane < rows, lane[:, None]
    here = row < rows
    log_det = tl.zeros((SIDE,), seen.dtype.element_ty)
    for rank in range(steps):
        first = firsts + rank
        begin, end = tl.load(first), tl.load(first + 1)
        if begin < end:
            advance(
                layers - 1, rank, row, here, table, firsts, numbers, weight, bias, context, seen, kept, ranks,
                columns, seen_width, kept_width, ACTIVATION, SIDE, FIELDS,
            )  # fmt: skip
        for feature in range(begin, end):
            latent = tl.load(z + lane * features + feature, mask=inside, other=0.0)
            raw = seen + lane * seen_width + output + feature * parameters
            if SPLINE:
                found, _, _, _, _, _ = locate(
                    latent, raw, inside, BINS, INVERSE, TAIL, LEFT, RIGHT, BOTTOM, TOP, X_MINIMUM, Y_MINIMUM,
                    MIN_DERIVATIVE, SCALE, CLIP,
                )  # fmt: skip
                _, x_edge, width, _, _, s, t, d0, d1 = found
                u = t * (1 - t)
                ratio = s / (s + (d0 + d1 - 2 * s) * u)
                change = -tl.log(ratio * (d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)) * ratio)
                outside = (latent < BOTTOM) | (latent > TOP)
                x = tl.where(outside, latent, clamp(x_edge + width * t, LEFT, RIGHT))
                change = tl.where(outside, 0.0, change)
            else:
                change = -log_scale_of(tl.load(raw, mask=inside, other=0.0), MAP, CLAMP, MIN_SCALE)
                x = (latent - tl.load(raw + 1, mask=inside, other=0.0)) * tl.exp(change)
            log_det += change
            tl.store(seen + lane * seen_width + feature, x, mask=inside)
        tl.debug_barrier()
        for layer in range(layers - 1):
            advance(
                layer, rank, row, here, table, firsts, numbers, weight, bias, context, seen, kept, ranks,
                columns, seen_width, kept_width, ACTIVATION, SIDE, FIELDS,
            )  # fmt: skip
    tl.store(log_det_out + lane, log_det, mask=inside)


def _sorted(degrees, units):
    """For the features and each layer: the units in the order of their ranks, and where each rank begins."""
    known, ranks = degrees.unique(return_inverse=True)
    of_units = list(torch.split(ranks, list(units[:-1])))
    of_units.append(of_units[0].repeat_interleave(units[-1] // units[0]))
    orders = [own.argsort(stable=True) for own in of_units]
    counts = torch.arange(len(known) + 1, device=degrees.device)
    firsts = [torch.searchsorted(own[order], counts) for own, order in zip(of_units, orders, strict=True)]
    return orders, torch.stack(firsts), int(of_units[0].max()) + 1


def _packed(weight, bias, context, units, wiring, orders):
    """Weights, biases and context in the order of the units, and the table of the layers."""
    weights, biases, terms, table = [], [], [], []
    at = {"weight": 0, "bias": 0, "seen": 0, "kept": 0, "term": 0, "name": 0}
    kept = [-1] * len(wiring)
    for k, wires in enumerate(wiring):
        ins, outs, last = units[k], units[k + 1], k + 1 == len(wiring)
        own = weight[at["weight"] : at["weight"] + ins * outs].view(outs, ins)
        weights.append(own[orders[k + 1]][:, orders[k]].flatten())
        biases.append(bias[at["bias"] : at["bias"] + outs][orders[k + 1]])
        places = []
        for wire in (ADDEND, GATE):
            places.append(at["term"] if wires & wire else -1)
            if wires & wire:
                terms.append(context[:, at["term"] : at["term"] + outs][:, orders[k + 1]])
                at["term"] += outs
        if k + 2 < len(wiring) and wiring[k + 2] & RESIDUAL:
            kept[k], at["kept"] = at["kept"], at["kept"] + outs
        partner = kept[k - 2] if wires & RESIDUAL else -1
        shown = 0 if last else wiring[k + 1] & ACTIVATED
        above = at["seen"] + ins
        table.append(
            [
                ins,
                int(last),
                at["weight"],
                at["bias"],
                at["seen"],
                above,
                kept[k],
                partner,
                *places,
                shown,
                at["name"],
            ]
        )
        at["weight"], at["bias"], at["seen"] = at["weight"] + ins * outs, at["bias"] + outs, above
        at["name"] += outs
    rows = torch.cat(terms, 1) if terms else bias
    return torch.cat(weights), torch.cat(biases), rows, table, at["seen"], max(at["kept"], 1)


def made_inverse(
    z, weight, bias, context, degrees, units, wiring, activation, kind, form, bins, tails, numbers
):
    """See `fastgen.ops.made_inverse`; z float32 or float64."""
    (rows, features), real = z.shape, z.dtype
    log_det = z.new_empty(rows)
    if rows == 0:
        return torch.empty_like(z), log_det
    orders, firsts, steps = _sorted(degrees, units)
    weights, biases, terms, table, output, kept_width = _packed(
        weight.to(real), bias, context, units, wiring, orders
    )
    seen_width = output + units[-1]
    seen, kept = z.new_empty(rows, seen_width), z.new_empty(rows, kept_width)
    spline = kind == "spline"
    limits = numbers if spline else (-1.0, 1.0, -1.0, 1.0, 0.0, 0.0, 0.5, 1.0)
    constants = spline_constants(
        bins or 1, True, tails or "linear", *limits, form if spline else "softmax", True
    )
    constants = {name: value for name, value in constants.items() if name not in ("SUM", "ELEMENTS")}
    scale = (
        {"CLAMP": 1.0, "MIN_SCALE": 0.0}
        if spline
        else dict(zip(("CLAMP", "MIN_SCALE"), numbers, strict=True))
    )
    with torch.cuda.device_of(z):  # Triton launches on the current device
        made_kernel[(triton.cdiv(rows, SIDE),)](
            z[:, orders[0]].contiguous(), log_det, torch.tensor(table, device=z.device), firsts.contiguous(),
            torch.cat(orders[1:]), weights, biases, terms, seen, kept, rows, features,
            units[-1] // features, len(wiring), firsts.shape[1] - 1, steps,
            terms.shape[1] if context is not None else 0, seen_width, kept_width, output,
            ACTIVATION=activation, SPLINE=spline, MAP="" if spline else form, **scale, **constants,
            SIDE=SIDE, FIELDS=FIELDS, enable_fp_fusion=False,
        )  # fmt: skip
    x = torch.empty_like(z)
    x[:, orders[0]] = seen[:, :features]
    return x, log_det
