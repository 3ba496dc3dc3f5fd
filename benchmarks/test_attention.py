"""Time attention: `pytest benchmarks/test_attention.py`."""


def test_attention(case, name, run):
    run(case, name)
