"""The op attention: what is masked, and what is not finite."""

import pytest
import torch
from attention_inputs import DTYPES, HERE, bias_of, gradients, grads_of_everything, make, mask_of, sdpa

from fastgen import use_backend
from fastgen.ops import attention

# What is masked.


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("how", ["mask", "bias", "window"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients(backend, how, dtype):
    q, k, v = make((2, 2, 2, 70, 70, 8, 8), dtype)
    seen = mask_of((2, 1, 70, 70))
    seen[:, :, 5] = False
    seen[0, :, 64:] = False
    options = {"mask": seen} if how == "mask" else {"bias": torch.where(seen, 0.0, -torch.inf)}
    if how == "window":  # queries far behind the last key
        q, options = torch.cat([q, q], 2), {"causal": "upper_left", "window": 3}
        seen = torch.zeros(2, 1, 140, 70, dtype=torch.bool)
        seen[:, :, :72] = True
    empty = ~seen.any(-1).expand(2, 2, -1)
    with use_backend(backend):
        out, lse, grads = grads_of_everything(q, k, v, **options)
    assert (out[empty] == 0).all() and (lse[empty] == -torch.inf).all() and (grads[0][empty] == 0).all()
    assert out.isfinite().all() and lse[~empty].isfinite().all()
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_of_the_lowest_number_is_no_mask_but_a_uniform_average(backend, dtype):
    q, k, v = make((1, 1, 1, 9, 150, 8, 8), dtype)
    bias = torch.full((9, 150), torch.finfo(dtype).min, dtype=dtype)
    bias[3, 100] = 0  # which all others are nothing against
    with use_backend(backend):
        out, _, grads = grads_of_everything(q, k, v, bias=bias)
    wanted = v.mean(2, keepdim=True).expand(1, 1, 9, 8).clone()
    wanted[:, :, 3] = v[:, :, 100]
    torch.testing.assert_close(out, wanted)
    per_value = torch.full((150,), 8 / 150, dtype=dtype)
    per_value[100] += 1
    torch.testing.assert_close(grads[2], per_value[:, None].expand(1, 1, 150, 8))


@pytest.mark.parametrize("backend", HERE)
def test_scores_far_out_are_those_of_pytorch(backend):
    q, k, v = make((1, 1, 1, 9, 150, 8, 8))
    for far in (1e5, -1e5, 3e6, -3e6):
        bias = torch.full((9, 150), far) + 4 * bias_of((9, 150))
        with use_backend(backend):
            came = gradients(lambda q, k, v, b: attention(q, k, v, bias=b), (q, k, v, bias))
        wanted = gradients(
            lambda q, k, v, b: sdpa(q, k, v, attn_mask=b), [x.double() for x in (q, k, v, bias)]
        )
        for a, b in zip(came, wanted, strict=True):  # the scores themselves are rounded so far out
            assert (a.double() - b).abs().max() <= abs(far) * 2.0**-23 * (1 + b.abs().max())


@pytest.mark.parametrize("backend", HERE)
def test_blocks_of_keys_hidden_before_the_first_that_is_seen(backend):
    q, k, v = make((1, 2, 2, 640, 640, 16, 16))
    with use_backend(backend):
        out = attention(q, k, v, causal="upper_left", window=64)
    place = torch.arange(640)
    near = (place[:, None] - place).abs() < 64
    torch.testing.assert_close(out, sdpa(q, k, v, attn_mask=near.tril()))


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", ["mask", "bias", "causal", "window"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_keys_and_values_that_are_masked_never_enter(backend, dtype, how, bad):
    q, k, v = make((2, 2, 1, 90, 150, 8, 6), dtype)
    hidden = [1, 63, 64, 140] + list(range(64, 128))  # single ones, and a whole block
    seen = torch.ones(90, 150, dtype=torch.bool)
    seen[:, hidden] = False
    options = {"mask": seen} if how == "mask" else {"bias": torch.where(seen, 0.0, -torch.inf)}
    if how == "causal":
        options, hidden = {"causal": "upper_left"}, [90, 120, 149]
    if how == "window":
        options, hidden = {"causal": "lower_right", "window": 9}, [0, 17, 51]
    with use_backend(backend):
        wanted = grads_of_everything(q, k, v, **options)
        k, v = k.clone(), v.clone()
        k[:, :, hidden] = bad
        v[:, :, hidden] = bad
        found = grads_of_everything(q, k, v, **options)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    assert all(torch.equal(a, b) for a, b in zip(found[2], wanted[2], strict=True))


@pytest.mark.parametrize("backend", HERE)
def test_what_is_not_finite_enters_where_it_is_seen_and_only_there(backend):
    q, k, v = make((1, 1, 1, 90, 150, 8, 6))
    with use_backend(backend):
        wanted = attention(q, k, v, causal="upper_left")
        v[0, 0, 70, 2], v[0, 0, 75, 3], v[0, 0, 80, 3] = torch.nan, torch.inf, -torch.inf
        k[0, 0, 88, 1] = torch.nan
        out = attention(q, k, v, causal="upper_left")[0, 0]
    bad = torch.zeros(90, 6, dtype=torch.bool)
    bad[70:, 2], bad[75:, 3], bad[88:] = True, True, True
    assert torch.equal(out[~bad], wanted[0, 0][~bad])
    assert out[70:, 2].isnan().all() and out[88:].isnan().all()
    assert (out[75:80, 3] == torch.inf).all() and out[80:, 3].isnan().all()


@pytest.mark.parametrize("backend", HERE)
def test_a_query_that_is_not_finite_stays_in_its_row(backend):
    q, k, v = make((1, 2, 1, 70, 80, 8, 6))
    with use_backend(backend):
        wanted = attention(q, k, v)
        q[0, 1, 66] = torch.nan
        out = attention(q, k, v)
    others = torch.ones(1, 2, 70, dtype=torch.bool)
    others[0, 1, 66] = False
    assert torch.equal(out[others], wanted[others]) and out[~others].isnan().all()
