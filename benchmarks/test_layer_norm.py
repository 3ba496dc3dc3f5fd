"""Time layer_norm: `pytest benchmarks/test_layer_norm.py`."""


def test_layer_norm(case, name, run):
    run(case, name)
