"""csrc/cpu/team.h under the thread and the address sanitizer, and broken in ways that have to be seen."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEADER = (ROOT / "csrc/cpu/team.h").read_text()
REPORTS = "ThreadSanitizer: data race|not done once|not what was written"
# What makes a team of it that is none: a pattern, and what takes its place.
BROKEN = {
    "nobody waits": (r"\n    wait_for\(stage\);", ""),
    "work is not published": (
        r"done_\.fetch_add\(mine\)",
        "done_.fetch_add(mine, std::memory_order_relaxed)",
    ),
    "a part is taken twice": (
        r"taken\.compare_exchange_weak\(now, none \+ next \+ 1\)",
        "(taken.store(none + next + 1), true)",
    ),
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("g++"), reason="compiles a C++ program with g++"),
]


def run(folder, header, sanitizer, seconds=120):
    """tests/cpp/team.cpp with this text as team.h."""
    (folder / "cpu").mkdir()
    (folder / "cpu/team.h").write_text(header)
    flags = ["-std=c++20", "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    program = folder / "team"
    subprocess.run(
        ["g++", *flags, f"-I{folder}", ROOT / "tests/cpp/team.cpp", "-o", program, "-lpthread"], check=True
    )
    env = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([program], check=False, capture_output=True, text=True, timeout=seconds, env=env)


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_every_part_is_done_once_and_after_the_stage_before(sanitizer, tmp_path):
    done = run(tmp_path, HEADER, sanitizer)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 100_000


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_team_is_reported(how, tmp_path):
    header, found = re.subn(*BROKEN[how], HEADER)
    assert found == 1
    done = run(tmp_path, header, "thread")
    assert done.returncode != 0 and re.search(REPORTS, done.stderr)


def test_without_a_wake_those_who_sleep_never_go_on(tmp_path):
    header, found = re.subn(r"syscall\(SYS_futex, &team_\.finished_, FUTEX_WAKE", "if (false) \\g<0>", HEADER)
    assert found == 1
    with pytest.raises(subprocess.TimeoutExpired):
        run(tmp_path, header, "address", seconds=15)
