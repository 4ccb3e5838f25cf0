"""Flips one bit of a part at a time, and looks whether anyone could be misled.

    python analyses/crash/bit_flips.py --flips 1000

A flip has to be named when the run starts (the part is set aside and its samples are computed
again), or to leave every value as it was (a bit of the zip file that carries nothing). Exit code 0:
no part that is silently different.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from kill_test import measured, samples_of

from probe.records.part_files import DamagedPartError, read_part, write_part
from probe.records.run_parts import RunParts


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--flips", type=int, default=1000)
    given, chance = arguments.parse_args(), random.Random(0)
    named = harmless = different = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "parts"
        folder.mkdir()
        path = write_part(measured(samples_of(4)), folder)
        whole, content = read_part(path), path.read_bytes()
        for _ in range(given.flips):
            flipped = bytearray(content)
            flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(flipped)
            try:
                RunParts(Path(name)).refresh(strict=True)
                same = read_part(path).identical(whole)  # pyright: ignore
                harmless, different = harmless + same, different + (not same)
            except DamagedPartError:
                named += 1
    print(
        f"{given.flips} flips: {named} named, {harmless} harmless, {different} silently different"
    )
    return different


if __name__ == "__main__":
    sys.exit(main())
