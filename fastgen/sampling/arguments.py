"""The options of models that `fastgen sample` knows by name: `--top-k 5` is `--option top_k=5`."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastgen.options import name_and_value


class Named(NamedTuple):
    """An option of models: its name, its type, what stands for its value, and help."""

    name: str
    type: Callable[[str], Any]
    metavar: str
    help: str


def _token_and_number(text: str) -> dict[int, float]:
    token, _, number = text.partition("=")
    try:
        return {int(token): float(number)}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not TOKEN=NUMBER") from None


def _numbers(text: str) -> Any:
    return name_and_value(f"context={text}")[1]


TEXTS = "options of language models"
GROUPS: dict[str, tuple[Named, ...]] = {
    TEXTS: (
        Named("max_new_tokens", int, "N", "tokens of each text, at most (default 128)"),
        Named("temperature", float, "T", "0 takes the most probable token (default 1); of flows too"),
        Named("top_k", int, "K", "keep the K most probable tokens (default 0, all)"),
        Named("top_p", float, "P", "keep the most probable tokens of together P (default 1, all)"),
        Named("min_p", float, "P", "keep tokens of at least P times the highest probability (default 0)"),
        Named("typical_p", float, "P", "keep the most typical tokens of together P (default 1, all)"),
        Named("repetition_penalty", float, "X", "divides logits of tokens that came before (default 1)"),
        Named("presence_penalty", float, "X", "subtracted from logits of tokens written before (default 0)"),
        Named("frequency_penalty", float, "X", "subtracted for each time a token was written (default 0)"),
        Named("logit_bias", _token_and_number, "TOKEN=X", "added to a token's logit; may be repeated"),
        Named("stop", str, "TEXT", "a text ends before it; may be repeated"),
        Named("beams", int, "N", "search for the most probable text with N hypotheses; draws nothing"),
        Named("length_penalty", float, "X", "of a search: rank by log p / length**X (default 1)"),
        Named("draft", str, "WHO", "guesses tokens, changes none: lookup, or a smaller model as MODEL"),
        Named("draft_tokens", int, "N", "guessed for a pass (default 8)"),
        Named("pass_tokens", int, "N", "tokens of prompts in a pass (default 512)"),
        Named("cache_positions", int, "N", "of keys and values in memory (default enough for the batch)"),
    ),
    "options of other models": (
        Named("context", _numbers, "X", "of flows: a class, or numbers as [1, 2]"),
        Named("steps", int, "N", "of rbm: Gibbs steps (default 1000)"),
        Named("sweeps", int, "N", "of ising: sweeps over the lattice (default 1000)"),
        Named("beta", float, "X", "of ising and rbm: inverse temperature (default critical, and 1)"),
    ),
}


class _Hand(argparse.Action):
    """Puts an option where `--option` puts it; one that may be repeated is gathered."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        """Store `values` under the name of the option."""
        name = self.dest.removeprefix("option_")
        before = dict(namespace.option).get(name)
        if name == "stop":
            values = [*([before] if isinstance(before, str) else before or []), values]
        elif name == "logit_bias" and isinstance(before, dict):
            values = before | values
        namespace.option = [*namespace.option, (name, values)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare `--option` and all options that have a name; they come as pairs in `option`."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        type=name_and_value,
        metavar="NAME=VALUE",
        help="any option of the model by its name, as those below; may be repeated",
    )
    for title, options in GROUPS.items():
        group = parser.add_argument_group(title)
        for named in options:
            group.add_argument(
                "--" + named.name.replace("_", "-"),
                action=_Hand,
                type=named.type,
                metavar=named.metavar,
                help=named.help.replace("%", "%%"),
                dest="option_" + named.name,
                default=argparse.SUPPRESS,
            )
        if title == TEXTS:
            group.add_argument(
                "--log-probs",
                action="append_const",
                const=("log_probs", True),
                dest="option",
                default=argparse.SUPPRESS,
                help="write the log-probability of each token, too",
            )


def options_of(given: argparse.Namespace, elsewhere: Sequence[str] = ()) -> dict[str, Any]:
    """The options by name; ValueError for one that has an argument of its own."""
    options = dict(given.option)
    for name in elsewhere:
        if name in options:
            flag = "-n" if name == "n" else "--" + name.replace("_", "-")
            raise ValueError(f"--option {name}=... has an argument of its own, wanted {flag}")
    return options
