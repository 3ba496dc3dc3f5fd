"""Time rope: `pytest benchmarks/test_rope.py`."""


def test_rope(case, name, run):
    run(case, name)
