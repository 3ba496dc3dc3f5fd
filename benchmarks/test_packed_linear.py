"""Time packed_linear: `pytest benchmarks/test_packed_linear.py`."""


def test_packed_linear(case, name, run):
    run(case, name)
