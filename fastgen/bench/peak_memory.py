"""Peak memory of one call, in a process of its own.

What is counted: by how much the resident set of the process rose above where it stood when the call began, at
its highest. That holds temporaries, the result, and whatever any library allocates, be it torch, NumPy, XLA
or native code; it does not hold the inputs. The call has run once before, so code, thread stacks and memory
that a library keeps for its next call are not counted. The system counts pages in batches: half a MiB means
nothing. It needs Linux, which can reset the high-water mark of a process; elsewhere nothing is reported.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

from fastgen.bench.case import Call

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SUPPORTED = _CLEAR.exists()


def peak_mib(call: Call) -> float | None:
    """Return the peak of the second run of `call` in MiB above what was held before; None off Linux."""
    if not SUPPORTED:
        return None
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _resident_kib("VmRSS")
    kept = call()
    peak = _resident_kib("VmHWM")
    del kept
    return max(peak - before, 0) / 1024


def _resident_kib(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def in_subprocess(
    op: str, case: str, *, device: str, threads: int, isa: str | None
) -> dict[str, float | None]:
    """Return the peak in MiB of fastgen and of each peer of one case; empty where it cannot be measured."""
    if not SUPPORTED or device != "cpu":
        return {}
    arguments = [op, case, "--threads", str(threads)] + (["--isa", isa] if isa else [])
    # Large blocks then come from the system and go back to it at once: the resident set follows allocations.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", "from fastgen.bench import peak_memory; peak_memory.main()", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the memory of {op} {case} could not be measured: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure one case in this process and print {implementation: MiB} as JSON."""
    from fastgen.bench import cases, runner  # noqa: PLC0415 (the runner calls this module)

    parser = argparse.ArgumentParser(description="peak memory of one benchmark case")
    parser.add_argument("op")
    parser.add_argument("case")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--isa")
    given = parser.parse_args()
    case = next(case for case in cases.table([given.op]) if case.name == given.case)
    with runner.conditions("cpu", given.threads, given.isa):
        builds = {"fastgen": case.fastgen} | {
            peer.name: peer.build for peer in case.peers if not peer.missing()
        }
        print(json.dumps({name: peak_mib(build(case.inputs("cpu"))) for name, build in builds.items()}))
