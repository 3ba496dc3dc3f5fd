"""The benchmark harness on toy cases and a clock of its own: no real time is asserted."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch
from bench_toy import FIELDS, LIMITS, right, run, toy

from fastgen.bench import cases as table_of_cases
from fastgen.bench import command, limits, matching, peak_memory, report, runner, threads, timing
from fastgen.bench.case import Match, Peer, Work, needs
from fastgen.bench.peers import torch_ising


class Clock:
    """A clock that only calls move, and the order in which they moved it."""

    def __init__(self):
        self.now = 0.0
        self.order = ""

    def __call__(self):
        return self.now

    def call(self, name, *durations):
        turns = iter(range(10**9))

        def run():
            self.order += name
            self.now += durations[next(turns) % len(durations)]

        return run


def test_runs_alternate_and_short_calls_are_repeated():
    clock = Clock()
    budget = timing.Budget(total_s=0.08, sample_s=4.0, min_pairs=6, max_pairs=6)
    found = timing.compare(clock.call("a", 1.0), clock.call("b", 4.0), budget, clock=clock)
    # Five calls of 1 s fill the 4 s aimed at, with a tenth to spare.
    assert clock.order.endswith("aaaaab" * 6)
    assert (found.a_ms, found.b_ms, found.ratio, found.pairs) == (1000.0, 4000.0, 4.0, 6)


def test_a_slow_first_call_does_not_decide_how_often_a_call_is_repeated():
    clock = Clock()
    durations = [9.0, *[1.0] * 99]
    repeats, once = timing.calibrate(clock.call("a", *durations), 4.0, clock)
    assert (repeats, once) == (5, 1.0)


def test_the_ratio_is_taken_pair_by_pair():
    # Both sides slow down together, by up to 16 times; each pair still shows 3.
    clock = Clock()
    budget = timing.Budget(total_s=0.0, sample_s=0.0, min_pairs=7, max_pairs=7)
    a = clock.call("a", 1, 1, 2, 4, 8, 16, 1, 2)
    b = clock.call("b", 3, 3, 6, 12, 24, 48, 3, 6)
    found = timing.compare(a, b, budget, clock=clock)
    assert (found.ratio, found.ratio_lo, found.ratio_hi) == (3.0, 3.0, 3.0)


def test_pairs_follow_the_budget_between_their_bounds():
    for total, pairs in ((1.0, 7), (26.0, 8), (1e6, 15)):
        clock = Clock()
        budget = timing.Budget(total_s=total, sample_s=1.0, min_pairs=7, max_pairs=15)
        found = timing.compare(clock.call("a", 1.0), clock.call("b", 2.0), budget, clock=clock)
        assert found.pairs == pairs


def test_rest_outlasts_a_thread_that_spins_whose_time_is_booked_only_at_ticks(monkeypatch):
    now, tick, spins_until = 0.0, 0.004, 0.1

    def sleep(seconds):
        nonlocal now
        now += seconds

    def process_time():
        return min(now, spins_until) // tick * tick

    clocks = SimpleNamespace(sleep=sleep, process_time=process_time, perf_counter=lambda: now)
    monkeypatch.setattr(timing, "time", clocks)
    timing.rest()
    assert spins_until <= now < 0.2
    spins_until = 9.0
    timing.rest()
    assert 0.3 <= now < 0.35  # it gives up


def test_median_interval_covers_as_often_as_it_says():
    draws = torch.randn(400, 21, generator=torch.Generator().manual_seed(3))
    covered = sum(low <= 0 <= high for _, low, high in map(timing.median_interval, draws.tolist()))
    assert 380 <= covered <= 398  # 95% at least; order statistics of 21 values cover 97.3%
    with pytest.raises(ValueError, match="at least 6 values, got 5"):
        timing.median_interval([1.0] * 5)


def test_median_interval_does_not_follow_one_outlier():
    assert timing.median_interval([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1000.0])[0] == 1.3


def test_a_right_peer_gets_times_and_all_fields():
    (row,) = run(right(), work=Work(items=4, item="numbers", bytes=32, draws=1))
    assert row.match is True and not row.failed
    assert row.ratio_lo <= row.ratio <= row.ratio_hi and row.fastgen_ms > 0 and row.peer_ms > 0
    assert set(dataclasses.asdict(row)) >= FIELDS
    assert row.limit == "copy bandwidth"  # 32 ns of copying against 10 ns of drawing
    assert row.limit_fraction == pytest.approx(32e-6 / row.fastgen_ms)
    assert row.rate == pytest.approx(4 / (1e6 * row.fastgen_ms)) and row.rate_unit == "numbers/ns"


@pytest.mark.parametrize(
    ("peer", "words"),
    [
        (Peer("eager wrong", lambda i: lambda: 2 * i["x"] + 1, matching.exact), "4 of 4 elements differ"),
        (Peer("eager short", lambda i: lambda: i["x"][:2], matching.exact), "(4,)"),
        (Peer("eager dtype", lambda i: lambda: 2 * i["x"].double(), matching.exact), "float64"),
        (Peer("broken", lambda i: lambda: i["y"], matching.exact), "broke down: KeyError: 'y'"),
    ],
)
def test_no_time_is_given_for_a_wrong_answer(peer, words, capsys):
    (row,) = run(peer)
    assert row.failed and words in row.note
    assert row.fastgen_ms is row.peer_ms is row.ratio is row.limit_fraction is row.rate is None
    line = report.terminal_line(row)
    assert "MISMATCH" in line and words in line


def test_a_wrong_answer_is_never_timed():
    calls = []
    run(Peer("eager wrong", lambda i: lambda: calls.append(1), lambda ours, theirs: Match(False, "differs")))
    assert len(calls) == 1


def test_an_absent_peer_is_a_row_that_says_what_to_install():
    absent = Peer(
        "nowhere", build=right().build, match=matching.exact, missing=needs("no_such_module_anywhere")
    )
    gone, there = run(absent, right())
    assert gone.match is None and not gone.failed and gone.ratio is None
    assert gone.note == "no_such_module_anywhere not installed: pip install 'fastgen[bench]'"
    assert "absent: no_such_module_anywhere" in report.terminal_line(gone)
    assert there.match is True


def test_checks_replace_the_timed_inputs_in_the_comparison_only():
    seen = []

    def build(inputs):
        seen.append(len(inputs["x"]))
        return lambda: 2 * inputs["x"]

    peer = Peer("eager", build, matching.exact)
    (row,) = run(peer, checks=lambda device: [{"x": torch.zeros(2)}, {"x": torch.zeros(3)}])
    assert row.match is True and seen == [2, 3, 4]


def test_statistical_match_sees_a_small_bias_and_passes_the_same_distribution():
    draw = torch.Generator().manual_seed(5)
    match = matching.statistical(mean=lambda x: x.mean(1), square=lambda x: (x * x).mean(1))
    ours = torch.randn(256, 1000, generator=draw)
    assert match([ours], [torch.randn(256, 1000, generator=draw)]).ok
    assert not match([ours], [torch.randn(256, 1000, generator=draw) + 0.02]).ok
    assert not match([ours], [1.02 * torch.randn(256, 1000, generator=draw)]).ok
    assert not match([ours], [torch.full((256, 1000), float("nan"))]).ok
    assert match([torch.ones(4, 2)], [torch.ones(4, 2)]).ok
    assert not match([torch.ones(4, 2)], [torch.full((4, 2), 2.0)]).ok


def test_close_allows_what_it_says_and_no_nan():
    inf, nan = float("inf"), float("nan")
    match = matching.close(rtol=0.1, atol=0.5)
    theirs = torch.tensor([0.0, 10.0, inf])
    assert match([theirs + torch.tensor([0.5, 1.5, 0.0])], [theirs]).ok
    assert match([torch.zeros(0)], [torch.zeros(0)]).ok
    for place, wrong in ((0, 0.51), (1, 11.51), (2, -inf), (2, 1e30), (0, nan)):
        ours = theirs.clone()
        ours[place] = wrong
        assert not match([ours], [theirs]).ok
    for length in (1, 3):  # NaN on both sides
        assert not match([torch.full((length,), nan)], [torch.full((length,), nan)]).ok
    assert not match([theirs], [theirs.double()]).ok and not match([theirs], [theirs[:2]]).ok


def test_rows_equal_counts_whole_chains():
    ours = [(torch.zeros(10, 3), torch.zeros(10, 2))]
    theirs = [(torch.zeros(10, 3), torch.zeros(10, 2))]
    theirs[0][0][4, 1] = theirs[0][1][4, 0] = theirs[0][1][7, 1] = 1
    assert matching.rows_equal(0.8)(ours, theirs) == Match(True, "8 of 10 chains equal bit for bit")
    assert not matching.rows_equal(0.9)(ours, theirs).ok


@pytest.fixture
def toy_table(monkeypatch):
    """Put toy cases, one small and one large, in the place of the table and the limits."""

    def put(*peers):
        small = dataclasses.replace(toy(*peers), quick=True)
        large = dataclasses.replace(toy(*peers), name="large")
        monkeypatch.setattr(
            table_of_cases,
            "table",
            lambda names=(), quick=None: [c for c in (small, large) if c.quick == quick],
        )
        monkeypatch.setattr(limits, "measure", lambda device, quick: LIMITS)

    return put


def test_command_quick(toy_table, tmp_path, capsys):
    toy_table(right())
    target = tmp_path / "new" / "bench.json"
    assert command.main(["--quick", "--threads", "1", "--json", str(target)]) == 0
    (row,) = json.loads(target.read_text())
    assert (row["case"], row["threads"], row["match"], row["peak_mb"]) == ("double of 4", 1, True, None)
    assert "double of 4" in capsys.readouterr().out


def test_command_exits_1_on_a_wrong_answer_and_still_writes_every_row(toy_table, tmp_path, capsys):
    toy_table(Peer("eager wrong", lambda i: lambda: i["x"] + 1, matching.exact), right())
    assert command.main(["--quick", "--threads", "1", "--json", str(tmp_path / "bench.json")]) == 1
    assert [row["match"] for row in json.loads((tmp_path / "bench.json").read_text())] == [False, True]
    assert "MISMATCH" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no benchmark for nothing; there are"),
        (["--threads", "0"], "threads must be between 1 and"),
        (["--threads", "100000"], "got 100000"),
        (["--isa", "mmx"], "mmx"),
        (["--device", "cpu2"], "device is 'cpu2', wanted cpu"),
    ],
)
def test_command_says_what_is_wrong(arguments, words, capsys):
    assert command.main([*arguments, "--quick"]) == 2
    assert words in capsys.readouterr().err


def test_command_refuses_an_unwritable_file_before_it_measures(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command.main(["--quick", "--json", str(tmp_path / "file" / "bench.json")]) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_threads_are_limited_and_given_back():
    before = (torch.get_num_threads(), os.environ.get("NPROC"), threads.available())
    with threads.limited_to(1):
        assert (torch.get_num_threads(), os.environ["NPROC"], threads.available()) == (1, "1", 1)
    assert (torch.get_num_threads(), os.environ.get("NPROC"), threads.available()) == before


@pytest.mark.skipif(
    not peak_memory.SUPPORTED, reason="the high-water mark of a process can be reset on Linux only"
)
def test_peak_memory_counts_temporaries_and_the_result():
    def call():
        temporary = torch.ones(64 * 2**18)
        return (temporary + 1)[:1].clone(), torch.ones(16 * 2**18)

    assert 127 <= peak_memory.peak_mib(call) <= 132  # the kernel counts pages in batches
    assert peak_memory.peak_mib(lambda: None) < 1


def test_limits_name_the_one_that_binds():
    assert LIMITS.binding(Work(1, "x", bytes=1e9, flops=2e10, draws=1e8)) == ("FMA rate", 2.0)
    assert LIMITS.binding(Work(1, "x")) is None


def test_every_op_of_the_table_has_small_and_large_cases_against_the_reference():
    for op in table_of_cases.ops():
        cases = table_of_cases.table([op])
        assert len({case.name for case in cases}) == len(cases)
        for case in cases:
            assert case.op == op
            assert len({peer.name for peer in case.peers}) == len(case.peers) > 0
        against = [case.quick for case in cases for peer in case.peers if peer.name == "reference"]
        # Whole models are held against the libraries alone.
        assert set(against) == ({True, False} if op not in ("loop", "generate") else set())


SMALL = [(case, peer) for case in table_of_cases.table(quick=True) for peer in case.peers]


@pytest.mark.parametrize(
    ("case", "peer"),
    [
        pytest.param(
            case,
            peer,
            id=f"{case.op}-{case.name}-{peer.name}",
            marks=[pytest.mark.slow] if peer.name.startswith("torch.compile") else [],
        )
        for case, peer in SMALL
    ],
)
def test_every_small_case_matches_its_peers(case, peer):
    if reason := peer.missing():
        pytest.skip(reason)
    with torch.inference_mode():
        torch.manual_seed(0)
        found = runner.check(case, peer, "cpu")
    assert found.ok, found.how


@pytest.mark.parametrize(
    ("op", "argument", "value"),
    [
        ("random", "p", 0.33),
        ("ising", "beta", 0.40),
        ("ising", "sweeps", 3),
        ("rbm_gibbs", "v_bias", torch.full((24,), -2.0)),
    ],
)
def test_the_comparison_of_small_cases_sees_another_distribution(op, argument, value):
    """What a peer gets differs a little from what fastgen gets: the match must fail."""
    case = next(case for case in reversed(table_of_cases.table([op], quick=True)) if case.checks is None)
    peer = next(peer for peer in case.peers if peer.name.startswith("eager"))
    changed = dataclasses.replace(peer, build=lambda inputs: peer.build(inputs | {argument: value}))
    with torch.inference_mode():
        torch.manual_seed(0)
        assert not runner.check(case, changed, "cpu").ok


class Elsewhere(torch.Tensor):
    """Stands for a tensor on a GPU: numpy takes it only once it is on the CPU."""

    def cpu(self):
        return self.as_subclass(torch.Tensor)

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(("op", "name"), [("rbm_gibbs", "scikit-learn"), ("ising", "thrml")])
def test_libraries_for_the_cpu_take_inputs_that_lie_on_a_gpu(op, name):
    case, peer = next(pair for pair in SMALL if pair[0].op == op and pair[1].name.startswith(name))
    if reason := peer.missing():
        pytest.skip(reason)
    inputs = case.check_inputs("cpu")[0]
    there = {k: x.as_subclass(Elsewhere) if isinstance(x, torch.Tensor) else x for k, x in inputs.items()}
    ours, theirs = (peer.unpack(peer.build(i)()) for i in (inputs, there))
    assert matching.exact([ours], [theirs]).ok


def test_sublattices_split_and_join():
    spins = torch.arange(2 * 4 * 6).reshape(2, 4, 6).to(torch.int8)
    even, odd = torch_ising.split(spins)
    assert even[0, :2].tolist() == [[0, 2, 4], [7, 9, 11]] and odd[0, :2].tolist() == [[1, 3, 5], [6, 8, 10]]
    assert torch.equal(torch_ising.join((even, odd)), spins)
