"""Time conv_net: `pytest benchmarks/test_conv_net.py`."""


def test_conv_net(case, name, run):
    run(case, name)
