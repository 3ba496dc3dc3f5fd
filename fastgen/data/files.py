"""Data files that other packages carry: they are read in place, and their packages not imported."""

import importlib.util
from pathlib import Path


def path_in(wanted_by: str, package: str, file: str, *, install: str = "pip install 'fastgen[data]'") -> Path:
    """The path of a file inside an installed package; `install` says how to get that.

    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: it is, but without that file.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"{wanted_by} needs the package {package}: {install}")
    path = Path(found.origin).parent / file
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {wanted_by} needs another release of {package}")
    return path
