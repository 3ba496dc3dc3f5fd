"""Real data sets that come with Python packages, nothing is downloaded; and toy densities in 2-D."""

from fastgen.data.images import Images, digits, mnist5k
from fastgen.data.tables import Table, breast_cancer, diabetes, wine
from fastgen.data.toys import TOYS, toy

__all__ = ["TOYS", "Images", "Table", "breast_cancer", "diabetes", "digits", "mnist5k", "toy", "wine"]
