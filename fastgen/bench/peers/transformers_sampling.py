"""Drawing tokens as transformers' `generate(do_sample=True)` does: its logits processors and multinomial."""

import torch

from fastgen.bench.case import Call, Inputs


def build(inputs: Inputs) -> Call:
    """Return the call that draws the tokens (B, 1)."""
    import transformers  # noqa: PLC0415 (an optional extra)

    processors = transformers.LogitsProcessorList()
    if inputs["repetition_penalty"] != 1:
        processors.append(transformers.RepetitionPenaltyLogitsProcessor(inputs["repetition_penalty"]))
    if inputs["temperature"] != 1:
        processors.append(transformers.TemperatureLogitsWarper(inputs["temperature"]))
    if inputs["top_k"]:
        processors.append(transformers.TopKLogitsWarper(inputs["top_k"]))
    if inputs["top_p"] < 1:
        processors.append(transformers.TopPLogitsWarper(inputs["top_p"]))
    if inputs["min_p"] > 0:
        processors.append(transformers.MinPLogitsWarper(inputs["min_p"]))
    logits, tokens = inputs["logits"], inputs["output_tokens"]
    if tokens is None:
        tokens = torch.zeros((len(logits), 1), dtype=torch.int64, device=logits.device)

    def draw() -> torch.Tensor:
        return torch.multinomial(torch.softmax(processors(tokens, logits), dim=-1), num_samples=1)

    return draw
