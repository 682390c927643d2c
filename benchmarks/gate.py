"""Fails when a hot path has become slower than `limits.toml` allows, as a share of the floor's speed in the same moment.

Store and floor take turns of a millisecond or two on files in memory, and what is compared is the time of either that a tenth of its turns
stay below. Beside busy neighbours most turns are interrupted, which side's more is chance, and a median wanders by half; a tenth is not
interrupted, and stays where it is by some hundredths. A path below its limit is measured again, and the best of three counts: a neighbour
leaves sooner or later, a regression does not. `--renew` writes down what is measured now.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import sqlite3
import statistics
import sys
import tempfile
import tomllib
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import paths

LIMITS = Path(__file__).with_name("limits.toml")
MEMORY = Path("/dev/shm")
ROWS = 60_000
OPERATIONS = 16
ROUNDS = 200
ATTEMPTS = 3


class Measured(NamedTuple):
    """The ratio of a path's best attempt, that of the middle one, and how many attempts there were."""

    ratio: float
    middle: float
    attempts: int


def measure(pair: paths.Pair, limit: float) -> Measured:
    """Tries until the ratio is at least `limit`."""
    tried: list[float] = []
    pair.take_turns()
    gc.collect()
    gc.freeze()
    try:
        while len(tried) < ATTEMPTS and not (tried and tried[-1] >= limit):
            ours, floor = zip(*(pair.take_turns() for _ in range(ROUNDS)), strict=True)
            tried.append(statistics.quantiles(floor, n=10)[0] / statistics.quantiles(ours, n=10)[0])
    finally:
        gc.unfreeze()
    return Measured(max(tried), statistics.median(tried), len(tried))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--renew", action="store_true", help="write what is measured now into limits.toml")
    renew: bool = parser.parse_args().renew
    found = tomllib.loads(LIMITS.read_text(encoding="utf-8"))
    share: float = found["share"]
    ratios: dict[str, float] = found["ratios"]
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="gate-", dir=MEMORY if MEMORY.is_dir() else None) as directory:
        chosen = [path for path in paths.PATHS if path.name in ratios]
        for noun, group in groupby(chosen, key=lambda path: path.filled_with):
            with paths.opened(Path(directory), noun, ROWS) as sides:
                for path in group:
                    measured[path.name] = measure(path.make(sides, OPERATIONS), math.inf if renew else ratios[path.name] * share)
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}; the ratio of our speed to the floor's:\n")
    print(f"{'path':26}{'ratio':>6}{'limit':>8}{'attempts':>10}")
    for name, one in measured.items():
        print(f"{name:26}{one.ratio:6.2f}{ratios[name] * share:8.2f}{one.attempts:10}")
    if missing := ratios.keys() - measured.keys():
        sys.exit(f"\n{LIMITS.name} has limits of paths that are not there: {', '.join(sorted(missing))}")
    if renew:
        head, _, _ = LIMITS.read_text(encoding="utf-8").partition("[ratios]")
        lines = "".join(f'"{name}" = {one.middle:.2f}\n' for name, one in measured.items())
        LIMITS.write_text(f"{head}[ratios]\n{lines}", encoding="utf-8")
    elif slow := [name for name, one in measured.items() if one.ratio < ratios[name] * share]:
        sys.exit(f"\nSlower than {LIMITS.name} allows, three times in a row: {', '.join(slow)}")


if __name__ == "__main__":
    main()
