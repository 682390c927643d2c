"""Where the time of a hot path goes: `python benchmarks/profiling.py claim`. See docs/benchmarks.md for how to read it."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
from pathlib import Path
from typing import Any

import paths

ROUNDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("path", choices=[path.name for path in paths.PATHS])
    parser.add_argument("--rows", type=int, default=100_000, help="rows in its table (default 100000)")
    parser.add_argument("--operations", type=int, default=200, help="in a round, of which there are 60 (default 200)")
    parser.add_argument("--lines", type=int, default=25, help="functions to show (default 25)")
    parser.add_argument("--save", type=Path, help="also keep the profile in this file, for a viewer")
    given = parser.parse_args()
    [path] = [path for path in paths.PATHS if path.name == given.path]
    with tempfile.TemporaryDirectory() as directory, paths.opened(Path(directory), path.filled_with, given.rows) as sides:
        pair = path.make(sides, given.operations)
        pair.take_turns()
        turns = zip(*(pair.take_turns() for _ in range(ROUNDS)), strict=True)
        ours, floor = (statistics.quantiles(times, n=10)[0] * 1e6 for times in turns)
        profile = cProfile.Profile()
        for _ in range(ROUNDS):
            prepared = pair.prepare()
            profile.runcall(pair.ours)
            pair.below(prepared)
    print(f"{path.name}: {ours:.1f} µs an operation, the floor {floor:.1f} µs, {ours - floor:.1f} µs between them\n")
    show(profile, ROUNDS * pair.operations, given.lines)
    if given.save is not None:
        profile.dump_stats(given.save)


def show(profile: cProfile.Profile, operations: int, lines: int) -> None:
    """The functions by what they take themselves; times are those under the profiler, which makes small functions look larger."""
    found: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    print(f"{'calls':>8}{'own µs':>9}{'all µs':>9}  function, by operation")
    for (file, line, name), (_, calls, own, whole, _) in sorted(found.items(), key=lambda item: -item[1][2])[:lines]:
        where = name if file == "~" else f"{name} ({Path(file).parent.name}/{Path(file).name}:{line})"
        print(f"{calls / operations:8.2f}{own / operations * 1e6:9.2f}{whole / operations * 1e6:9.2f}  {where}")


if __name__ == "__main__":
    main()
