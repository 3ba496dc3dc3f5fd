"""Small trained models that come with fastgen: `fastgen.models.load("zoo:glow-digits")`.

tools/train_zoo.py trained them; docs/models.md says on what, and how well they know data they have not seen.
"""

from pathlib import Path

PREFIX = "zoo:"


def names() -> list[str]:
    """The names of the models, in alphabetical order."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.json"))


def path(name: str) -> Path:
    """The directory of a model. ValueError: there is no model of that name."""
    if name not in names():
        raise ValueError(f"the zoo has no {name!r}, it has {', '.join(names())}")
    return Path(__file__).parent / name
