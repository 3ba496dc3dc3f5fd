"""The op decode_attention: its values against float64, and its bits."""

import pytest
import torch
from decode_attention_inputs import HERE, ISAS, NAN, OPTIONS, equal, exact, make, on
from torch.nn import functional as F

from fastgen import use_backend
from fastgen.ops import decode_attention
from fastgen.reference import decode_attention as reference
from fastgen.testing import with_threads
from fastgen.tolerances import FLOAT64, allowed

SIZES = [
    # batch, heads, key heads, new, length, size
    (1, 9, 3, 1, 100, 64),
    (2, 4, 4, 1, 1100, 40),
    (3, 6, 1, 2, 65, 80),
    (2, 2, 1, 5, 64, 1),
    (1, 3, 3, 70, 70, 17),
    (2, 10, 2, 3, 600, 33),
    (1, 2, 2, 1, 1, 7),
    (1, 2, 1, 2, 200, 512),
]


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_are_those_of_float64(backend, sizes, options):
    if backend == "triton" and (sizes[4] > 600 or options == OPTIONS[-1]):
        pytest.skip("the interpreter is slow")
    q, keys, values = make(*sizes)
    lengths = torch.tensor([sizes[4]] + [sizes[4] // 2] * (sizes[0] - 1))
    with use_backend(backend):
        out, lse = decode_attention(q, keys, values, lengths, return_lse=True, **options)
    wanted, wanted_lse = exact(q, keys, values, lengths, **options)
    assert out.dtype == lse.dtype == torch.float32 and lse.shape == wanted_lse.shape
    most = FLOAT64["decode_attention"][torch.float32]
    assert (out - wanted).abs().max() <= most * (1 + wanted.abs().max())
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=most, atol=most)


@pytest.mark.parametrize("isa", ISAS)
def test_it_loses_no_more_than_pytorch(isa):
    q, keys, values = make(2, 9, 3, 1, 4096, 64)
    lengths = torch.tensor([4096, 4096])
    out, _ = on(isa, q, keys, values, lengths)
    wanted = F.scaled_dot_product_attention(q.double(), keys.double(), values.double(), enable_gqa=True)
    theirs = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
    assert (out - wanted).abs().max() <= allowed(theirs, wanted, torch.float32, losses=2, roundings=0)


def test_the_reference_runs_in_float64():
    q, keys, values = (x.double() for x in make(2, 4, 2, 3, 70, 8))
    lengths = torch.tensor([70, 41])
    rows = q.transpose(1, 2).flatten(0, 1)
    out, lse = reference.decode_attention(rows, keys, values, lengths, None, None, 8**-0.5, 20, 2.0)
    wanted, wanted_lse = exact(q, keys, values, lengths, window=20, softcap=2.0)
    torch.testing.assert_close(out.view(2, 3, 4, 8).transpose(1, 2), wanted, rtol=0, atol=1e-14)
    torch.testing.assert_close(lse.view(2, 3, 4).transpose(1, 2), wanted_lse, rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("q_dtype", [torch.float32, torch.bfloat16])
def test_a_bfloat16_cache_gives_what_its_numbers_give(backend, q_dtype):
    q, keys, values = make(2, 6, 2, 1, 130, 24, torch.bfloat16)
    q, lengths = q.to(q_dtype), torch.tensor([130, 7])
    with use_backend(backend):
        out = decode_attention(q, keys, values, lengths)
        wide = decode_attention(q.float(), keys.float(), values.float(), lengths)
    assert out.dtype == q_dtype
    if q_dtype == torch.float32:
        assert torch.equal(out, wide)
    else:
        torch.testing.assert_close(out.float(), wide, rtol=2**-7, atol=1e-3)


# Row's bits: alone, in any batch, chunked, paged, with any number of threads and any instruction set.


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("heads, key_heads, size", [(9, 3, 64), (4, 4, 40), (8, 1, 17), (7, 7, 128)])
def test_a_position_has_the_same_bits_decoded_alone_in_a_prefill_and_in_chunks(
    isa, options, heads, key_heads, size
):
    new = 150
    q, keys, values = make(1, heads, key_heads, new, 620, size)
    whole = on(isa, q, keys, values, torch.tensor([620]), **options)
    for first, last in ((0, 1), (77, 78), (149, 150), (0, 64), (64, 150), (3, 40)):
        length = torch.tensor([620 - new + last])
        part = on(isa, q[:, :, first:last], keys, values, length, **options)
        assert equal(part, [x[:, :, first:last] for x in whole]), (first, last)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("batch", range(2, 18))
def test_a_sequence_has_the_same_bits_alone_in_a_batch_and_permuted(isa, batch):
    q, keys, values = make(batch, 6, 2, 1 + batch % 3, 700, 16, seed=batch)
    g = torch.Generator().manual_seed(batch)
    lengths = torch.randint(0, 701, (batch,), generator=g)
    whole = on(isa, q, keys, values, lengths)
    order = torch.randperm(batch, generator=g)
    permuted = on(isa, q[order], keys[order], values[order], lengths[order])
    assert equal(permuted, [x[order] for x in whole])
    for b in (0, batch - 1):
        alone = on(isa, *(x[b : b + 1] for x in (q, keys, values, lengths)))
        assert equal(alone, [x[b : b + 1] for x in whole])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("new", [1, 40, 200])
def test_threads_change_no_bit(isa, new):
    q, keys, values = make(3, 6, 3, new, 1300, 48)
    lengths = torch.tensor([1300, 3, 900])
    found = []
    for threads in (1, 2, 3):
        with with_threads(threads):
            found.append(on(isa, q, keys, values, lengths))
    assert equal(found[0], found[1]) and equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_instruction_sets_with_fma_agree_to_the_bit(dtype, options):
    if not {"avx2", "avx512"} <= set(ISAS):
        pytest.skip("this CPU has not both")
    for sizes in SIZES:
        arguments = (*make(*sizes, dtype), torch.full((sizes[0],), sizes[4]))
        assert equal(on("avx2", *arguments, **options), on("avx512", *arguments, **options))


def paged(cache, page, generator):
    """The cache in pages of that size in any order, NaN behind its end and in a page that nobody has."""
    batch, heads, length, size = cache.shape
    each = -(-length // page)
    table = torch.randperm(batch * each + 1, generator=generator)[: batch * each].view(batch, each).int()
    pages = torch.full((batch * each + 1, heads, page, size), NAN, dtype=cache.dtype)
    full = F.pad(cache.float(), (0, 0, 0, each * page - length), value=NAN).to(cache.dtype)
    pages[table.flatten().long()] = full.unflatten(2, (each, page)).transpose(1, 2).flatten(0, 1)
    return pages, table


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("page", [64, 128, 640])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pages_change_no_bit_and_what_is_free_may_hold_anything(isa, page, dtype):
    q, keys, values = make(3, 6, 2, 2, 700, 24, dtype)
    lengths = torch.tensor([700, 129, 0])
    wanted = on(isa, q, keys, values, lengths)
    pages, table = paged(keys, page, torch.Generator().manual_seed(1))
    value_pages, _ = paged(values, page, torch.Generator().manual_seed(1))
    table[1, -(-129 // page) :] = -7  # of pages not in use, no entry is looked at
    table[2] = 2**31 - 1
    assert equal(on(isa, q, pages, value_pages, lengths, block_table=table), wanted)
    assert torch.equal(wanted[0][2], torch.zeros_like(q[2])) and (wanted[1][2] == -torch.inf).all()


@pytest.mark.parametrize("backend", HERE)
def test_packed_queries_are_those_of_a_batch(backend):
    q, keys, values = make(3, 4, 2, 5, 90, 8)
    lengths, counts = torch.tensor([90, 3, 40]), (5, 1, 0)
    starts = torch.tensor([0, 5, 6, 6])
    rows = torch.cat([q[b, :, 5 - n :].transpose(0, 1) for b, n in enumerate(counts)])
    with use_backend(backend):
        out, lse = decode_attention(rows, keys, values, lengths, query_starts=starts, return_lse=True)
        wanted, wanted_lse = decode_attention(q, keys, values, lengths, return_lse=True)
    assert out.shape == (6, 4, 8) and lse.shape == (6, 4)
    for b, n in enumerate(counts):
        mine = slice(int(starts[b]), int(starts[b + 1]))
        for found, whole in ((out[mine], wanted[b, :, 5 - n :]), (lse[mine], wanted_lse[b, :, 5 - n :])):
            if backend == "native":
                assert torch.equal(found, whole.transpose(0, 1))
            torch.testing.assert_close(found, whole.transpose(0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", HERE)
def test_later_keys_and_those_before_the_window_play_no_part_even_if_not_finite(backend):
    q, keys, values = make(2, 4, 2, 40, 90, 16)
    lengths = torch.tensor([90, 61])
    with use_backend(backend):
        clean = decode_attention(q, keys, values, lengths, window=30)
        for cache in (keys, values):
            for poison in (NAN, float("inf")):
                broken = cache.clone()
                broken[0, :, 70] = poison  # seen from position 70 of 90 on: new position 20
                broken[1, :, 61:] = poison
                broken[1, :, 61 - 40 + 10 + 1 - 31] = poison  # out of sight from new position 10 on
                pair = (broken, values) if cache is keys else (keys, broken)
                out = decode_attention(q, *pair, lengths, window=30)
                assert not torch.isfinite(out[0, :, 20:]).all(-1).any()
                for found, wanted in ((out[0, :, :20], clean[0, :, :20]), (out[1, :, 10:], clean[1, :, 10:])):
                    if backend == "reference":  # whose sums are PyTorch's
                        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
                    else:
                        assert torch.equal(found, wanted)
