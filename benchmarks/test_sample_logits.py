"""Time sample_logits: `pytest benchmarks/test_sample_logits.py`."""


def test_sample_logits(case, name, run):
    run(case, name)
