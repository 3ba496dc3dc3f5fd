"""The causal language models of transformers, whose `generate` runs on fastgen's op `transformer`.

Each class here has the name of its base class. Arguments, configurations, processors of logits and stopping
criteria are prepared by the library as before; what is replaced is its loop of sampling, `_sample`, which
greedy search is a case of. Training and `forward` are the library's.
"""

import warnings
from typing import Any

import torch
import transformers
from torch import Tensor

from fastgen.integrations import Part, Report
from fastgen.integrations._language_models import Texts, network_obstacle, weights_of
from fastgen.integrations._modules import Swap, swap_modules
from fastgen.ops import sample_logits
from fastgen.random import resolve_seed

library: Any = transformers  # whose annotations fit its own classes only

# What a warper of logits is called among the settings of `sample_logits`, which takes them in this order.
_SETTINGS = {
    library.TemperatureLogitsWarper: ("temperature", "temperature"),
    library.TopKLogitsWarper: ("top_k", "top_k"),
    library.TopPLogitsWarper: ("top_p", "top_p"),
    library.MinPLogitsWarper: ("min_p", "min_p"),
    library.TypicalLogitsWarper: ("typical_p", "mass"),
}
_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


class _Generation(library.GenerationMixin):
    """The loop of `generate` for greedy search and sampling."""

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        positions = generation_config.max_length
        weights = _obstacle(self, input_ids, generation_config, synced_gpus, model_kwargs) or weights_of(
            self, positions
        )
        if isinstance(weights, str):
            warnings.warn(f"generate runs on transformers' own code: {weights}", stacklevel=3)
            return super()._sample(
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                **model_kwargs,
            )
        texts = Texts(weights, _prompts(input_ids, model_kwargs), positions)
        return _decode(texts, input_ids, logits_processor, stopping_criteria, generation_config, streamer)


class GPT2LMHeadModel(_Generation, library.GPT2LMHeadModel):
    """GPT-2."""


class LlamaForCausalLM(_Generation, library.LlamaForCausalLM):
    """Llama."""


class MistralForCausalLM(_Generation, library.MistralForCausalLM):
    """Mistral."""


class Qwen2ForCausalLM(_Generation, library.Qwen2ForCausalLM):
    """Qwen2."""


def accelerate(model: Any) -> tuple[Any, Report]:
    """The accelerated copy of a language model, or of a module with one in it, and the report."""
    new, swapped = swap_modules(model, _SWAPS, {})
    report = Report([], swapped.kept)
    for part in swapped.replaced:
        report.replaced.append(Part(f"{part.name}.generate", part.note))
        report.kept.append(
            Part(f"{part.name}.generate with beams", "beam and assisted search: the library's own")
        )
        report.kept.append(Part(f"{part.name}.forward", "training and log-probabilities: the library's own"))
    return new, report


_NOTE = "greedy and sampled: one call of transformer a step, without the texts that have ended"
_SWAPS = {
    old: Swap(new, _NOTE, network_obstacle)
    for old, new in (
        (library.GPT2LMHeadModel, GPT2LMHeadModel),
        (library.LlamaForCausalLM, LlamaForCausalLM),
        (library.MistralForCausalLM, MistralForCausalLM),
        (library.Qwen2ForCausalLM, Qwen2ForCausalLM),
    )
}


def _obstacle(model: Any, ids: Tensor, config: Any, synced_gpus: bool, inputs: dict[str, Any]) -> str | None:
    """Why a call cannot run on `transformer`, or None."""
    if synced_gpus or ids.device.type != "cpu" or model.device.type != "cpu":
        return "the model is not on the CPU alone"
    if config.return_dict_in_generate and (config.output_attentions or config.output_hidden_states):
        return "attentions and hidden states are asked for"
    unknown = sorted(
        name for name, value in inputs.items() if name not in _KNOWN_INPUTS and value is not None
    )
    if unknown:
        return f"fastgen does not know {', '.join(unknown)}"
    cache, mask, positions = (inputs.get(n) for n in ("past_key_values", "attention_mask", "position_ids"))
    if cache is not None and cache.get_seq_length() > 0:
        return "it begins with keys and values of its own"
    if not ids.numel():
        return "there are no prompts"
    if mask is not None and mask.shape != ids.shape:
        return "its attention_mask is not of the prompt's shape"
    if mask is not None and not bool((mask[:, -1] == 1).all()):
        return "a prompt ends with a position that attention_mask leaves out"
    windowed = getattr(model.config, "sliding_window", None)
    if mask is not None and windowed and bool((mask.long().diff() < 0).any()):
        return "attention_mask leaves out positions inside a prompt, which the library's window counts"
    if positions is not None:
        expected = _positions(ids, mask)
        seen = slice(None) if mask is None else mask.bool()
        if positions.shape != ids.shape or not torch.equal(positions[seen], expected[seen]):
            return "its position_ids are not those of the texts"
    if config.max_length > model.config.max_position_embeddings:
        return f"max_length is {config.max_length}, beyond {model.config.max_position_embeddings} positions"
    if model.training and any(m.p > 0 for m in model.modules() if isinstance(m, torch.nn.Dropout)):
        return "the model is in training mode, with dropout"
    return None


def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    return (torch.ones_like(ids) if mask is None else mask.to(ids.dtype)).cumsum(-1) - 1


def _prompts(ids: Tensor, inputs: dict[str, Any]) -> list[list[int]]:
    """The tokens of each row that its attention mask lets in."""
    mask = inputs.get("attention_mask")
    rows = ids if mask is None else [row[seen.bool()] for row, seen in zip(ids, mask, strict=True)]
    return [row.tolist() for row in rows]


def _decode(
    texts: Texts,
    ids: Tensor,
    processors: Any,
    stopping_criteria: Any,
    config: Any,
    streamer: Any,
) -> Any:
    """The loop: processors, the next tokens, stopping criteria, the next step of the texts that go on."""
    as_dict = config.return_dict_in_generate
    kept_scores: tuple[Tensor, ...] | None = () if as_dict and config.output_scores else None
    kept_logits: tuple[Tensor, ...] | None = () if as_dict and config.output_logits else None
    processors, settings = (processors, {}) if as_dict else _split(processors)
    seed = resolve_seed(None) if config.do_sample else 0
    ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    unfinished = torch.ones(len(ids), dtype=torch.long)
    logits, step = texts.begin(), 0
    while True:
        # The processors write into what they are given.
        scores = processors(ids, logits.clone() if len(processors) else logits)
        if kept_scores is not None:
            kept_scores += (scores.clone(),)
        if kept_logits is not None:
            kept_logits += (logits.clone(),)
        if config.do_sample:
            tokens = sample_logits(scores, seed=seed, step=step, **settings).token
        else:
            tokens = scores.argmax(-1)
        if ends:
            tokens = torch.where(unfinished.bool(), tokens, config._pad_token_tensor)
        ids = torch.cat([ids, tokens[:, None]], 1)
        unfinished = unfinished & ~stopping_criteria(ids, kept_scores)
        if streamer is not None:
            streamer.put(tokens)
        if not bool(unfinished.any()):
            break
        # Scores that are handed out are those of all texts, as the library's are.
        logits, step = texts.step(tokens, None if as_dict else unfinished.bool()), step + 1
    if streamer is not None:
        streamer.end()
    return library.generation.GenerateDecoderOnlyOutput(ids, kept_scores, kept_logits) if as_dict else ids


def _split(processors: Any) -> tuple[Any, dict[str, Any]]:
    """The processors up to the warpers at the end that `sample_logits` stands for, and those as settings."""
    order, settings = list(_SETTINGS), dict[str, Any]()
    count, last = len(processors), len(order)
    while count and type(processors[count - 1]) in _SETTINGS:
        warper = processors[count - 1]
        place = order.index(type(warper))
        plain = getattr(warper, "filter_value", -torch.inf) == -torch.inf
        if place >= last or not plain or getattr(warper, "min_tokens_to_keep", 1) != 1:
            break
        name, attribute = _SETTINGS[type(warper)]
        settings[name] = getattr(warper, attribute)
        count, last = count - 1, place
    return library.LogitsProcessorList(processors[:count]), settings
