"""Time rbm_gibbs: `pytest benchmarks/test_rbm_gibbs.py`."""


def test_rbm_gibbs(case, name, run):
    run(case, name)
