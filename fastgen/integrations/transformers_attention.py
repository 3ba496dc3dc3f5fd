"""`attn_implementation="fastgen"`: the attention of transformers' models by `fastgen.ops.attention`.

from fastgen.integrations import transformers_attention

transformers_attention.register()
model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="fastgen")
"""

from typing import Any

import torch
from torch import Tensor

from fastgen.ops import attention, decode_attention

NAME = "fastgen"


def register() -> None:
    """Make "fastgen" known to transformers as an implementation of attention, with its masks; twice is once.

    Raises:
        ImportError: transformers is not installed, or older than its interface of masks.
    """
    from transformers import AttentionInterface  # noqa: PLC0415  optional
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask  # noqa: PLC0415

    AttentionInterface.register(NAME, attend)
    # A bool mask, True where a key is seen, or None where is_causal says it all.
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    position_bias: Tensor | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (B, Hq, L, D), key and value (B, Hkv, S, D); returns (B, L, Hq, Dv).

    A mask is bool, True where a key is seen, or floating, added; without one a causal module's queries see
    the keys up to their own place, a single query all. `s_aux` (Hq,) are the scores of a sink that takes
    weight and gives nothing.

    Raises:
        ValueError: a paged cache of transformers' own batching comes in.
    """
    if kwargs.get("cache") is not None:
        raise ValueError("cache is transformers' paged one, wanted attn_implementation='sdpa' with it")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask, bias = None, position_bias
    if attention_mask is not None:
        attention_mask = attention_mask[..., : key.shape[-2]]
        if attention_mask.dtype == torch.bool:
            mask = attention_mask
        else:
            bias = attention_mask if bias is None else bias + attention_mask
    if attention_mask is None and bias is None and _decodes(query, key, value) and not dropout:
        lengths = torch.full((len(query),), key.shape[2], device=query.device)
        out, lse = decode_attention(
            query, key, value, lengths, scale=scaling, softcap=softcap, return_lse=True
        )
    else:
        out, lse = attention(
            query,
            key,
            value,
            causal="upper_left" if causal and attention_mask is None and query.shape[2] > 1 else None,
            softcap=softcap,
            mask=mask,
            bias=bias,
            scale=scaling,
            dropout_p=dropout,
            return_lse=True,
        )
    if s_aux is not None:
        out = out * torch.sigmoid(lse - s_aux.to(lse.dtype)[:, None])[..., None].to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


def _decodes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether this is one new position that sees all of a cache, and no gradient is wanted."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    plain = query.dtype != torch.float64 and value.shape[-1] == key.shape[-1]
    return query.shape[2] == 1 and plain and not wanted
