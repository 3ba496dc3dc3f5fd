"""Time rms_norm: `pytest benchmarks/test_rms_norm.py`."""


def test_rms_norm(case, name, run):
    run(case, name)
