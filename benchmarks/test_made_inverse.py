"""Time made_inverse: `pytest benchmarks/test_made_inverse.py`."""


def test_made_inverse(case, name, run):
    run(case, name)
