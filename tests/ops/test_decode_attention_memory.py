"""The op decode_attention: the memory it touches, the shapes it takes, and what it refuses."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from decode_attention_inputs import HERE, ISAS, NAN, equal, exact, make, on
from torch.nn import functional as F

from fastgen import native, use_backend
from fastgen.ops import decode_attention
from fastgen.testing import fenced


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
    ({"window": 0}, ValueError, "window is 0, wanted at least 1"),
    ({"window": 2.5}, TypeError, "window is 2.5, wanted an int of at least 1"),
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
