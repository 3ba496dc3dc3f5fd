"""Time invertible_linear: `pytest benchmarks/test_invertible_linear.py`."""


def test_invertible_linear(case, name, run):
    run(case, name)
