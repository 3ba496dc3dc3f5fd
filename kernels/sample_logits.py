"""Drawing the next token on a GPU: a program a row, which it passes over several times and never sorts.

Tokens have keys: 32 bits in which higher logits come first, then 22 of the token. The border of top-k, of
top-p and of typical-p is the last key of the shortest prefix that holds enough, found four bits in a pass.
Masses are integers, so their sums have the same bits in any order.
"""

import torch
import triton
import triton.language as tl

from .philox import exp_nonpositive, gumbel_from_word, log, stream_words

# Logits a program reads at a time. Interpreted, a step takes as long for few as for many.
BLOCK = 1 << 14 if triton.knobs.runtime.interpret else 512
WARPS = 8  # with fewer, the masses of 16 prefixes do not fit into the registers
LARGEST = tl.constexpr(3.4028234663852886e38)
TOKEN_BITS = tl.constexpr(22)
KEY_BITS = tl.constexpr(56)
COUNT, MASS, TYPICAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def load_logits(z, token, n):
    """Logits, at most the largest float32; -inf behind the end."""
    x = tl.load(z + token, mask=token < n, other=-float("inf"))
    return tl.where(x > LARGEST, LARGEST, x)


@triton.jit
def fixed_point(x):
    """float32 in [-1, 1] as int64 multiples of 2**-40: a double between 4096 and 8192 has no finer bits."""
    return (((x.to(tl.float64) + 6144.0) - 6144.0) * 1099511627776.0).to(tl.int64)


@triton.jit
def order_of(x, token):
    """The key of a token: high logits first, of equal ones the lower tokens."""
    word = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    descending = tl.where(word < 0, word, word ^ 0x7FFFFFFF).to(tl.int64) & 0xFFFFFFFF
    return (descending << TOKEN_BITS) | token


@triton.jit
def typical_order_of(y, mean, token):
    """The key of a token: surprise near the entropy first, -log p - entropy = mean - y."""
    distance = tl.abs(mean - y).to(tl.int32, bitcast=True).to(tl.int64)
    return (distance << TOKEN_BITS) | token


@triton.jit
def border(z, n, largest, inverse, limit, upto, min_p, mean, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """The last key of the shortest prefix, in order, whose mass reaches `limit`; above all keys if none."""
    prefix = limit * 0
    digits = tl.arange(0, 16).to(tl.int64)
    for place in range(0, KEY_BITS // 4):
        shift = KEY_BITS - 4 - 4 * place
        last = prefix + ((digits + 1) << shift) - 1
        masses = tl.zeros((BLOCK, 16), tl.int64)
        for start in range(0, n, BLOCK):
            token = start + tl.arange(0, BLOCK)
            x = load_logits(z, token, n)
            key = order_of(x, token)
            if KIND == COUNT:
                mass = (token < n).to(tl.int64)
            else:
                y = (x - largest) * inverse
                weight = exp_nonpositive(y)
                mass = tl.where((key <= upto) & (token < n), fixed_point(weight), 0)
                if KIND == TYPICAL:
                    mass = tl.where(weight >= min_p, mass, 0)
                    key = typical_order_of(y, mean, token)
            masses += tl.where(key[:, None] <= last[None, :], mass[:, None], 0)
        below = (tl.sum(masses, 0) < limit).to(tl.int64)
        prefix += tl.minimum(tl.sum(below), 15) << shift
    return prefix


@triton.jit
def sums(z, n, largest, inverse, upto, min_p, BLOCK: tl.constexpr):
    """Sums of exp(y) and of y exp(y) over what is kept, in fixed point."""
    mass = tl.zeros((BLOCK,), tl.int64)
    moment = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, n, BLOCK):
        token = start + tl.arange(0, BLOCK)
        x = load_logits(z, token, n)
        y = (x - largest) * inverse
        weight = exp_nonpositive(y)
        keep = (order_of(x, token) <= upto) & (weight >= min_p) & (token < n)
        mass += tl.where(keep, fixed_point(weight), 0)
        moment += tl.where(keep, fixed_point(weight * tl.maximum(y, -87.0)), 0)
    return tl.sum(mass), tl.sum(moment)


@triton.jit
def reached(share, total):
    """The mass from which on nothing more is kept; at least 1, so that one token is kept."""
    limit = share * total.to(tl.float64)
    whole = limit.to(tl.int64)
    return tl.maximum(whole + (whole.to(tl.float64) < limit).to(tl.int64), 1)


@triton.jit
def extremes(z, n, BLOCK: tl.constexpr):
    """The largest logit, the key that comes first, and whether there is NaN."""
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    first = tl.full((BLOCK,), (1 << 54) - 1, tl.int64)
    nan = tl.zeros((BLOCK,), tl.int1)
    for start in range(0, n, BLOCK):
        token = start + tl.arange(0, BLOCK)
        x = load_logits(z, token, n)
        nan |= (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) > 0x7F800000
        largest = tl.where(x > largest, x, largest)
        first = tl.minimum(first, tl.where(token < n, order_of(x, token), (1 << 54) - 1))
    return tl.max(largest), tl.min(first), tl.max(nan.to(tl.int32)) > 0


@triton.jit
def race(
    z, n, largest, inverse, upto, min_p, mean, typical_upto, TYPICAL_P, step, sample_id, seed,
    STREAM: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token with the highest y + noise of those that are kept; of equal ones the lowest."""
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    winner = tl.full((BLOCK,), (1 << 54) - 1, tl.int64)
    for start in range(0, n, 4 * BLOCK):
        block = start // 4 + tl.arange(0, BLOCK).to(tl.int64)
        words = stream_words(block, step, sample_id, STREAM, seed)
        for k in tl.static_range(4):
            token = 4 * block + k
            x = load_logits(z, token, n)
            y = (x - largest) * inverse
            keep = (order_of(x, token) <= upto) & (exp_nonpositive(y) >= min_p) & (token < n)
            if TYPICAL_P < 1.0:
                keep &= typical_order_of(y, mean, token) <= typical_upto
            height = tl.where(keep, y + gumbel_from_word(words[k]), -float("inf"))
            better = height > best
            winner = tl.where(better, token, winner)
            best = tl.where(better, height, best)
    return tl.min(tl.where(best == tl.max(best), winner, (1 << 54) - 1))


@triton.jit(do_not_specialize=["seed"])
def sample_kernel(
    raw,
    z,
    settings,
    sample_ids,
    steps,
    tokens,
    log_probs,
    n,
    seed,
    STREAM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Token and log-probability of one row; token -1 where the row holds NaN, -2 where all is -inf."""
    row = tl.program_id(0).to(tl.int64)
    raw += row * n
    z += row * n
    temperature = tl.load(settings + row * 8)
    top_k = tl.load(settings + row * 8 + 1)
    top_p = tl.load(settings + row * 8 + 2)
    min_p = tl.load(settings + row * 8 + 3).to(tl.float32)
    typical_p = tl.load(settings + row * 8 + 4)
    greedy = (temperature == 0.0) | (top_k == 1.0)
    inverse = (1.0 / tl.where(temperature == 0.0, 1.0, temperature)).to(tl.float32)
    inverse = tl.minimum(inverse, LARGEST)
    raw_largest, _raw_first, has_nan = extremes(raw, n, BLOCK)
    largest, first, _z_has_nan = extremes(z, n, BLOCK)
    upto = tl.where(greedy, first, (1 << 54) - 1)
    mean = largest * 0.0
    typical_upto = upto * 0 + (1 << 54) - 1
    if (largest > -float("inf")) & (greedy == 0) & (has_nan == 0):
        if (top_k > 0.0) & (top_k < n):
            k = top_k.to(tl.int64)
            upto = border(z, n, largest, inverse, k, upto, min_p, mean, COUNT, BLOCK)
        if top_p < 1.0:
            before, _moment = sums(z, n, largest, inverse, upto, 0.0, BLOCK)
            limit = reached(top_p, before)
            upto = tl.minimum(upto, border(z, n, largest, inverse, limit, upto, min_p, mean, MASS, BLOCK))
        if typical_p < 1.0:
            total, moment = sums(z, n, largest, inverse, upto, min_p, BLOCK)
            mean = (moment.to(tl.float64) / total.to(tl.float64)).to(tl.float32)
            needed = reached(typical_p, total)
            typical_upto = border(z, n, largest, inverse, needed, upto, min_p, mean, TYPICAL, BLOCK)
    token = race(
        z, n, largest, inverse, upto, min_p, mean, typical_upto, typical_p, tl.load(steps + row),
        tl.load(sample_ids + row), seed, STREAM, BLOCK,
    )  # fmt: skip
    token = tl.where(largest == -float("inf"), -2, token)
    token = tl.where(has_nan, -1, token)
    every, _unused = sums(raw, n, raw_largest, inverse * 0.0 + 1.0, upto * 0 + (1 << 54) - 1, 0.0, BLOCK)
    chosen = load_logits(raw, tl.maximum(token, 0), n) - raw_largest
    mass = (every.to(tl.float64) * 9.094947017729282e-13).to(tl.float32)
    tl.store(tokens + row, token)
    tl.store(log_probs + row, chosen - log(mass))


def sample_logits(raw, z, seed, sample_ids, step, settings, stream):
    """See `fastgen.ops.sample_logits`; z is raw with bias and penalties."""
    rows, n = raw.shape
    token = torch.empty(rows, dtype=torch.int64, device=raw.device)
    log_prob = torch.empty(rows, dtype=torch.float32, device=raw.device)
    if rows == 0:
        return token, log_prob
    with torch.cuda.device_of(raw):  # Triton launches on the current device
        sample_kernel[(rows,)](
            raw, z, settings, sample_ids, step, token, log_prob, n, seed,
            STREAM=int(stream), BLOCK=min(BLOCK, max(16, triton.next_power_of_2(n))), num_warps=WARPS,
            enable_fp_fusion=False,
        )  # fmt: skip
    return token, log_prob
