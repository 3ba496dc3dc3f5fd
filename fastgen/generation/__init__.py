"""Text and tokens from a transformer: prompts in batches, a paged cache, stopping, streaming."""

from fastgen.generation.cache import PagedCache, Pages
from fastgen.generation.generate import generate, stream
from fastgen.generation.options import SETTINGS, names_of
from fastgen.generation.prompts import Prompt, prompts_of
from fastgen.generation.row import Generation
from fastgen.generation.scoring import Score, token_log_probs, token_logits
from fastgen.generation.tokenizer import Tokenizer

__all__ = [
    "SETTINGS",
    "Generation",
    "PagedCache",
    "Pages",
    "Prompt",
    "Score",
    "Tokenizer",
    "generate",
    "names_of",
    "prompts_of",
    "stream",
    "token_log_probs",
    "token_logits",
]
