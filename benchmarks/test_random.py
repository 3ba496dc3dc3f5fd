"""Time the random numbers: `pytest benchmarks/test_random.py`."""


def test_random(case, name, run):
    run(case, name)
