"""How the cost of each hot path grows with the rows there are, on SQLite, beside the floor's; and the memory of a read of all events.

`python growth.py 10k 100k 1m 10m`. The databases of all sizes are there at once, and a round goes through them in turn, ours and the
floor's: a machine that slows down slows all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import paths
import report

from ruv_swarm_store import Store

SIZES = ("10k", "100k", "1m")
OPERATIONS = 200
"""In a round of a path, on each side: some ten milliseconds."""
ROOM = 800
"""Bytes a row may take, on both sides together, while its noun is measured."""
TITLE = "Microseconds an operation takes by the rows in its table (the floor's in brackets), and the factor from the fewest to the most"
MEMORY = "Reading all events by `events.walk()`, in a process of its own"


def number(text: str) -> int:
    """`10k` and `1m` as numbers."""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "")
    try:
        return int(digits) * {"": 1, "k": 1_000, "m": 1_000_000}[unit]
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rows, such as 10k or 1m") from None


def measure(directory: Path, sizes: Sequence[int], rounds: int, chosen: str, say: Callable[[str], None]) -> dict[str, Any]:
    """All that is to be known, as plain data."""
    count = max(1, min(OPERATIONS, sizes[0] // 5 // (rounds + 1)))
    found: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    for noun, group in groupby(paths.PATHS, key=lambda path: path.filled_with):
        wanted = [path for path in group if chosen in path.name]
        walking = noun == "events" and chosen in "walk"
        if not wanted and not walking:
            continue
        with ExitStack() as stack:
            began = time.perf_counter()
            sides = [stack.enter_context(paths.opened(directory, noun, rows)) for rows in sizes]
            size = sum(file.stat().st_size for file in directory.iterdir())
            say(f"{noun}: filled in {time.perf_counter() - began:.0f} s, {size / 1e9:.1f} GB")
            if walking:  # before anything is appended
                memory.extend(walked(Path(directory / f"events-{rows}.db")) for rows in sizes)
            for path in wanted:
                pairs = [path.make(side, count) for side in sides]
                found.append({"path": path.name, "sizes": growth(pairs, sizes, rounds)})
                say(f"  {path.name}: {found[-1]['sizes'][-1]['factor']:.2f}")
    return {"machine": machine(), "rounds": rounds, "paths": found, "memory": memory}


def growth(pairs: Sequence[paths.Pair], sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """For each size: what an operation costs on both sides, and how much more than at the first size in the same round."""
    for pair in pairs:
        pair.take_turns()
    gc.collect()
    gc.freeze()
    try:
        times = [[pair.take_turns() for pair in pairs] for _ in range(rounds)]
    finally:
        gc.unfreeze()
    return [
        {
            "rows": rows,
            "ours": round(statistics.median(row[index][0] for row in times) * 1e6, 2),
            "floor": round(statistics.median(row[index][1] for row in times) * 1e6, 2),
            "ratio": round(statistics.median(row[index][1] / row[index][0] for row in times), 3),
            "factor": round(statistics.median(row[index][0] / row[0][0] for row in times), 3),
            "floor_factor": round(statistics.median(row[index][1] / row[0][1] for row in times), 3),
        }
        for index, rows in enumerate(sizes)
    ]


def walked(database: Path) -> dict[str, Any]:
    """What a new process says of a read of all events."""
    done = subprocess.run([sys.executable, __file__, "--walk", str(database)], check=True, capture_output=True, text=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def walk(database: str) -> dict[str, Any]:
    """Reads all events; how many, in what time, and the most memory this process had after the first thousand and in the end."""
    with Store.open(database, read_only=True) as store:
        started, seen, first = time.perf_counter(), 0, 0.0
        for _ in store.events.walk():
            seen += 1
            if seen == 5_000:
                first = most_memory()
        return {
            "rows": seen,
            "seconds": round(time.perf_counter() - started, 2),
            "first_mb": round(first, 1),
            "mb": round(most_memory(), 1),
        }


def most_memory() -> float:
    """Megabytes this process had in memory at most."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone: what getrusage tells begins with the process it was forked from
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> str:
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}"


def tables(found: dict[str, Any]) -> str:
    """As Markdown."""
    parts = []
    if found["paths"]:
        sizes = [size["rows"] for size in found["paths"][0]["sizes"]]
        head = ("job", *(f"{rows:,}" for rows in sizes), "factor", "floor's factor")
        rows = [
            (
                path["path"],
                *(f"{size['ours']:,.1f} ({size['floor']:,.1f})" for size in path["sizes"]),
                f"{path['sizes'][-1]['factor']:.2f}",
                f"{path['sizes'][-1]['floor_factor']:.2f}",
            )
            for path in found["paths"]
        ]
        parts.append(f"{TITLE}:\n\n{report.markdown(head, rows, words=1)}")
    if found["memory"]:
        head = ("events", "seconds", "most memory", "of that after the first 5,000")
        rows = [
            (f"{one['rows']:,}", f"{one['seconds']:.1f}", f"{one['mb']:.1f} MB", f"{one['first_mb']:.1f} MB") for one in found["memory"]
        ]
        parts.append(f"{MEMORY}:\n\n{report.markdown(head, rows, words=0)}")
    return "\n".join([*parts, f"- {found['machine']}, {found['rounds']} rounds\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=number, help=f"rows, ascending (default {' '.join(SIZES)})")
    parser.add_argument("--rounds", type=int, default=11, help="rounds of each path (default 11)")
    parser.add_argument("-k", default="", metavar="NAME", help="only paths with this in their name; `walk` is the read of all events")
    parser.add_argument("--directory", type=Path, help="where the databases are made (default: the directory for temporary files)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--plots", type=Path, metavar="DIRECTORY", help="draw growth.png and growth.svg there")
    parser.add_argument("--walk", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.walk:
        print(json.dumps(walk(given.walk)))
        return
    sizes = sorted(given.sizes or map(number, SIZES))
    with tempfile.TemporaryDirectory(prefix="growth-", dir=given.directory) as name:
        if shutil.disk_usage(name).free < sum(sizes) * ROOM:
            parser.error(f"{name} has less than {sum(sizes) * ROOM / 1e9:.0f} GB free: give --directory, or smaller sizes")
        found = measure(Path(name), sizes, given.rounds, given.k, lambda line: print(line, file=sys.stderr, flush=True))
    print(tables(found))
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.markdown is not None:
        given.markdown.write_text(tables(found), encoding="utf-8")
    if given.plots is not None:
        import plots

        plots.growth(found, given.plots)


if __name__ == "__main__":
    main()
