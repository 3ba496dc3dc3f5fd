"""Time transformer: `pytest benchmarks/test_transformer.py`."""


def test_transformer(case, name, run):
    run(case, name)
