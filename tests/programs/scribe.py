"""Somebody who writes without end, until killed: scribe.py ADDRESS SEED JOURNAL.

Does anything at all to a swarm's state; JOURNAL is 1 to open the store with a journal. Prints `ready`, then a line for every
hundred operations.
"""

import random
import sys

from unruly import Unruly

from ruv_swarm_store import Store
from ruv_swarm_store.clock import system_clock


class Clock:
    """The system's, moved on by hand."""

    def __init__(self) -> None:
        self._ahead = 0

    def __call__(self) -> int:
        return system_clock() + self._ahead

    @property
    def now(self) -> int:
        return self()

    def advance(self, seconds: float) -> None:
        self._ahead += round(seconds * 1000)


def main(address: str, seed: str, journal: str) -> None:
    clock = Clock()
    with Store.open(address, clock=clock, journal=journal == "1") as store:
        one = Unruly(store, clock, random.Random(int(seed)))
        print("ready", flush=True)
        while True:
            for _ in range(100):
                one.step()
            print(one.done, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
