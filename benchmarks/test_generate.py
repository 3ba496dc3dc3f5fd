"""Time whole language models: `pytest benchmarks/test_generate.py`."""


def test_generate(case, name, run):
    run(case, name)
