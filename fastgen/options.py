"""Arguments that are handed on by name, from the command line and by functions."""

import argparse
import inspect
import json
from collections.abc import Callable, Iterable
from typing import Any

import torch


def name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as JSON where it is JSON, else as a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def check_names(
    what: str, function: Callable[..., Any], given: Iterable[str], *, but: Iterable[str] = ()
) -> None:
    """TypeError: a name of `given` is none that `function`, called `what`, takes, those of `but` left out."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of a function that is not written in Python, and does not tell
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    known = [name for name in known if name not in set(but)]
    for name in given:
        if name not in known:
            raise TypeError(f"{name!r} is no option of {what}; options are {', '.join(known) or 'none'}")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare `--device`."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default cpu)")


def device_of(name: str | torch.device) -> torch.device:
    """The device of that name; ValueError: it is none, or not there."""
    name = str(name)
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
        raise ValueError(f"device is {name!r}, wanted cpu, cuda or cuda:N")
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= there:
        raise ValueError(f"device is {name!r}, but torch finds {there or 'no'} GPU{'s' * (there > 1)} here")
    return device
