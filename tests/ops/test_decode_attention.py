"""The op decode_attention: its values against float64, its bits, what it does not read, what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.ops import decode_attention
from fastgen.ops._registry import OPS
from fastgen.reference import decode_attention as reference
from fastgen.testing import fenced, with_threads
from fastgen.tolerances import FLOAT64, allowed

ISAS = native.usable_isas()
HERE = [name for name in OPS["decode_attention"].implementations if usable("decode_attention", name, "cpu")]
NAN = float("nan")


def make(batch, heads, key_heads, new, length, size, dtype=torch.float32, seed=0):
    """q, keys, values."""
    g = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, new, size), (batch, key_heads, length, size), (batch, key_heads, length, size)
    q, keys, values = (torch.randn(shape, generator=g) for shape in shapes)
    return q, keys.to(dtype), values.to(dtype)


def exact(q, keys, values, lengths, *, scale=None, window=None, softcap=None):
    """out and lse in float64, one position at a time, from the definition alone."""
    batch, heads, new, size = q.shape
    out, lse = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:3], -torch.inf).double()
    for b in range(batch):
        for h in range(heads):
            for i in range(new):
                end = max(0, int(lengths[b]) - new + i + 1)
                seen = slice(0 if window is None else max(0, end - window), end)
                if end == 0:
                    continue
                head = h // (heads // keys.shape[1])
                score = keys[b, head, seen].double() @ q[b, h, i].double() * (scale or size**-0.5)
                score = score if softcap is None else softcap * torch.tanh(score / softcap)
                lse[b, h, i] = torch.logsumexp(score, 0)
                out[b, h, i] = torch.softmax(score, 0) @ values[b, head, seen].double()
    return out, lse


def on(isa, *arguments, **options):
    with native.instruction_set(isa), use_backend("native"):
        return decode_attention(*arguments, return_lse=True, **options)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


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
OPTIONS = [
    {},
    {"window": 50},
    {"softcap": 1.5},
    {"scale": 0.3, "window": 1},
    {"window": 1000, "softcap": 30.0},
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


def test_native_writes_all_and_nothing_outside():
    q, keys, values = make(2, 6, 2, 3, 70, 20)
    for isa in ISAS:
        with fenced((6, 6, 20), torch.float32) as out, fenced((6, 6), torch.float32) as lse:
            with native.instruction_set(isa):
                torch.ops.fastgen_native.decode_attention(
                    out, lse, q.transpose(1, 2).reshape(6, 6, 20), keys, values, torch.tensor([70, 2]),
                    torch.tensor([0, 3, 6]), None, 0.2, 0, 0.0,
                )  # fmt: skip
            assert torch.isfinite(out).all() and not lse.isnan().any()


AT_THE_EDGE = """
import ctypes, mmap
import torch
from fastgen import native
from fastgen.ops import decode_attention

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_edge(x):
    # The same numbers, the last of them right before memory that may not be read.
    room = -(-x.nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, room + PAGE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(start + room), ctypes.c_size_t(PAGE), 0) == 0
    found = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=room - x.nbytes).view(x.shape)
    return found.copy_(x)

for isa in native.usable_isas():
    for size in (7, 16, 64):
        for length in (1, 63, 64, 65, 130):
            for heads in (2, 8):
                for dtype in (torch.float32, torch.bfloat16):
                    q = torch.ones(1, heads, 1, size)
                    cache = torch.ones(1, 1, length, size, dtype=dtype)
                    with native.instruction_set(isa):
                        edge = at_the_edge(cache)
                        out = decode_attention(at_the_edge(q), edge, edge, torch.tensor([length]))
                    assert torch.allclose(out, torch.ones(()))
print("read nothing outside")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects memory as Linux does")
def test_native_reads_nothing_behind_queries_and_cache():
    done = subprocess.run([sys.executable, "-c", AT_THE_EDGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "read nothing outside" in done.stdout, (done.returncode, done.stderr)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("length", [1, 63, 65, 127, 130])
def test_what_a_dense_cache_has_room_for_plays_no_part(isa, length):
    q, keys, values = make(1, 2, 1, 1, length, 7)
    lengths = torch.tensor([length])
    longer = torch.full((2, 1, 1, 200, 7), NAN)
    longer[0, :, :, :length], longer[1, :, :, :length] = keys, values
    assert equal(on(isa, q, *longer, lengths), on(isa, q, keys, values, lengths))


@pytest.mark.parametrize("backend", HERE)
def test_strides_do_not_matter(backend):
    q, keys, values = make(2, 4, 2, 3, 70, 16)
    lengths = torch.tensor([70, 33])
    odd = [
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: F.pad(x, (3, 5, 2, 1))[:, :, 2:-1, 3:-5],
    ]
    with use_backend(backend):
        wanted = decode_attention(q, keys, values, lengths)
        for arrange in odd:
            assert torch.equal(decode_attention(*map(arrange, (q, keys, values)), lengths), wanted)
        shared = decode_attention(q, keys[:1].expand_as(keys), values[:, :1].expand_as(values), lengths)
        copied = decode_attention(q, keys[:1].repeat(2, 1, 1, 1), values[:, :1].repeat(1, 2, 1, 1), lengths)
        assert torch.equal(shared, copied)
        spread = torch.stack([lengths, lengths], -1)[:, 0]
        assert torch.equal(decode_attention(q, keys, values, spread), wanted)


def test_the_result_is_ready_to_become_rows_of_heads():
    q, keys, values = make(2, 4, 4, 3, 3, 16)
    out = decode_attention(q, keys, values, torch.tensor([3, 3]))
    assert out.shape == q.shape and out.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("backend", HERE)
def test_sizes_of_zero(backend):
    with use_backend(backend):
        q, keys, values = make(2, 4, 2, 3, 70, 16)
        lengths = torch.tensor([70, 0])
        assert decode_attention(q[:0], keys[:0], values[:0], lengths[:0]).shape == (0, 4, 3, 16)
        assert decode_attention(q[:, :, :0], keys, values, lengths).shape == (2, 4, 0, 16)
        assert decode_attention(q[:, :0], keys, values, lengths).shape == (2, 0, 3, 16)
        none = torch.tensor([0, 0])
        out, lse = decode_attention(q, keys[:, :, :0], values[:, :, :0], none, return_lse=True)
        assert torch.equal(out, torch.zeros_like(q)) and (lse == -torch.inf).all()
        rows, starts = q[0].transpose(0, 1)[:0], torch.zeros(3, dtype=torch.int64)
        assert decode_attention(rows, keys, values, lengths, query_starts=starts).shape == (0, 4, 16)


@pytest.mark.parametrize("backend", HERE)
def test_scores_too_large_for_the_exponential(backend):
    q, keys, values = make(1, 2, 1, 1, 600, 32)
    with use_backend(backend):
        out, lse = decode_attention(q * 3e4, keys, values, torch.tensor([600]), return_lse=True)
    wanted, wanted_lse = exact(q * 3e4, keys, values, [600])
    torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse.double(), wanted_lse, rtol=1e-5, atol=0)


def test_more_than_two_to_the_31_elements_in_the_cache():
    """Rows of one page are far apart in a memory that is never touched in between."""
    keys = torch.empty((2, 2, 2**23, 128), dtype=torch.bfloat16)  # 2^32 elements, 8 GiB of address space
    q, few, more = make(2, 2, 2, 1, 3, 128, torch.bfloat16)
    keys[:, :, :3] = few
    far = torch.tensor([3, 3])
    assert torch.equal(decode_attention(q, keys, keys, far), decode_attention(q, few, few, far))
    del more


BAD = [
    ({"q": [1.0]}, TypeError, "q is list, wanted a dense float32 or bfloat16 tensor"),
    ({"q": torch.ones(2, 4, 1, 8).double()}, TypeError, "q is torch.float64, wanted"),
    ({"q": torch.ones(3, 4, 1, 8)}, ValueError, "q has shape (3, 4, 1, 8), wanted (2, Hq, L, D)"),
    ({"q": torch.ones(2, 4, 8)}, ValueError, "q has shape (2, 4, 8), wanted (2, Hq, L, D)"),
    ({"q": torch.ones(2, 4, 1, 0)}, ValueError, "wanted heads of at least one number"),
    ({"q": torch.ones(2, 3, 1, 8)}, ValueError, "keys has 2 heads, wanted a number that divides the 3 of q"),
    ({"keys": torch.ones(2, 2, 9, 7)}, ValueError, "keys has shape (2, 2, 9, 7), wanted (2, Hkv, S, 8)"),
    ({"keys": torch.ones(1, 2, 9, 8)}, ValueError, "keys has shape (1, 2, 9, 8), wanted (2, Hkv, S, 8)"),
    ({"keys": torch.ones(2, 2, 9, 8).half()}, TypeError, "keys is torch.float16"),
    ({"values": torch.ones(2, 2, 8, 8)}, ValueError, "values is torch.float32 of shape (2, 2, 8, 8), wanted"),
    ({"values": torch.ones(2, 2, 9, 8).bfloat16()}, ValueError, "values is torch.bfloat16 of shape"),
    ({"lengths": torch.tensor([9, 10])}, ValueError, "lengths holds 10, wanted 0 .. 9"),
    ({"lengths": torch.tensor([-1, 9])}, ValueError, "lengths holds -1, wanted 0 .. 9"),
    ({"lengths": torch.tensor([9, 9]).int()}, TypeError, "lengths is torch.int32, wanted a dense int64"),
    ({"lengths": torch.tensor([[9, 9]])}, ValueError, "lengths has shape (1, 2), wanted (B,)"),
    ({"lengths": torch.ones(2, dtype=torch.int64, device="meta")}, ValueError, "lengths is on meta"),
    ({"scale": "1"}, TypeError, "scale is str, wanted a number"),
    ({"scale": NAN}, ValueError, "scale is nan, wanted a finite number"),
    ({"window": 0}, ValueError, "window is 0, wanted an integer >= 1 or None"),
    ({"window": 2.5}, ValueError, "window is 2.5, wanted an integer >= 1 or None"),
    ({"softcap": 0}, ValueError, "softcap is 0.0, wanted a number > 0 or None"),
    ({"query_starts": torch.tensor([0, 1, 2])}, ValueError, "wanted (T, Hq, D) with query_starts"),
    (
        {"q": torch.ones(2, 4, 8), "query_starts": torch.tensor([0, 2])},
        ValueError,
        "query_starts has shape (2,), wanted (3,) for 2 lengths",
    ),
    (
        {"q": torch.ones(2, 4, 8), "query_starts": torch.tensor([0, 3, 2])},
        ValueError,
        "query_starts must rise from 0 to the 2 rows of q",
    ),
    (
        {"block_table": torch.zeros(2, 1).int()},
        ValueError,
        "keys has pages of 9 keys, wanted a multiple of 64",
    ),
    ({"block_table": torch.zeros(2, 1)}, TypeError, "block_table is torch.float32, wanted a dense int32"),
    ({"block_table": torch.zeros(1, 1).int()}, ValueError, "block_table has shape (1, 1), wanted (2, n)"),
    (
        {
            "keys": torch.ones(3, 2, 64, 8),
            "values": torch.ones(3, 2, 64, 8),
            "block_table": torch.tensor([[0], [3]]).int(),
        },
        ValueError,
        "block_table holds 3 for a page in use, wanted 0 .. 2",
    ),
]


@pytest.mark.parametrize("changes, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_refused_in_one_sentence(changes, error, message):
    cache = torch.ones(2, 2, 9, 8)
    arguments = {"q": torch.ones(2, 4, 1, 8), "keys": cache, "values": cache, "lengths": torch.tensor([9, 9])}
    with pytest.raises(error) as caught:
        decode_attention(**arguments | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: torch.zeros(2, 4, 7)}, "bad out"),
        ({1: torch.zeros(2, 5)}, "bad lse"),
        ({2: torch.zeros(2, 4, 8).double()}, "bad q"),
        ({2: torch.zeros(2, 3, 8), 0: torch.zeros(2, 3, 8)}, "bad keys"),
        ({3: torch.zeros(2, 2, 9, 8).half()}, "bad keys"),
        ({4: torch.zeros(2, 2, 8, 8)}, "bad values"),
        ({4: torch.zeros(2, 2, 8, 9).mT}, "bad values"),
        ({5: torch.tensor([9, 10])}, "bad lengths"),
        ({5: torch.tensor([-1, 9])}, "bad lengths"),
        ({6: torch.tensor([0, 3, 2])}, "bad query_starts"),
        ({6: torch.tensor([0, 1, 3])}, "bad query_starts"),
        ({7: torch.zeros(2, 1).int()}, "bad block_table"),
        (
            {3: torch.zeros(2, 2, 64, 8), 4: torch.zeros(2, 2, 64, 8), 7: torch.tensor([[0], [2]]).int()},
            "bad",
        ),
    ],
)
def test_the_binding_guards_the_memory(change, message):
    cache = torch.zeros(2, 2, 9, 8)
    arguments = [torch.zeros(2, 4, 8), torch.zeros(2, 4), torch.zeros(2, 4, 8), cache, cache]
    arguments += [torch.tensor([9, 9]), torch.tensor([0, 1, 2]), None, 1.0, 0, 0.0]
    torch.ops.fastgen_native.decode_attention(*arguments)
    for index, value in change.items():
        arguments[index] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastgen_native.decode_attention(*arguments)


@pytest.mark.parametrize("splits", [1, 3])
def test_triton_gives_a_row_the_same_bits_in_any_company(splits):
    pytest.importorskip("triton")
    length = 512 * splits - 100
    q, keys, values = make(2, 6, 2, 7, length, 8)
    with use_backend("triton"):
        whole = decode_attention(q, keys, values, torch.tensor([length, length]))
        for i in (0, 6):
            one = decode_attention(q[1:, :, i : i + 1], keys[1:], values[1:], torch.tensor([length - 6 + i]))
            assert np.array_equal(one.numpy(), whole[1:, :, i : i + 1].numpy())
