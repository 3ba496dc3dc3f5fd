"""The specification of `fastgen.ops.sample_logits` in plain PyTorch.

Every float operation is one IEEE operation, and masses are added as integers, so that every implementation
has these bits: a weight exp(y) counts as its nearest multiple of 2**-40.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgen.random import Stream
from fastgen.reference import random

HAS_NAN, HAS_NONE = -1, -2  # given back as the token of a row from which nothing can be drawn
LARGEST = torch.finfo(torch.float32).max


def sample_logits(
    logits: Tensor,
    seed: int,
    sample_ids: Tensor,
    step: Tensor,
    settings: Tensor,
    prompt_tokens: Tensor | None,
    output_tokens: Tensor | None,
    logit_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `fastgen.ops.sample_logits`; settings (B, 8) float64 has its columns in the order used here."""
    temperature, top_k, top_p, min_p, typical_p, *penalties = settings.unbind(1)
    raw = logits.float().clamp(max=LARGEST)
    z = penalized(raw, penalties, prompt_tokens, output_tokens, logit_bias)
    y = scaled(z, temperature)
    keep = kept(z, y, torch.where(temperature == 0, 1.0, top_k), top_p, min_p, typical_p)
    words = random.words(seed, sample_ids, step[:, None], logits.shape[1], Stream.TOKEN)
    token = torch.where(keep, y + random.gumbel_from_words(words), -torch.inf).argmax(1)
    log_prob = log_probability(raw, token)
    token = torch.where((z == -torch.inf).all(1), HAS_NONE, token)
    return torch.where(logits.isnan().any(1), HAS_NAN, token), log_prob


def penalized(
    raw: Tensor, penalties: list[Tensor], prompt: Tensor | None, output: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Logits after logit_bias and the penalties, at most the largest float32."""
    z = raw if bias is None else raw + bias
    repetition, presence, frequency = (p.float()[:, None] for p in penalties)
    in_prompt, in_output = counts(prompt, raw), counts(output, raw)
    z = torch.where(in_prompt + in_output > 0, torch.where(z > 0, z / repetition, z * repetition), z)
    z = torch.where(in_output > 0, z - (frequency * in_output + presence), z)
    return z.clamp(max=LARGEST)


def counts(tokens: Tensor | None, raw: Tensor) -> Tensor:
    """(B, V) float32: how often each token stands in its row of `tokens`; -1 stands for none."""
    found = raw.new_zeros((raw.shape[0], raw.shape[1] + 1))
    if tokens is not None:
        found.scatter_add_(1, torch.where(tokens < 0, raw.shape[1], tokens), torch.ones_like(tokens).float())
    return found[:, :-1]


def scaled(z: Tensor, temperature: Tensor) -> Tensor:
    """(z - max z) / temperature, by multiplication with the inverse; temperature 0 counts as 1."""
    inverse = (1 / torch.where(temperature == 0, 1.0, temperature)).float().clamp(max=LARGEST)
    return (z - z.amax(1, keepdim=True)) * inverse[:, None]


def fixed_point(x: Tensor) -> Tensor:
    """float32 in [-1, 1] as int64 multiples of 2**-40."""
    return (x.double() * 2.0**40).round().long()


def reached(share: Tensor, total: Tensor) -> Tensor:
    """The integer mass from which on nothing more is kept, (B, 1); at least 1, so that one token is kept."""
    return (share[:, None] * total[:, None].double()).ceil().clamp(min=1).long()


def kept(z: Tensor, y: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, typical_p: Tensor) -> Tensor:
    """(B, V) bool: the tokens that top-k, top-p, min-p and typical-p leave."""
    order = z.sort(dim=1, descending=True, stable=True).indices
    y = y.gather(1, order)
    place = torch.arange(z.shape[1], device=z.device)
    k = top_k[:, None]
    keep = (k == 0) | (place < k)
    weight = random.exp_nonpositive(y)
    keep &= shortest(torch.where(keep, fixed_point(weight), 0), top_p)
    keep &= weight >= min_p.float()[:, None]
    keep = torch.zeros_like(keep).scatter(1, order, keep)
    y, weight = torch.empty_like(y).scatter(1, order, y), torch.empty_like(y).scatter(1, order, weight)
    mass = torch.where(keep, fixed_point(weight), 0)
    moment = torch.where(keep, fixed_point(weight * y.clamp(min=-87.0)), 0)
    # -log p - entropy = mean(y) - y, the mean under p
    mean = (moment.sum(1).double() / mass.sum(1).double()).float()[:, None]
    distance = torch.where(keep, (mean - y).abs(), torch.inf)
    nearest = distance.sort(dim=1, stable=True).indices
    typical = shortest(mass.gather(1, nearest), typical_p)
    return keep & torch.zeros_like(keep).scatter(1, nearest, typical)


def shortest(mass: Tensor, share: Tensor) -> Tensor:
    """(B, V) bool: the shortest prefix of each row whose mass reaches its share; a share of 1 keeps all."""
    before = mass.cumsum(1) - mass
    return (share[:, None] >= 1) | (before < reached(share, mass.sum(1)))


def log_probability(raw: Tensor, token: Tensor) -> Tensor:
    """(B,) float32: log softmax(raw) at the token."""
    largest = raw.amax(1, keepdim=True)
    total = fixed_point(random.exp_nonpositive(raw - largest)).sum(1)
    chosen = raw.gather(1, token[:, None]) - largest
    return chosen[:, 0] - random.log((total.double() * 2.0**-40).float())
