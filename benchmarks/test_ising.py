"""Time ising: `pytest benchmarks/test_ising.py`."""


def test_ising(case, name, run):
    run(case, name)
