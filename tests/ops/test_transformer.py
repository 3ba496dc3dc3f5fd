"""The op transformer: its logits, the bits of a row, its cache, and what it refuses."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from fastgen import native, use_backend
from fastgen.backends import usable
from fastgen.bench.peers.torch_transformer import Sizes, random_weights
from fastgen.ops import Norm, PackedWeight, Projection, TransformerLayer, TransformerWeights, transformer
from fastgen.ops._registry import OPS
from fastgen.ops.transformer import PAGE
from fastgen.testing import with_threads

HERE = [name for name in OPS["transformer"].implementations if usable("transformer", name, "cpu")]
LLAMA = Sizes(2, 64, 4, 2, 96, 50, 400)
GPT2 = Sizes(2, 48, 3, 3, 70, 41, 400, "gpt2")
FORMATS = ("float32", "bfloat16", "int8", "q4_0", "q4_1", "q8_0")

# Whole networks take Triton's interpreter many seconds.
IN_TIME = [pytest.param(name, marks=pytest.mark.slow) if name == "triton" else name for name in HERE]
needs_native = pytest.mark.skipif("native" not in HERE, reason="the C++ extension is not here")


class Cache:
    """Keys and values of sequences on pages in a random order, NaN wherever nothing was written."""

    def __init__(self, weights, sequences, pages=7, seed=0):
        shape = (len(weights.layers), sequences * pages + 2, weights.kv_heads, PAGE, weights.head_size)
        self.keys, self.values = torch.full(shape, torch.nan), torch.full(shape, torch.nan)
        order = torch.randperm(shape[1], generator=torch.Generator().manual_seed(seed))
        self.table = order[: sequences * pages].view(sequences, pages).int()


def run(weights, cache, sequences, lengths, wanted=None, rows=None):
    """New tokens (lists) of the sequences in `rows` of the cache; logits of every token, or of `wanted`."""
    starts = torch.tensor([0, *torch.tensor([len(t) for t in sequences]).cumsum(0).tolist()])
    tokens = torch.tensor([t for new in sequences for t in new], dtype=torch.int64)
    table = cache.table if rows is None else cache.table[rows].contiguous()
    wanted = torch.arange(len(tokens)) if wanted is None else wanted
    return transformer(
        tokens, starts, torch.tensor(lengths), table, cache.keys, cache.values, wanted, weights
    )


def texts(weights, lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(weights.vocabulary, (n,), generator=generator).tolist() for n in lengths]


def alone(weights, text):
    return run(weights, Cache(weights, 1), [text], [len(text)])


def of_llama(model):
    """The weights of a transformers Llama."""
    config, inner = model.config, model.model
    position = torch.arange(config.max_position_embeddings)[None]
    cos, sin = inner.rotary_emb(torch.zeros(1), position)
    half = cos.shape[-1] // 2

    def packed(linear):
        return Projection(PackedWeight.pack(linear.weight.detach(), "float32"), linear.bias)

    layers = tuple(
        TransformerLayer(
            Norm(layer.input_layernorm.weight.detach()),
            *(packed(getattr(layer.self_attn, f"{name}_proj")) for name in "qkvo"),
            Norm(layer.post_attention_layernorm.weight.detach()),
            *(packed(getattr(layer.mlp, f"{name}_proj")) for name in ("gate", "up", "down")),
        )
        for layer in inner.layers
    )
    return TransformerWeights(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        norm="rms",
        eps=config.rms_norm_eps,
        activation="silu",
        rope="half",
        embedding=PackedWeight.pack(inner.embed_tokens.weight.detach(), "float32"),
        positions=None,
        cos=cos[0, :, :half].contiguous(),
        sin=sin[0, :, :half].contiguous(),
        final_norm=Norm(inner.norm.weight.detach()),
        head=packed(model.lm_head),
        layers=layers,
    )


@pytest.mark.parametrize("backend", IN_TIME)
def test_logits_are_those_of_transformers_llama(backend):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=60,
            hidden_size=96,
            intermediate_size=130,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
    ).eval()
    weights = of_llama(model)
    (text,) = texts(weights, [150])
    with torch.no_grad():
        wanted = model(torch.tensor([text])).logits[0]
    with use_backend(backend):
        assert (alone(weights, text) - wanted).abs().max() < 1e-4 * wanted.abs().max()


# All formats in C++; two through the interpreter, which is slow.
AGREEING = [("native", sizes, format) for sizes in (LLAMA, GPT2) for format in FORMATS] * ("native" in HERE)
AGREEING += [("triton", LLAMA, "q4_1"), ("triton", GPT2, "float32")] * ("triton" in HERE)


@pytest.mark.parametrize(
    "fast, sizes, format", AGREEING, ids=lambda x: x.layout if isinstance(x, Sizes) else x
)
def test_every_backend_agrees_with_the_reference(fast, sizes, format):
    if sizes is GPT2 and format.startswith("q"):
        sizes = dataclasses.replace(GPT2, hidden=96, between=64)  # blocks of 32
    weights = random_weights(sizes, format)
    news, lengths = texts(weights, [70, 1, 0, 3]), [70, 1, 0, 3]
    caches = {}
    results = {}
    for backend in ("reference", fast):
        with use_backend(backend):
            cache = caches[backend] = Cache(weights, 4)
            first = run(weights, cache, news, lengths)
            second = run(weights, cache, texts(weights, [1, 5, 2, 0], seed=2), [71, 6, 2, 3])
            results[backend] = torch.cat([first, second])
    # Two float32 networks add in different orders; rounding x to 16 bits adds little to that.
    scale = results["reference"].abs().max()
    assert (results[fast] - results["reference"]).abs().max() < 1e-4 * scale
    for name in ("keys", "values"):
        ours, theirs = getattr(caches[fast], name), getattr(caches["reference"], name)
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert (ours - theirs).nan_to_num().abs().max() < 1e-3


@needs_native
@pytest.mark.parametrize(
    "changes",
    [
        {"rope": "interleaved"},
        {"window": 9},
        {"softcap": 3.0},
        {"scale": 0.5},
        {"activation": "gelu"},
        {"norm": "layer"},
    ],
    ids=str,
)
def test_native_agrees_with_the_reference_in_every_layout(changes):
    weights = dataclasses.replace(random_weights(LLAMA), **changes)
    (text,) = texts(weights, [90])
    with use_backend("reference"):
        wanted = alone(weights, text)
    assert (alone(weights, text) - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert (alone(random_weights(LLAMA), text) - wanted).abs().max() > 1e-3 * wanted.abs().max()


@needs_native
@pytest.mark.parametrize(
    "sizes", [LLAMA, dataclasses.replace(GPT2, hidden=96, between=64)], ids=["llama", "gpt2"]
)
@pytest.mark.parametrize("format", ["float32", "bfloat16", "int8", "q4_1"])
class TestBits:
    """The same logits, bit for bit."""

    def test_alone_and_in_a_batch_of_17(self, sizes, format):
        weights = random_weights(sizes, format)
        lengths = [1, 200, 3, 64, 65, 2, 128, 5, 1, 17, 90, 31, 8, 1, 66, 127, 4]
        news = texts(weights, lengths)
        together = run(weights, Cache(weights, 17), news, lengths).split(lengths)
        for text, logits in zip(news, together, strict=True):
            assert torch.equal(alone(weights, text), logits)

    @pytest.mark.parametrize("cuts", [[1] * 5 + [150], [64, 64, 27], [3, 149, 3], [155]], ids=str)
    def test_in_chunks(self, sizes, format, cuts):
        weights = random_weights(sizes, format)
        (text,) = texts(weights, [155])
        cache, done, came = Cache(weights, 1, seed=3), 0, []
        for cut in cuts:
            came.append(run(weights, cache, [text[done : done + cut]], [done + cut]))
            done += cut
        assert torch.equal(torch.cat(came), alone(weights, text))

    def test_with_any_number_of_threads(self, sizes, format):
        weights = random_weights(sizes, format)
        (text,) = texts(weights, [155])
        with with_threads(1):
            wanted = alone(weights, text)
        for threads in (2, 3, 17):  # more than cores: those who wait for others sleep
            with with_threads(threads):
                assert torch.equal(alone(weights, text), wanted)

    def test_wanted_rows_alone(self, sizes, format):
        weights = random_weights(sizes, format)
        (text,) = texts(weights, [70])
        wanted = torch.tensor([69, 3, 3])
        came = run(weights, Cache(weights, 1), [text], [70], wanted=wanted)
        assert torch.equal(came, alone(weights, text)[wanted])


@needs_native
@pytest.mark.parametrize("format", ["float32", "q4_1"])
def test_avx2_and_avx512_give_the_same_bits(format):
    if not {"avx2", "avx512"} <= set(native.usable_isas()):
        pytest.skip("this CPU has no AVX-512")
    weights = random_weights(LLAMA, format)
    (text,) = texts(weights, [140])
    results = []
    for isa in ("avx2", "avx512"):
        with native.instruction_set(isa):
            results.append(alone(weights, text))
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", IN_TIME)
def test_sequences_may_share_the_pages_of_a_common_beginning(backend):
    weights = random_weights(LLAMA)
    begin, *ends = texts(weights, [PAGE, 3, 9])
    cache = Cache(weights, 2)
    with use_backend(backend):
        run(weights, cache, [begin], [PAGE], rows=[0])
        cache.table[1, 0] = cache.table[0, 0]
        news = run(weights, cache, ends, [PAGE + 3, PAGE + 9])
        for end, logits in zip(ends, news.split([3, 9]), strict=True):
            expected = alone(weights, begin + end)[PAGE:]
            assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


def arguments(weights):
    cache = Cache(weights, 2)
    return {
        "tokens": torch.tensor([1, 2, 3]),
        "query_starts": torch.tensor([0, 1, 3]),
        "lengths": torch.tensor([1, 2]),
        "block_table": cache.table,
        "keys": cache.keys,
        "values": cache.values,
        "wanted": torch.tensor([0, 2]),
        "weights": weights,
    }


BAD = [
    ("tokens", torch.tensor([1, 50, 3]), ValueError, "tokens holds 50, wanted 0 to 49"),
    ("tokens", torch.tensor([1, -1, 3]), ValueError, "tokens holds -1"),
    ("tokens", torch.tensor([1.0]), TypeError, "tokens is torch.float32, wanted an int64 tensor"),
    ("tokens", torch.tensor([[1, 2, 3]]), ValueError, "tokens has shape"),
    ("query_starts", torch.tensor([0, 2, 1]), ValueError, "query_starts is .*, wanted ascending"),
    ("query_starts", torch.tensor([0, 1, 4]), ValueError, "wanted ascending numbers from 0 to 3"),
    ("query_starts", torch.tensor([0, 3]), ValueError, "query_starts has shape"),
    ("lengths", torch.tensor([0, 2]), ValueError, r"lengths\[0\] is 0, wanted 1"),
    ("lengths", torch.tensor([1, 401]), ValueError, r"lengths\[1\] is 401, wanted 2 .* to 400"),
    ("block_table", torch.tensor([[0], [99]]).int(), ValueError, "block_table holds 99, wanted 0 to 15"),
    ("block_table", torch.tensor([[0], [-1]]).int(), ValueError, "block_table holds -1"),
    ("block_table", torch.zeros(2, 0).int(), ValueError, "block_table has 0 columns, wanted 1"),
    ("block_table", torch.zeros(3, 1).int(), ValueError, "block_table has shape"),
    ("keys", torch.zeros(2, 16, 2, 32, 16), ValueError, "keys has shape"),
    ("values", torch.zeros(2, 15, 2, 64, 16), ValueError, "values has shape"),
    ("keys", torch.zeros(2, 16, 2, 64, 16).double(), TypeError, "keys is torch.float64"),
    ("wanted", torch.tensor([3]), ValueError, "wanted holds 3, wanted 0 to 2"),
    ("weights", None, TypeError, "weights is NoneType, wanted a TransformerWeights"),
]


@pytest.mark.parametrize("name, value, error, message", BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_bad_input_is_named(name, value, error, message):
    with pytest.raises(error, match=message):
        transformer(**(arguments(random_weights(LLAMA)) | {name: value}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"heads": 3}, "heads is 3, wanted a multiple of kv_heads = 2"),
        ({"norm": "batch"}, "norm is 'batch', wanted one of rms, layer"),
        ({"rope": "half", "cos": None}, "wanted cos, sin and an even head_size"),
        ({"window": 0}, "window is 0"),
        ({"kv_heads": 4}, r"layers\[0\].k has shape \(32, 64\), wanted \(64, 64\)"),
        ({"final_norm": Norm(torch.ones(63))}, r"final_norm's weight has shape \(63,\), wanted \(64,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        transformer(**arguments(dataclasses.replace(random_weights(LLAMA), **changes)))


def test_a_length_near_the_largest_integer_is_refused_where_no_table_bounds_it():
    weights = dataclasses.replace(random_weights(LLAMA), rope="none", cos=None, sin=None)
    for length in (2**63 - 1, 2**63 - 64, 7 * PAGE + 1):
        given = arguments(weights) | {"lengths": torch.tensor([1, length])}
        with pytest.raises(ValueError, match="block_table has 7 columns, wanted"):
            transformer(**given)


@needs_native
@pytest.mark.parametrize("format", ["float32", "q4_0"])
def test_the_kernel_refuses_sizes_whose_products_overflow(format):
    weights = random_weights(LLAMA, format)
    given = arguments(weights)
    given.pop("weights")
    flat = [*weights.flat()]
    numbers = {"norm": 0, "activation": 0, "rope": 1}
    for place in range(len(flat[2])):
        for factor in (2**24, 2**32, 2**58):
            sizes = list(flat[2])
            sizes[place] = sizes[place] * factor % 2**63
            with pytest.raises(RuntimeError, match="fastgen: bad"):
                torch.ops.fastgen_native.transformer(
                    torch.empty(2, 50), *given.values(), flat[0], flat[1], sizes, *numbers.values(), *flat[6:]
                )


@needs_native
def test_the_kernel_refuses_blocks_that_end_inside_a_row():
    """Of 97 inputs a row of blocks holds 96; the last would be read from behind the weight."""
    weights = random_weights(Sizes(2, 64, 4, 2, 97, 50, 400))
    given = arguments(weights)
    given.pop("weights")
    tensors, slots, sizes, *_, window, numbers = weights.flat()
    tensors, slots = [*tensors[:-1], torch.zeros(64 * 54, dtype=torch.uint8)], slots[:-3] + "0--"
    with pytest.raises(RuntimeError, match="fastgen: bad weight"):
        torch.ops.fastgen_native.transformer(
            torch.empty(2, 50), *given.values(), tensors, slots, sizes, 0, 0, 1, window, numbers
        )


def test_no_tokens_give_no_logits():
    weights = random_weights(LLAMA)
    none = torch.empty(0, dtype=torch.int64)
    given = arguments(weights) | {"tokens": none, "query_starts": torch.zeros(3, dtype=torch.int64)}
    given |= {"wanted": none, "lengths": torch.tensor([0, 1])}
    assert transformer(**given).shape == (0, 50)


@needs_native
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_too_little_memory_is_an_error_after_which_all_goes_on():
    program = """
import resource, torch
from fastgen.bench.peers.torch_transformer import Sizes, random_weights
from fastgen.ops import transformer

torch.set_num_threads(2)
weights = random_weights(Sizes(1, 64, 4, 2, 96, 50, 4), "q4_1")
keys, values = torch.zeros(1, 1, 2, 64, 16), torch.zeros(1, 1, 2, 64, 16)

def arguments(rows):  # sequences of one token, all on the same page
    tokens, lengths = torch.zeros(rows, dtype=torch.int64), torch.ones(rows, dtype=torch.int64)
    table = torch.zeros(rows, 1, dtype=torch.int32)
    return tokens, torch.arange(rows + 1), lengths, table, keys, values, torch.tensor([0]), weights

few, many = arguments(2), arguments(400_000)
wanted = transformer(*few)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
try:
    transformer(*many)
except MemoryError:
    assert torch.equal(transformer(*few), wanted)
    print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "went on\n", done.stderr
