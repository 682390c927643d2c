"""Reads through a cache in one process while another writes as fast as it can: is anything ever shown that should not be any more?

    python tests/programs/stale.py DIRECTORY|URL [CHECKS] [PROBE] [own]

Each value that is read must be at least as new as what was committed `PROBE` seconds before the read began. With `own` a thread of the
reader's writes, too, beside what is read.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from typing import Any

from msgspec import Struct

from ruv_swarm_store import Store

KEYS = 8
MOST = 4_000_000
"""Commits that can be told of."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of it."""

    checks: int
    stale: int
    """Reads that showed less than they had to."""
    worst: float
    """Seconds that what was shown had been outdated for, at most, when the read began."""
    commits: int
    changes: int
    """How often a read showed something newer than the one before."""
    hits: int
    misses: int
    own: int
    seconds: float

    @property
    def share(self) -> float:
        """Of reads that were answered from memory."""
        return self.hits / (self.hits + self.misses)


def write(address: str, committed: Any, count: Any, stop: Any) -> None:
    """Sets one key after the other to ascending numbers, and tells when each was committed."""
    number = 0
    with Store.open(address) as store:
        while not stop.is_set() and number + 1 < MOST:
            number += 1
            store.config.set(str(number % KEYS), number)
            committed[number] = time.monotonic()  # the machine's: the same in every process
            count.value = number


def measure(address: str, checks: int, *, probe: float = 0.01, own: bool = False, pause: float = 0.0) -> Outcome:
    """Reads `checks` times."""
    context: Any = multiprocessing.get_context("spawn")
    committed = context.Array("d", MOST, lock=False)
    count, stop, ended = context.Value("q", 0, lock=False), context.Event(), threading.Event()
    writer = context.Process(target=write, args=(address, committed, count, stop), daemon=True)
    written = [0]

    def write_beside() -> None:
        while not ended.wait(0.002):
            store.config.set("own", written[0])
            written[0] += 1

    with Store.open(address) as store, store.config.cached(ttl=1e6, probe=probe) as cache:
        beside = threading.Thread(target=write_beside)
        writer.start()
        try:
            while not count.value:
                assert writer.is_alive()
                time.sleep(0.01)
            if own:
                beside.start()
            stale = changes = least = 0
            worst = 0.0
            shown = [0] * KEYS
            began = time.monotonic()
            for check in range(checks):
                key = check % KEYS
                now = time.monotonic()
                while least < count.value and committed[least + 1] + probe <= now:
                    least += 1
                wanted = least - (least - key) % KEYS  # the last number that this key was set to by then
                found = cache.get(str(key), 0)
                if found < wanted:
                    stale += 1
                newer = found + KEYS
                if newer <= count.value and committed[newer] < now:
                    worst = max(worst, now - committed[newer])
                if found > shown[key]:
                    changes += 1
                    shown[key] = found
                elif found < shown[key]:
                    stale += 1  # time goes back
                if pause:
                    time.sleep(pause)
            seconds = time.monotonic() - began
        finally:
            ended.set()
            stop.set()
            writer.join(10)
            if beside.ident is not None:
                beside.join()
        stats = cache.stats()
        return Outcome(
            checks=checks, stale=stale, worst=worst, commits=count.value, changes=changes, hits=stats.hits, misses=stats.misses,
            own=written[0], seconds=seconds,
        )  # fmt: skip


if __name__ == "__main__":
    place, *rest = sys.argv[1:]
    numbers = [argument for argument in rest if argument != "own"]
    if "://" not in place:
        place = os.path.join(place, "stale.db")  # noqa: PTH118
    outcome = measure(
        place, int(numbers[0]) if numbers else 100_000, probe=float(numbers[1]) if numbers[1:] else 0.01, own="own" in rest, pause=0.0001
    )
    print(outcome)
    print(f"answered from memory: {outcome.share:.1%}")
    sys.exit(outcome.stale > 0)
