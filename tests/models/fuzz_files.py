"""Read many damaged copies of a model's file, with little memory to spare; run as a program.

Usage: fuzz_files.py (gguf|safetensors) DIRECTORY MUTATIONS. Every copy must load and run, or be refused by a
ValueError; anything else ends the program with an error.
"""

import random
import resource
import shutil
import struct
import sys
from pathlib import Path

import torch

from fastgen.models import Transformer

SPARE = 600 * 2**20  # bytes of address space beyond what is in use; the files have some 50 thousand


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a byte, a number made huge or zero, a piece cut out, doubled, or the end lost."""
    found = bytearray(data)
    header = len(data) if rng.random() < 0.2 else min(len(data), 6000)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(header, len(found)) or 1)
        change = rng.randrange(6)
        if change == 0:
            found[at] = rng.randrange(256)
        elif change == 1:
            value = rng.choice(
                [0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, len(data), rng.getrandbits(64)]
            )
            found[at : at + 8] = struct.pack("<Q", value)
        elif change == 2:
            found[at : at + 4] = struct.pack("<I", rng.choice([0, 1, 2, 6, 8, 12, 30, 255, 2**31, 2**32 - 1]))
        elif change == 3:
            del found[at : at + rng.randint(1, 40)]
        elif change == 4:
            found[at:at] = found[at : at + rng.randint(1, 40)]
        elif rng.random() < 0.3:
            del found[at:]
        if not found:
            break
    return bytes(found)


def digits_changed(data: bytes, rng: random.Random) -> bytes:
    """A header of JSON with one number changed, so that it still is JSON."""
    size = struct.unpack("<Q", data[:8])[0]
    places = [i for i in range(8, 8 + size) if chr(data[i]).isdigit()]
    found = bytearray(data)
    found[rng.choice(places)] = ord(rng.choice("0123456789"))
    return bytes(found)


def main(kind: str, directory: Path, count: int) -> None:
    rng = random.Random(5)
    path = directory / ("model.gguf" if kind == "gguf" else "model.safetensors")
    data = path.read_bytes()
    original = Transformer.from_pretrained(path if kind == "gguf" else directory)
    target = directory / "damaged"
    target.mkdir()
    if kind != "gguf":
        shutil.copy(directory / "config.json", target)
    original.generate([3, 4, 5], max_new_tokens=1)  # all that is loaded late is loaded
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    refused = 0
    for i in range(count):
        change = digits_changed if kind == "safetensors" and i % 2 else mutated
        (target / path.name).write_bytes(change(data, rng))
        try:
            model = Transformer.from_pretrained(target / path.name if kind == "gguf" else target)
            if model.config["vocabulary"] > 5:
                model(torch.tensor([[3, 4, 5]]))
        except ValueError:
            refused += 1
        except FileNotFoundError:
            refused += kind == "gguf"
    print(f"{refused} of {count} refused")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
