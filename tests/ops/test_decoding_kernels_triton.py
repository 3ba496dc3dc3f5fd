"""The Triton kernels of decode_attention, the norms and rope, compiled ahead of time for three GPUs."""

import pytest

from .triton_compiler import compiled, compiling, interpreted, passed_ahead_of_time

CAPABILITIES = [80, 90, 100]
NORMS = [("fp32", True), ("bf16", False), ("fp64", True)]
CACHES = [("fp32", 64, True), ("bf16", 128, False)]


@interpreted
@pytest.mark.slow
def test_triton_compiles_in_a_process_of_its_own():
    assert passed_ahead_of_time(__file__) == len(CAPABILITIES) * (len(NORMS) + len(CACHES) + 1)


@compiling
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype, centred", NORMS)
def test_norms_compile_ahead_of_time(dtype, centred, capability):
    pytest.importorskip("triton")
    from fastgen.kernels import norm_rows as kernels  # noqa: PLC0415

    wide = "fp64" if dtype == "fp64" else "fp32"
    rows, places = f"*{dtype}", f"*{wide}"
    forward = dict.fromkeys(("y", "total", "x"), rows) | dict.fromkeys(("weight", "bias"), places)
    forward |= {"residual": rows, "width": "i32", "eps": "fp32"}
    constants = {"CENTRED": centred, "BIAS": centred, "RESIDUAL": True, "SIZE": 1024}
    assert compiled(kernels.normalize_kernel, forward, constants, capability).asm["cubin"]
    backward = {"grad_x": rows, "means": places, "inverses": places, "grad": rows, "x": rows}
    backward |= {"weight": places, "width": "i32", "eps": "fp32"}
    constants = {"CENTRED": centred, "SIZE": 1024}
    assert compiled(kernels.differentiate_kernel, backward, constants, capability).asm["cubin"]
    sums = dict.fromkeys(("grad_weight", "grad_bias"), places) | {"grad": rows, "x": rows}
    sums |= {"means": places, "inverses": places, "rows": "i32", "width": "i32"}
    constants = {"CENTRED": centred, "ROWS": kernels.ROWS, "COLUMNS": kernels.COLUMNS}
    assert compiled(kernels.sum_rows_kernel, sums, constants, capability).asm["cubin"]


@compiling
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_rope_compiles_ahead_of_time(capability):
    pytest.importorskip("triton")
    from fastgen.kernels import rope as kernels  # noqa: PLC0415

    for dtype, interleaved in (("fp32", False), ("bf16", True)):
        types = {"y": f"*{dtype}", "x": f"*{dtype}", "cos": "*fp32", "sin": "*fp32"}
        types |= dict.fromkeys(("positions", "heads", "half"), "i32")
        constants = {"INTERLEAVED": interleaved, "HEADS": kernels.HEADS, "HALF": 32}
        assert compiled(kernels.rope_kernel, types, constants, capability).asm["cubin"]


@compiling
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype, width, apart", CACHES)
def test_decode_attention_compiles_ahead_of_time(dtype, width, apart, capability):
    pytest.importorskip("triton")
    from fastgen.kernels import decode_attention as kernels  # noqa: PLC0415

    floats = dict.fromkeys(("lse", "parts"), "*fp32")
    types = {"out": f"*{dtype}", **floats, **dict.fromkeys(("q", "keys", "values"), f"*{dtype}")}
    types |= {"lengths": "*i64", "query_starts": "*i64", "block_table": "*i32"}
    types |= {"scale": "fp32", "softcap": "fp32", "window": "i32"}
    strides = ("k_page", "k_head", "k_key", "v_page", "v_head", "v_key")
    types |= dict.fromkeys((*strides, "tiles", "each", "table_width", "page", "splits", "size"), "i32")
    constants = {
        "GROUP": 3, "PACKED": True, "PAGED": True, "APART": apart, "WINDOW": True, "SOFTCAP": True,
        "ROWS": 16, "WIDTH": width, "KEYS": kernels.block_of(width), "SPLIT": kernels.SPLIT,
    }  # fmt: skip
    built = compiled(kernels.attend_kernel, types, constants, capability, num_warps=kernels.WARPS)
    assert "mma" in built.asm["ptx"] and built.metadata.shared <= 160 * 1024
    merge = {"out": f"*{dtype}", **floats, "splits": "i32", "size": "i32"}
    assert compiled(kernels.merge_kernel, merge, {"WIDTH": width}, capability).asm["cubin"]
