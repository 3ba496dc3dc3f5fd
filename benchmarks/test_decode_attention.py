"""Time decode_attention: `pytest benchmarks/test_decode_attention.py`."""


def test_decode_attention(case, name, run):
    run(case, name)
