"""MultiheadAttention against that of PyTorch: values, gradients, masks, state dictionaries, bits."""

import pytest
import torch

from fastgen import use_backend
from fastgen.backends import usable
from fastgen.nn import MultiheadAttention

NATIVE = usable("attention", "native", "cpu")


def pair(**options):
    """Both layers with the same parameters."""
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(24, 4, **options, dtype=torch.float64)
    ours = MultiheadAttention(24, 4, **options, dtype=torch.float64)
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(*shapes):
    g = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


def masks(name):
    g = torch.Generator().manual_seed(2)
    attn = torch.rand(7, 9, generator=g) > 0.7
    attn[:, 0] = False
    padding = torch.zeros(3, 9, dtype=torch.bool)
    padding[1, 6:] = True
    return {
        "none": {},
        "attn": {"attn_mask": attn},
        "added": {"attn_mask": torch.randn(12, 7, 9, generator=g).double()},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": attn, "key_padding_mask": padding},
        "both added": {
            "attn_mask": torch.randn(7, 9, generator=g).double(),
            "key_padding_mask": torch.zeros(3, 9).double().masked_fill(padding, -torch.inf),
        },
        "causal": {"attn_mask": torch.ones(7, 9, dtype=torch.bool).triu(1), "is_causal": True},
    }[name]


@pytest.mark.parametrize("mask", ["none", "attn", "added", "padding", "both", "both added", "causal"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_first": True, "bias": False},
        {"kdim": 10, "vdim": 14},
        {"add_bias_kv": True, "add_zero_attn": True},
    ],
    ids=str,
)
def test_it_gives_what_pytorch_gives(mask, need_weights, options):
    ours, theirs = pair(**options)
    sizes = (24, options.get("kdim", 24), options.get("vdim", 24))
    given = inputs(*((n, 3, size) for n, size in zip((7, 9, 9), sizes, strict=True)))
    if options.get("batch_first"):
        given = [x.transpose(0, 1).contiguous() for x in given]
    layer_options = options
    options = masks(mask) | {"need_weights": need_weights, "average_attn_weights": mask != "both"}
    found = []
    for layer in (ours, theirs):
        if layer is theirs and "add_zero_attn" in layer_options:  # its hint hides the keys that are added
            options["is_causal"] = False
        leaves = [x.clone().requires_grad_() for x in given]
        out, weights = layer(*leaves, **options)
        loss = out.square().sum() + (0 if weights is None else weights.square().sum())
        grads = torch.autograd.grad(loss, [*leaves, *layer.parameters()])
        found.append([out.detach(), *([] if weights is None else [weights.detach()]), *grads])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("need_weights", [False, True])
def test_one_sequence_without_a_batch_and_one_tensor_for_all_three(need_weights):
    ours, theirs = pair()
    (x,) = inputs((7, 24))
    padding = torch.arange(7) > 4
    for a, b in zip(
        ours(x, x, x, key_padding_mask=padding, need_weights=need_weights),
        theirs(x, x, x, key_padding_mask=padding, need_weights=need_weights),
        strict=True,
    ):
        assert (a is None and b is None) or torch.allclose(a, b)


def test_state_dictionaries_go_both_ways():
    ours, theirs = pair(kdim=5, add_bias_kv=True)
    theirs.load_state_dict(ours.state_dict())
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert isinstance(ours, torch.nn.MultiheadAttention)


@pytest.mark.skipif(not NATIVE, reason="the C++ extension is not here")
def test_a_row_has_the_same_bits_in_any_batch_and_with_padded_keys():
    layer, _ = pair(batch_first=True)
    (x,) = inputs((5, 9, 24))
    with use_backend("native"), torch.no_grad():
        whole, _ = layer(x, x, x, need_weights=False)
        alone, _ = layer(x[3:4], x[3:4], x[3:4], need_weights=False)
        longer = torch.cat([x, x], 1)
        padding = (torch.arange(18) >= 9).expand(5, 18)
        padded, _ = layer(longer, longer, longer, key_padding_mask=padding, need_weights=False)
    assert torch.equal(alone[0], whole[3]) and torch.equal(padded[:, :9], whole)


def test_a_query_that_sees_nothing_gets_the_last_bias():
    layer, _ = pair(batch_first=True)
    (x,) = inputs((2, 4, 24))
    padding = torch.tensor([[False] * 4, [True] * 4])
    out, weights = layer(x, x, x, key_padding_mask=padding)
    assert torch.equal(out[1], layer.out_proj.bias.expand(4, 24)) and (weights[1] == 0).all()


def test_dropout_is_only_of_training():
    ours, _ = pair(dropout=0.5)
    (x,) = inputs((7, 3, 24))
    first, second = (ours(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second) and ours(x, x, x)[1].shape == (3, 7, 7)
    ours.eval()
    first, second = (ours(x, x, x, need_weights=False)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_it_takes_its_place_in_a_layer_of_pytorch():
    torch.manual_seed(3)
    options = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}
    theirs = torch.nn.TransformerDecoderLayer(24, 4, 32, **options)
    ours = torch.nn.TransformerDecoderLayer(24, 4, 32, **options)
    for name in ("self_attn", "multihead_attn"):
        setattr(ours, name, MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64))
    ours.load_state_dict(theirs.state_dict())
    x, memory = inputs((2, 7, 24), (2, 9, 24))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64)
    given = (x, memory, mask)
    torch.testing.assert_close(ours(*given, tgt_is_causal=True), theirs(*given, tgt_is_causal=True))


@pytest.mark.parametrize(
    "shapes, options, message",
    [
        (
            ((7, 3, 20), (7, 3, 24), (7, 3, 24)),
            {},
            r"query has shape \(7, 3, 20\), wanted 2 or 3 dimensions",
        ),
        (((7, 3, 24), (7, 24), (7, 24)), {}, r"key has shape \(7, 24\), wanted 3 dimensions, the last of 24"),
        (
            ((7, 3, 24), (7, 3, 24), (6, 3, 24)),
            {},
            r"value has shape \(6, 3, 24\), wanted the positions",
        ),
        (
            ((7, 3, 24),) * 3,
            {"is_causal": True},
            "attn_mask is None with is_causal=True, wanted the causal",
        ),
        (((7, 3, 24),) * 3, {"attn_mask": torch.ones(7, 6).bool()}, "a mask is of 6 keys, wanted 7"),
        (
            ((7, 3, 24),) * 3,
            {"key_padding_mask": torch.ones(7, 3).bool()},
            r"key_padding_mask has shape \(7, 3\), wanted \(3, 7\)",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(shapes, options, message):
    layer, _ = pair()
    with pytest.raises(ValueError, match=message):
        layer(*inputs(*shapes), **options)


@pytest.mark.parametrize("name, shape", [("attn_mask", (7, 7)), ("key_padding_mask", (3, 7))])
def test_a_mask_of_integers_is_refused_and_not_added_to_the_scores(name, shape):
    layer, _ = pair()
    with pytest.raises(TypeError, match=f"{name} is torch.int64, wanted bool, True where a key is left out"):
        layer(*inputs(*((7, 3, 24),) * 3), **{name: torch.ones(shape, dtype=torch.int64)})
