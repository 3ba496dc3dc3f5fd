"""The types and constants for which tools/gpu_kernels.py compiles Triton kernels: those a user meets first.

Triton compiles a kernel for one set of both at a time.
"""

DRAW = {
    "out": "*fp32",
    "probability": "*fp64",
    "p_row_stride": "i64",
    "p_stride": "i64",
    "sample_ids": "*i64",
    "seed": "i64",
    "step": "i32",
    "n": "i64",
}
HALF_STEP = {
    **dict.fromkeys(("inputs", "outputs"), "*u8"),
    **dict.fromkeys(("means", "weight", "bias", "beta"), "*fp32"),
    "mask": "*u8",
    "sample_ids": "*i64",
    **dict.fromkeys(
        ("chains", "n_inputs", "n_outputs", "input_stride", "output_stride", "mask_stride"), "i32"
    ),
    "step": "i32",
    "seed": "i64",
}
BINARY_UNITS = {"STREAM": 19, "GAUSSIAN": False, "CLAMPED": False, "MEANS": False, "WIDEN": False}
TILE = {"CHAINS": 32, "UNITS": 64, "INPUTS": 32}
PLACES = [
    f"{x}_{y}" for x in ("q", "k", "v", "bias", "mask", "out") for y in ("batch", "head", "row", "column")
]
GRADIENTS = [f"{x}_{y}" for x in ("grad", "gq", "gk", "gv") for y in ("batch", "head", "row", "column")]
ATTENTION = {
    **dict.fromkeys(("q", "k", "v", "out", "grad_out"), "*fp32"),
    **dict.fromkeys(("bias", "lse", "grad_lse", "grad_q", "grad_bias", "grad_k", "grad_v"), "*fp32"),
    **dict.fromkeys(("query_starts", "key_starts", "sample_ids"), "*i64"),
    "mask": "*u8",
    **dict.fromkeys((*PLACES, *GRADIENTS), "i32"),
    **dict.fromkeys([f"{x}_{y}" for x in ("lse", "grad_lse") for y in ("batch", "head", "row")], "i32"),
    **dict.fromkeys(("queries", "keys", "group", "size", "value_size", "window"), "i32"),
    **dict.fromkeys(("scale", "softcap", "whole"), "fp32"),
    **dict.fromkeys(("seed", "threshold"), "i64"),
}
BFLOAT16 = ATTENTION | dict.fromkeys(("q", "k", "v", "out", "grad_out"), "*bf16")
CAUSAL = dict.fromkeys(("WINDOW", "SOFTCAP", "BIAS", "MASK", "PACKED", "KEEP", "WIDEN"), False)
CAUSAL |= {"CAUSAL": 1, "SIZE": 64, "VALUES": 64}
FORWARD, BACKWARD = CAUSAL | {"M": 64, "N": 32}, CAUSAL | {"M": 32, "N": 32}
NUMBERS = ("y", "x", "total", "residual", "grad", "grad_x")
NORM = {
    **dict.fromkeys((*NUMBERS, "weight", "bias"), "*fp32"),
    **dict.fromkeys(("means", "inverses", "grad_weight", "grad_bias"), "*fp32"),
    **dict.fromkeys(("rows", "width"), "i32"),
    "eps": "fp32",
}
LAYER, RMS = {"CENTRED": True}, {"CENTRED": False}
ROW, SUMS = {"SIZE": 1024}, {"ROWS": 64, "COLUMNS": 64}
ROPE = {
    **dict.fromkeys(("y", "x", "cos", "sin"), "*fp32"),
    **dict.fromkeys(("positions", "heads", "half"), "i32"),
}
PACKED = {
    **dict.fromkeys(("x", "data", "scale", "bias", "residual", "y"), "*fp32"),
    **dict.fromkeys(("rows", "inputs", "outputs"), "i32"),
}
PACKED_TILE = {"ACTIVATION": "silu", "BIAS": True, "RESIDUAL": True, "ROWS": 32, "OUTPUTS": 64, "INPUTS": 32}
PACKED_FORMATS = [
    (format, PACKED | {"data": data}, PACKED_TILE | {"FORMAT": format, "HEAD": head, "VALUES": values})
    for format, data, head, values in (
        ("float32", "*fp32", 0, 0),
        ("bfloat16", "*bf16", 0, 0),
        ("int8", "*i8", 0, 0),
        ("q4_0", "*u8", 2, 16),
        ("q4_1", "*u8", 4, 16),
        ("q8_0", "*u8", 2, 32),
    )
]
DECODE = {
    **dict.fromkeys(("out", "lse", "parts", "q", "keys", "values"), "*fp32"),
    **dict.fromkeys(("lengths", "query_starts"), "*i64"),
    "block_table": "*i32",
    **dict.fromkeys(("scale", "softcap"), "fp32"),
    **dict.fromkeys([f"{x}_{y}" for x in "kv" for y in ("page", "head", "key")], "i32"),
    **dict.fromkeys(("window", "tiles", "each", "table_width", "page", "splits", "size"), "i32"),
}
BFLOAT16_CACHE = DECODE | dict.fromkeys(("keys", "values"), "*bf16")
PAGES = {"GROUP": 3, "PACKED": True, "PAGED": True, "APART": True, "WINDOW": False, "SOFTCAP": False}
PAGES |= {"ROWS": 16, "WIDTH": 64, "KEYS": 64, "SPLIT": 512}
LOGITS = {
    **dict.fromkeys(("raw", "z", "log_probs"), "*fp32"),
    "settings": "*fp64",
    **dict.fromkeys(("sample_ids", "steps", "tokens"), "*i64"),
    "n": "i32",
    "seed": "i64",
}
LINEAR = {
    **dict.fromkeys(("x", "weight", "bias", "residual", "y"), "*fp32"),
    **dict.fromkeys(("rows", "inputs", "outputs"), "i32"),
}
LINEAR_TILE = {"ACTIVATION": "gelu", "BIAS": True, "RESIDUAL": True, "WIDEN": False}
LINEAR_TILE |= {"ROWS": 32, "OUTPUTS": 64, "INPUTS": 32}
COUPLING = {
    **dict.fromkeys(("y", "log_det", "x", "raw_params"), "*fp32"),
    **dict.fromkeys(("grad_x", "grad_params", "grad_y", "grad_log_det"), "*fp32"),
    "mask": "*u8",
    **dict.fromkeys(("rows", "width", "begin", "count"), "i32"),
}
EXPONENTIAL = {"MAP": "exp", "CLAMP": 2.0, "MIN_SCALE": 0.0, "INVERSE": True, "MASKED": True, "RUN": 1}
EXPONENTIAL |= {"SHIFT_FIRST": True, "ROWS": 1, "SIZE": 1024}
BOX = {"BINS": 8, "INVERSE": True, "TAIL": 0, "LEFT": -3.0, "RIGHT": 3.0, "BOTTOM": -3.0, "TOP": 3.0}
BOX |= {"X_MINIMUM": 6e-3, "Y_MINIMUM": 6e-3, "MIN_DERIVATIVE": 1e-3, "SCALE": 1.0, "CLIP": 0.0}
SPLINE = {
    **dict.fromkeys(("x_in", "raw_params", "y_out", "log_det_out"), "*fp32"),
    **dict.fromkeys(("grad_y", "grad_log_det", "grad_x", "grad_params"), "*fp32"),
    **dict.fromkeys(("columns", "parameters"), "i32"),
}
PIXELS = {
    **dict.fromkeys(("y", "x", "weight", "bias"), "*fp32"),
    **dict.fromkeys(("channels", "pixels", "image_stride", "channel_stride", "pixel_stride"), "i32"),
}
PIXELS_TILE = {"BIAS": True, "OUTPUTS": 32, "PIXELS": 64, "INPUTS": 32}
CONVOLUTION = {
    **dict.fromkeys(("y", "x", "weight", "bias", "slope"), "*fp32"),
    "slope": "fp32",
    **dict.fromkeys(("pixels", "height", "width", "inputs", "outputs", "bias_stride"), "i32"),
    **dict.fromkeys([f"{x}_{y}" for x in "xy" for y in ("image", "row", "column", "channel")], "i32"),
    **dict.fromkeys([f"weight_{x}" for x in ("output", "input", "row", "column")], "i32"),
}
WINDOW_TILE = {"TAPS": 3, "BIAS": True, "ACTIVATION": "relu", "PIXELS": 64, "OUTPUTS": 32, "INPUTS": 32}
MADE = {
    **dict.fromkeys(("z", "log_det_out", "weight", "bias", "context", "seen", "kept"), "*fp32"),
    **dict.fromkeys(("table", "firsts", "numbers"), "*i64"),
    **dict.fromkeys(("rows", "features", "parameters", "layers", "ranks", "steps", "columns"), "i32"),
    **dict.fromkeys(("seen_width", "kept_width", "output"), "i32"),
}
MADE_TILE = {"ACTIVATION": "relu", "MAP": "exp", "CLAMP": 1.0, "MIN_SCALE": 0.0, "SIDE": 16, "FIELDS": 12}
WIDE = ("attention_kernel", "queries_kernel", "keys_kernel", "attend_kernel", "convolution_kernel")
LAUNCHED = {  # otherwise than with 4 warps
    **dict.fromkeys((*WIDE, "sample_kernel"), 8),
    **dict.fromkeys(("spline_kernel", "spline_backward_kernel"), 2),
}
TRITON = [
    ("attention", "attention_kernel", "float32", ATTENTION, FORWARD),
    ("attention", "attention_kernel", "bfloat16", BFLOAT16, FORWARD | {"N": 64}),
    ("attention_backward", "queries_kernel", "float32", ATTENTION, BACKWARD),
    ("attention_backward", "queries_kernel", "bfloat16", BFLOAT16, BACKWARD),
    ("attention_backward", "keys_kernel", "float32", ATTENTION, BACKWARD | {"M": 16}),
    ("attention_backward", "keys_kernel", "bfloat16", BFLOAT16, BACKWARD),
    ("random", "draw_kernel", "uniform", DRAW, {"KIND": 1, "STREAM": 0, "BLOCKS": 256}),
    ("random", "draw_kernel", "normal", DRAW, {"KIND": 2, "STREAM": 0, "BLOCKS": 256}),
    ("rbm_gibbs", "half_step_kernel", "float32", HALF_STEP, BINARY_UNITS | TILE),
    ("rbm_gibbs", "half_step_kernel", "bfloat16", HALF_STEP | {"weight": "*bf16"}, BINARY_UNITS | TILE),
    ("decode_attention", "attend_kernel", "float32", DECODE, PAGES),
    ("decode_attention", "attend_kernel", "bfloat16 cache", BFLOAT16_CACHE, PAGES),
    ("decode_attention", "merge_kernel", "float32", DECODE, {"WIDTH": 64}),
    ("norm_rows", "normalize_kernel", "layer_norm", NORM, LAYER | ROW | {"BIAS": True, "RESIDUAL": True}),
    ("norm_rows", "differentiate_kernel", "layer_norm", NORM, LAYER | ROW),
    ("norm_rows", "sum_rows_kernel", "layer_norm", NORM, LAYER | SUMS),
    ("norm_rows", "normalize_kernel", "rms_norm", NORM, RMS | ROW | {"BIAS": False, "RESIDUAL": True}),
    ("norm_rows", "differentiate_kernel", "rms_norm", NORM, RMS | ROW),
    ("norm_rows", "sum_rows_kernel", "rms_norm", NORM, RMS | SUMS),
    *(("packed_linear", "packed_linear_kernel", *variant) for variant in PACKED_FORMATS),
    ("rope", "rope_kernel", "halves", ROPE, {"INTERLEAVED": False, "HEADS": 4, "HALF": 32}),
    ("rope", "rope_kernel", "interleaved", ROPE, {"INTERLEAVED": True, "HEADS": 4, "HALF": 32}),
    ("sample_logits", "sample_kernel", "float32", LOGITS, {"STREAM": 30, "BLOCK": 512}),
    ("linear", "linear_kernel", "float32", LINEAR, LINEAR_TILE),
    ("linear", "linear_kernel", "bfloat16 weights", LINEAR | {"weight": "*bf16"}, LINEAR_TILE),
    ("affine_coupling", "transform_kernel", "exp", COUPLING, EXPONENTIAL),
    ("affine_coupling", "differentiate_kernel", "affine_coupling, exp", COUPLING, EXPONENTIAL),
    ("rq_spline", "spline_kernel", "8 bins", SPLINE, BOX | {"SUM": True, "ELEMENTS": 64}),
    ("rq_spline", "spline_backward_kernel", "8 bins", SPLINE, BOX | {"SUM": True, "ELEMENTS": 64}),
    ("invertible_linear", "product_kernel", "float32", PIXELS, PIXELS_TILE),
    ("conv_net", "convolution_kernel", "3 x 3, float32", CONVOLUTION, WINDOW_TILE),
    ("conv_net", "convolution_kernel", "1 x 1, float32", CONVOLUTION, WINDOW_TILE | {"TAPS": 1}),
    ("made_inverse", "made_kernel", "affine, float32", MADE, MADE_TILE | BOX | {"SPLINE": False}),
    ("made_inverse", "made_kernel", "spline, float32", MADE, MADE_TILE | BOX | {"SPLINE": True}),
]
