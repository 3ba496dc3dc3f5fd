"""Time linear: `pytest benchmarks/test_linear.py`."""


def test_linear(case, name, run):
    run(case, name)
