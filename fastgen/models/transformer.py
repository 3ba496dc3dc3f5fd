"""Decoder-only transformers in the layouts of GPT-2 and Llama: training, likelihood, generation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastgen.generation import (
    Generation,
    Prompt,
    Score,
    generate,
    prompts_of,
    stream,
    token_log_probs,
    token_logits,
)
from fastgen.generation.tokenizer import TOKENIZER_FILE, Tokenizer
from fastgen.models.base import Model
from fastgen.models.transformer_layers import LAYOUTS, Block, Matrix, Normalization
from fastgen.models.transformer_rope import rope_tables
from fastgen.models.transformer_sizes import check_sizes, check_text, format_of, formats_of_layer
from fastgen.ops import TransformerWeights
from fastgen.random import as_int
from fastgen.stamps import Stamp, modules_of, tensors_of

_TABLE = 1024  # positions for which angles are kept at first


class Transformer(Model):
    """A causal language model: pre-norm blocks of attention and a network between two matrices.

    Layout "gpt2" (Radford et al. 2019) has layer norms, learned positions, biases and GELU; layout "llama"
    (Touvron et al. 2023, arXiv:2302.13971) has RMS norms, rotary positions and a gated SiLU. Matrices are
    float32 parameters that can be trained, or packed in `formats` and fixed.

    Args:
        vocabulary: number of tokens.
        layout: "llama" or "gpt2".
        layers, heads, hidden: blocks, query heads of each, numbers in a row.
        mlp: numbers between the two matrices of a block's network; None is 4 hidden.
        kv_heads: heads of keys and values, a divisor of `heads`; None is `heads`.
        head_size: numbers of a head; None is hidden / heads.
        context: positions the model may be asked for.
        tied: whether the embedding gives the logits too.
        biases: which of q, k, v, o, gate, up, down have one; None is as the layout says.
        eps: added to the mean square (variance) in norms.
        rope: "half", "interleaved" or None, which is as the layout says.
        rope_theta, rope_factors, rope_magnitude: of the angles, see `transformer_rope.rope_tables`.
        window: how many positions a position sees, its own being the last; None is all.
        formats: formats of packed matrices by their names ("embedding", "layers.0.q", "head"), "*" for all
            that are not named; None leaves parameters.
    """

    tokenizer: Tokenizer | None = None

    def __init__(
        self,
        vocabulary: int,
        *,
        layout: str = "llama",
        layers: int = 4,
        heads: int = 4,
        hidden: int = 256,
        mlp: int | None = None,
        kv_heads: int | None = None,
        head_size: int | None = None,
        context: int = 1024,
        tied: bool = True,
        biases: Sequence[str] | None = None,
        eps: float = 1e-5,
        rope: str | None = None,
        rope_theta: float = 10000.0,
        rope_factors: Sequence[float] | None = None,
        rope_magnitude: float = 1.0,
        window: int | None = None,
        formats: dict[str, str] | None = None,
    ) -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"layout is {layout!r}, wanted one of {', '.join(LAYOUTS)}")
        shape = LAYOUTS[layout]
        mlp, kv_heads = 4 * hidden if mlp is None else mlp, heads if kv_heads is None else kv_heads
        head_size, rope = hidden // max(heads, 1) if head_size is None else head_size, rope or shape.rope
        biases, formats = list(shape.biases if biases is None else biases), dict(formats or {})
        super().__init__(
            vocabulary=vocabulary, layout=layout, layers=layers, heads=heads, hidden=hidden, mlp=mlp,
            kv_heads=kv_heads, head_size=head_size, context=context, tied=tied, biases=biases, eps=eps,
            rope=rope, rope_theta=rope_theta, rope_factors=rope_factors, rope_magnitude=rope_magnitude,
            window=window, formats=formats,
        )  # fmt: skip
        check_sizes(self.config)
        trained = not formats
        self.embedding = Matrix(vocabulary, hidden, format=format_of(formats, "embedding"))
        self.positions: Tensor | None = None
        if layout == "gpt2":
            table = torch.empty(context, hidden).normal_(std=0.02)
            self.positions = torch.nn.Parameter(table, requires_grad=trained)
        self.layers = torch.nn.ModuleList(
            Block(
                shape, hidden=hidden, mlp=mlp, heads=heads, kv_heads=kv_heads, head_size=head_size, eps=eps,
                window=window, depth=layers, biases=biases,
                formats=formats_of_layer(formats, i),
            )
            for i in range(layers)
        )  # fmt: skip
        self.final_norm = Normalization(hidden, shape.norm, eps, trained=trained)
        self.head = None if tied else Matrix(vocabulary, hidden, format=format_of(formats, "head"))
        self._tables: tuple[Tensor, Tensor] | None = None
        self._weights: tuple[Stamp, TransformerWeights] | None = None

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], *, format: str | None = None, trainable: bool = False
    ) -> Transformer:
        """Read a model of another library: a GGUF file, or a directory as transformers writes it.

        Formats of GGUF that run as they are (Q4_0, Q4_1, Q8_0) stay mapped from the file, others are read:
        float16 as float32, bfloat16 as it is, and GGUF's other formats of blocks as bfloat16. Pickles are
        refused, because reading one may run anything.

        Args:
            path: `model.gguf`, or a directory with config.json, model.safetensors (or its index and shards)
                and, for text, tokenizer.json. Known are the families gpt2, llama, mistral and qwen2.
            format: pack all matrices into this format of `fastgen.ops.PackedWeight`; None keeps the file's.
            trainable: make all matrices float32 parameters.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is truncated, damaged, a pickle, or of a family that fastgen does not know.
        """
        from fastgen.models.pretrained import read_pretrained  # noqa: PLC0415  it builds this class

        return read_pretrained(cls, Path(path), format=format, trainable=trainable)

    def weights(self, positions: int = _TABLE) -> TransformerWeights:
        """What `fastgen.ops.transformer` takes, with angles for at least so many positions.

        It is kept until a parameter has changed; `fastgen.stamps.Stamp` tells which changes are seen.
        """
        cos, sin = self._angles(positions)
        tensors = tensors_of(*modules_of(self))
        if self._weights is None or self._weights[1].cos is not cos or not self._weights[0].holds(tensors):
            c = self.config
            self._weights = Stamp(tensors), TransformerWeights(
                heads=c["heads"], kv_heads=c["kv_heads"], head_size=c["head_size"],
                norm=LAYOUTS[c["layout"]].norm, eps=c["eps"], activation=LAYOUTS[c["layout"]].activation,
                rope=c["rope"], embedding=self.embedding.packed(),
                positions=None if self.positions is None else self.positions.detach().float(),
                cos=cos, sin=sin, final_norm=self.final_norm.norm(),
                head=(self.head or self.embedding).projection(),
                layers=tuple(block.layer() for block in self._blocks()), window=c["window"],
            )  # fmt: skip
        return self._weights[1]

    def _angles(self, positions: int) -> tuple[Tensor | None, Tensor | None]:
        c = self.config
        if c["rope"] == "none":
            return None, None
        if positions > c["context"]:
            raise ValueError(f"positions is {positions}, wanted at most context = {c['context']}")
        device = self.final_norm.weight.device
        if self._tables is None or len(self._tables[0]) < positions or self._tables[0].device != device:
            wanted = min(c["context"], max(_TABLE, 1 << (positions - 1).bit_length()))
            cos, sin = rope_tables(
                wanted, c["head_size"], c["rope_theta"], c["rope_factors"], c["rope_magnitude"]
            )
            self._tables = cos.to(device), sin.to(device)
        return self._tables

    def _blocks(self) -> list[Block]:
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, L, vocabulary) of the token after each of `tokens` (B, L), int64.

        Where gradients are wanted they come from PyTorch's operations. Else from `fastgen.ops.transformer`,
        and a row's bits do not depend on the others.
        """
        self._check_tokens(tokens)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            return self._network(tokens)
        return token_logits(self.weights(tokens.shape[1]), tokens)

    def _network(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        cos, sin = self._angles(length)
        x = self.embedding.rows(tokens)
        if self.positions is not None:
            x = x + self.positions[:length]
        if cos is not None and sin is not None:
            cos, sin = cos[:length], sin[:length]
        for block in self._blocks():
            x = block(x, cos, sin, self.config["rope"] == "interleaved")
        x = self.final_norm(x)
        head = self.head or self.embedding
        logits: Tensor = head(x)
        return logits

    def loss(self, batch: Tensor) -> Tensor:
        """Mean of -log p(token | those before it), in nats, over tokens 2 .. L of rows (B, L), int64."""
        self._check_tokens(batch, least=2)
        logits = self(batch[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())

    @torch.no_grad()
    def log_prob(self, tokens: Tensor) -> Tensor:
        """Log p (B,), in nats, of tokens 2 .. L of each row (B, L), int64, given its first one."""
        self._check_tokens(tokens, least=2)
        found = token_log_probs(self.weights(tokens.shape[1] - 1), tokens.tolist(), [1] * len(tokens))
        return torch.stack(found).sum(-1).to(tokens.device) if found else torch.empty(0, device=tokens.device)

    @torch.no_grad()
    def score(
        self, texts: Prompt | Sequence[Prompt], *, prompts: Prompt | Sequence[Prompt] | None = None
    ) -> list[Score]:
        """How probable texts are, token by token: alone, or each as what follows its prompt.

        Args:
            texts: one or several, of the kinds that `generate` takes.
            prompts: one for all texts, or one for each; they are given and not scored, and end where a token
                ends. Without prompts the first token of each text is given.

        Returns:
            A `Score` for each text: tokens, log_probs in nats, log_prob, perplexity; the same bits whatever
            the other texts are.

        Raises:
            TypeError, ValueError: naming the text or prompt, what came and what is wanted.
        """
        rows = prompts_of(texts, self.tokenizer, what="text", begin=prompts is None)
        firsts = [1] * len(rows)
        if prompts is not None:
            before = prompts_of(prompts, self.tokenizer)
            before = before * len(rows) if len(before) == 1 else before
            if len(before) != len(rows):
                raise ValueError(
                    f"prompts are {len(before)}, wanted one, or one for each of {len(rows)} texts"
                )
            firsts = [len(prompt) for prompt in before]
            rows = [prompt + row for prompt, row in zip(before, rows, strict=True)]
        for i, row in enumerate(rows):
            check_text(i, row, self.config["vocabulary"], self.config["context"])
        weights = self.weights(max(map(len, rows), default=2) - 1)
        found = token_log_probs(weights, rows, firsts)
        return [Score(row[at:], its.tolist()) for row, at, its in zip(rows, firsts, found, strict=True)]

    def perplexity(self, text: str | Sequence[int]) -> float:
        """exp of the mean of -log p over the tokens of a text after the first, as `score` reads it."""
        scores = self.score(text)
        if len(scores) != 1:
            raise ValueError(f"text is a list of {len(scores)}, wanted one text; score takes several")
        return scores[0].perplexity

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, max_new_tokens: int = 128, **options: Any
    ) -> list[Generation]:
        """Continue prompts: any number of them, as many at once as `batch_size`.

        Copy c of prompt i draws with sample id i n + c, and its token t at step t, so a result depends on its
        prompt, seed, sample id and settings alone: not on the other prompts, `batch_size`, threads, or on how
        prompts are cut into passes. Beginnings that prompts have in common are computed once.

        Args:
            prompts: one prompt or a sequence of them; each a text, a list of tokens, or a chat: a list of
                messages {"role": "user", "content": "..."}.
            max_new_tokens: how many tokens may be generated for each; fewer if the context ends before.
            seed: 64 bits; None takes a seed from torch's default generator. It changes nothing where nothing
                is drawn: at temperature 0, with beams.
            n: samples of each prompt.
            sample_ids: an id for each of prompts x n samples, instead of 0, 1, 2, ...
            stop: a string, or several, at which a text ends; it is not part of the text.
            temperature, top_k, top_p, min_p, typical_p, repetition_penalty, presence_penalty,
            frequency_penalty, logit_bias: as `fastgen.ops.sample_logits`, and `logit_bias` a dict of what is
                added to the logits of tokens; each one value, or a list of one for each prompt. Temperature 0
                takes the most probable token; the default, 1, samples from the model.
            log_probs: also give each token's log-probability under the model.
            on_text: called with a sample's index in the result and its text, piece by piece, as it comes.
            batch_size: sequences in a pass, 32 by default.
            pass_tokens: tokens of prompts in a pass, 512 by default; fewer make others wait less.
            cache_positions: how many positions the cache of keys and values holds; by default enough for
                `batch_size` sequences. Sequences wait while it is full.
            draft: who guesses tokens, so that one pass may yield several: "lookup" (the sequence goes on as
                it did where its last tokens stood before) or a smaller Transformer of the same vocabulary.
                The tokens that come are the same, whoever guesses; None, the default, guesses nothing.
            draft_tokens: how many tokens are guessed for a pass, 8 by default.
            beams: search for the most probable continuation with so many instead of drawing one; results are
                the n best of each prompt, best first. Penalties and `logit_bias` change what is best, `stop`
                ends a text; what concerns drawing, streaming, guesses and the cache is refused.
            length_penalty: results of a search are ranked by log p / length**length_penalty, 1 by default;
                with beams alone.

        Returns:
            A `Generation` for each sample: n of the first prompt, n of the second, ... A search gives fewer
            than n where there are fewer continuations.

        Raises:
            TypeError, ValueError: naming the argument or prompt, what came and what is wanted.
        """
        tokens = prompts_of(prompts, self.tokenizer)
        weights = self._weights_for(tokens, max_new_tokens)
        options = _with_draft(options, tokens, max_new_tokens)
        return generate(weights, self.tokenizer, tokens, max_new_tokens=max_new_tokens, **options)

    def stream(self, prompt: Prompt, *, max_new_tokens: int = 128, **options: Any) -> Iterator[str]:
        """The text that follows one prompt, piece by piece, as it comes; no character is ever in two pieces.

        Args:
            prompt, max_new_tokens: as `generate`.
            options: seed, stop, pass_tokens, draft, draft_tokens and the settings of sampling, as `generate`;
                `sample_id` (0) takes the place of `sample_ids`.

        Raises:
            TypeError, ValueError: as `generate`, at this call and not at the first piece.
        """
        tokens = prompts_of([prompt], self.tokenizer)
        weights = self._weights_for(tokens, max_new_tokens)
        options = _with_draft(options, tokens, max_new_tokens)
        return stream(weights, self.tokenizer, tokens[0], max_new_tokens=max_new_tokens, **options)

    def _weights_for(self, prompts: list[list[int]], max_new_tokens: int) -> TransformerWeights:
        max_new_tokens = as_int("max_new_tokens", max_new_tokens)
        positions = max(map(len, prompts), default=1) + max_new_tokens - 1
        return self.weights(max(1, min(positions, self.config["context"])))

    def sample(
        self, sample_ids: Tensor, *, seed: int, prompt: Prompt = "", length: int = 128, **options: Any
    ) -> Tensor:
        """Continuations of one prompt, (B, length) int64 tokens; after an end token it is repeated.

        Args:
            sample_ids: (B,) int64.
            seed: 64 bits.
            prompt: a text, a list of tokens, or a chat; none is the token that begins a text.
            length: tokens of each sample.
            options: settings of `generate`.

        Raises:
            TypeError, ValueError: as `generate`.
        """
        if "max_new_tokens" in options:
            raise TypeError("'max_new_tokens' is no option of sample, whose texts all have `length` tokens")
        found = self.generate(
            [prompt] * len(sample_ids),
            max_new_tokens=length,
            seed=seed,
            sample_ids=sample_ids.tolist(),
            **options,
        )
        rows = [result.tokens + [result.tokens[-1]] * (length - len(result.tokens)) for result in found]
        return torch.tensor(rows, dtype=torch.int64, device=sample_ids.device).view(len(rows), length)

    def _check_tokens(self, tokens: Tensor, least: int = 1) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.dim() != 2:
            came = (
                f"{tokens.dtype} {tuple(tokens.shape)}"
                if isinstance(tokens, Tensor)
                else type(tokens).__name__
            )
            raise TypeError(f"tokens is {came}, wanted an int64 tensor (batch, length)")
        c = self.config
        most = c["context"] + least - 1
        if not least <= tokens.shape[1] <= most:
            raise ValueError(f"tokens has length {tokens.shape[1]}, wanted {least} to {most}")
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= c["vocabulary"]):
            bad = tokens[(tokens < 0) | (tokens >= c["vocabulary"])][0]
            raise ValueError(f"tokens holds {int(bad)}, wanted 0 to {c['vocabulary'] - 1}")

    def _text_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer; give tokens instead of text")
        return self.tokenizer

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """As `Model.save`, and the tokenizer's files beside it."""
        path = super().save(directory)
        if self.tokenizer is not None:
            self.tokenizer.save(path)
        return path

    def _load_beside(self, directory: Path) -> None:
        if (directory / TOKENIZER_FILE).exists():
            self.tokenizer = Tokenizer.load(directory)


def _with_draft(options: dict[str, Any], prompts: list[list[int]], max_new_tokens: int) -> dict[str, Any]:
    """Options of `generate` in which a draft model stands as its weights."""
    draft = options.get("draft")
    if not isinstance(draft, Transformer):
        return options
    return options | {"draft": draft._weights_for(prompts, max_new_tokens)}
