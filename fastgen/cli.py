"""The command `fastgen`: one word picks a command, the rest belongs to it.

A command is a module with `add_arguments(parser)` and `execute(given)`, imported only when it is asked for.
Exit codes: 0 done, 1 a check failed, 2 bad input (one sentence on stderr), 130 stopped with Ctrl-C.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import fastgen


@dataclass(frozen=True)
class Command:
    """Where a command lives, what it does, and what to say when it is stopped with Ctrl-C."""

    module: str
    summary: str
    stopped: str


COMMANDS = {
    "doctor": Command(
        "fastgen.doctor",
        "show what runs on this machine and check that it is right",
        "stopped",
    ),
    "sample": Command(
        "fastgen.sampling.command",
        "write many samples of a model to a directory, or texts to a file or the terminal",
        "stopped; finished shards and lines are kept, the same command goes on after them",
    ),
    "score": Command(
        "fastgen.sampling.score_command",
        "tell how probable texts are under a language model, or samples under a flow",
        "stopped",
    ),
    "train": Command(
        "fastgen.training.command",
        "train a model on a data set",
        "stopped; the last checkpoint is kept, the same command goes on from it",
    ),
    "bench": Command(
        "fastgen.bench.command",
        "time fastgen against what people use today",
        "stopped; the rows measured so far are in the file given with --json",
    ),
    "demo": Command(
        "fastgen.demo.command",
        "train, sample, compare with plain PyTorch, and write a page with the pictures",
        "stopped; the same command goes on from the last checkpoint of the training",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `fastgen ARGV` and return its exit code; argparse exits with 2 on arguments that it cannot read."""
    given = _parser().parse_args(argv)
    if given.command is None:
        _parser().print_help()
        return 0
    name, command = f"fastgen {given.command}", COMMANDS[given.command]
    try:
        module = importlib.import_module(command.module)
        parser = argparse.ArgumentParser(prog=name, description=f"{command.summary.capitalize()}.")
        module.add_arguments(parser)
        return module.execute(parser.parse_args(given.arguments))
    except (OSError, ValueError, TypeError, RuntimeError, ArithmeticError, ImportError) as error:
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{name}: {command.stopped}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    lines = [f"  {name:<8} {command.summary}" for name, command in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="fastgen",
        description="Fast, reproducible sampling from generative models: same seed, same sample.",
        epilog="\n".join(["commands:", *lines, "", "`fastgen COMMAND --help` tells more."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastgen {fastgen.__version__}")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    return parser


def _sentence(error: BaseException) -> str:
    """The first line of the message; of a file that the system refuses, its name and why."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error).strip().partition("\n")[0] or type(error).__name__
