"""Time affine_coupling: `pytest benchmarks/test_affine_coupling.py`."""


def test_affine_coupling(case, name, run):
    run(case, name)
