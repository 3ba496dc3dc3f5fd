"""Real data and a real language model that come with Python packages; and toy densities in 2-D."""

from fastgen.data.images import Images, digits, mnist5k
from fastgen.data.language_models import smollm2
from fastgen.data.tables import Table, breast_cancer, diabetes, wine
from fastgen.data.texts import Works, shakespeare
from fastgen.data.toys import TOYS, toy

__all__ = [
    "TOYS",
    "Images",
    "Table",
    "Works",
    "breast_cancer",
    "diabetes",
    "digits",
    "mnist5k",
    "shakespeare",
    "smollm2",
    "toy",
    "wine",
]
