"""transformer on a GPU: a pass put together from the kernels of its parts."""

import torch
from fastgen.kernels.decode_attention import decode_attention
from fastgen.kernels.layer_norm import layer_norm
from fastgen.kernels.packed_linear import packed_linear
from fastgen.kernels.rms_norm import rms_norm
from fastgen.kernels.rope import rope


def transformer(x, query_starts, lengths, block_table, keys, values, wanted, weights):
    """See `fastgen.ops.transformer`; x (T, hidden) are the rows of the tokens in the embedding.

    `weights` are those of `fastgen.reference.transformer`.
    """
    counts = query_starts.diff()
    sequence = torch.arange(len(lengths), device=x.device).repeat_interleave(counts)
    row = torch.arange(len(x), device=x.device)
    position = lengths[sequence] - query_starts[1:][sequence] + row
    page = block_table[sequence, position // keys.shape[3]].long()
    place = position % keys.shape[3]
    if weights.positions is not None:
        x = x + weights.positions[position]
    for i in range(weights.layers):
        h = _normalize(weights, f"{i}.attention", x)
        q, k, v = (_project(weights, f"{i}.{name}", h) for name in "qkv")
        q, k = (_rotate(weights, t, position) for t in (q, k))
        keys[i][page, :, place] = k
        values[i][page, :, place] = v.unflatten(1, (-1, weights.head_size))
        attended, _ = decode_attention(
            q, keys[i], values[i], lengths, query_starts, block_table,
            weights.scale, weights.window or None, weights.softcap or None,
        )  # fmt: skip
        x = _project(weights, f"{i}.o", attended.flatten(1), residual=x)
        x = _between(weights, i, x)
    return _project(weights, "head", _normalize(weights, "final", x[wanted]))


def _between(weights, i, x):
    h = _normalize(weights, f"{i}.mlp", x)
    if weights.matrices[f"{i}.gate"] is None:
        inner = _project(weights, f"{i}.up", h, weights.activation)
    else:
        inner = _project(weights, f"{i}.gate", h, weights.activation) * _project(weights, f"{i}.up", h)
    return _project(weights, f"{i}.down", inner, residual=x)


def _project(weights, name, x, activation="none", residual=None):
    m = weights.matrices[name]
    return packed_linear(x, m.data, m.scale, m.format, m.shape[0], m.bias, activation, residual)


def _normalize(weights, name, x):
    weight, bias = weights.norms[name]
    y = torch.empty_like(x)
    if weights.norm == "layer":
        layer_norm(y, x, x, weight, bias, weights.eps, None)
    else:
        rms_norm(y, x, x, weight, weights.eps, None)
    return y


def _rotate(weights, t, position):
    heads = t.unflatten(1, (-1, weights.head_size))
    if weights.cos is None:
        return heads
    interleaved = weights.rope == "interleaved"
    return rope(heads[None], weights.cos[position], weights.sin[position], interleaved)[0]
