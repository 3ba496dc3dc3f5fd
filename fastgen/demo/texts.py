"""Language models: what they write, and how many tokens a second, fastgen and the libraries people use."""

from dataclasses import dataclass

import torch

from fastgen import data
from fastgen.bench import timing
from fastgen.bench.case import Case, Match, Peer
from fastgen.bench.cases import table
from fastgen.bench.runner import check
from fastgen.demo.settings import Settings
from fastgen.models import Transformer, load

QUESTIONS = (
    "Why is the sky blue? Answer in two sentences.",
    "What is the difference between a planet and a star?",
    "Write a short poem about rain.",
)
CUE = "HAMLET.\n"
# Of the table of benchmarks; True: of the quick demo.
CASES = {
    False: ("SmolLM2 Q4_1 batch 1", "SmolLM2 float32 batch 1", "GPT-2 124M float32 batch 16"),
    True: ("tiny GPT-2 float32 batch 2",),
}
PAIRS = 6  # a pair takes seconds, and an interval of the median needs as many


@dataclass(frozen=True)
class Speed:
    """One line of the table; without times where the outputs differ."""

    case: Case
    peer: str
    same: Match
    timed: timing.Comparison | None

    def tokens(self, call_ms: float) -> float:
        """Tokens a second of a call that takes so long."""
        return 1e3 * self.case.work.items / call_ms


@dataclass(frozen=True)
class Texts:
    """Questions with answers, verses after `CUE`, the model of these, speeds, and absent peers with why."""

    answers: list[tuple[str, str]]
    verses: str
    poet: Transformer
    speeds: list[Speed]
    absent: list[tuple[str, str]]


def make(settings: Settings) -> Texts:
    """Ask, write and compare."""
    poet = load("zoo:transformer-shakespeare")
    assert isinstance(poet, Transformer)
    written = poet.generate(
        CUE, seed=settings.seed, max_new_tokens=settings.verse_characters, temperature=0.5
    )
    cases = [case for case in table(["generate"]) if case.name in CASES[settings.quick]]
    pairs = [(case, peer) for case in cases for peer in case.peers]
    missing = {peer.name: peer.missing() for _, peer in pairs}
    absent = [(name, why) for name, why in missing.items() if why is not None]
    with torch.inference_mode():
        speeds = [_compare(case, peer, settings) for case, peer in pairs if missing[peer.name] is None]
    return Texts(_answers(settings), written[0].text or "", poet, speeds, absent)


def _answers(settings: Settings) -> list[tuple[str, str]]:
    """What SmolLM2 says; nothing where the package that carries it is not installed."""
    try:
        path = data.smollm2()
    except ModuleNotFoundError:
        return []
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    found = Transformer.from_pretrained(path).generate(
        chats, max_new_tokens=settings.answer_tokens, temperature=0.0
    )
    return [(question, answer.text or "") for question, answer in zip(QUESTIONS, found, strict=True)]


def _compare(case: Case, peer: Peer, settings: Settings) -> Speed:
    same = check(case, peer, "cpu")
    if not same.ok:
        return Speed(case, peer.name, same, None)
    seconds = settings.seconds_a_comparison
    budget = timing.Budget(total_s=seconds, sample_s=min(0.02, seconds), min_pairs=PAIRS)
    inputs = case.inputs("cpu")
    return Speed(case, peer.name, same, timing.compare(case.fastgen(inputs), peer.build(inputs), budget))
