"""Time whole models: `pytest benchmarks/test_loop.py`."""


def test_loop(case, name, run):
    run(case, name)
