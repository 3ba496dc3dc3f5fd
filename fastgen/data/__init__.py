"""Real data sets that come with Python packages; nothing is downloaded."""

from fastgen.data.images import Images, digits, mnist5k

__all__ = ["Images", "digits", "mnist5k"]
