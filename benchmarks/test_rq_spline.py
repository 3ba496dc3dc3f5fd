"""Time rq_spline: `pytest benchmarks/test_rq_spline.py`."""


def test_rq_spline(case, name, run):
    run(case, name)
