"""Arguments of the command line that are handed on by name."""

import argparse
import json
from typing import Any


def name_and_value(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value read as JSON where it is JSON, else as a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
