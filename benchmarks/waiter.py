"""Another process that waits for tasks: told what to do line by line, answers line by line.

`python waiter.py ADDRESS DURABILITY AGENT`; then `wait`, which answers when a task is claimed, on the clock that all processes of
a machine share, or `idle SECONDS`, which answers with the share of a core that waiting in vain has taken.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ruv_swarm_store import Store


def main(address: str, durability: Any, agent: str) -> None:
    with Store.open(address, durability=durability) as store:
        assert store.tasks.wait(agent, timeout=0.1) is None  # everything is there that a first wait has to make
        print("ready", flush=True)
        for line in sys.stdin:
            what, _, seconds = line.strip().partition(" ")
            if what == "wait":
                task = store.tasks.wait(agent, timeout=30)
                now = time.monotonic()
                assert task is not None
                print(now, flush=True)
                store.tasks.complete(task)
            else:
                busy, started = time.process_time(), time.monotonic()
                assert store.tasks.wait(agent, timeout=float(seconds)) is None
                print((time.process_time() - busy) / (time.monotonic() - started), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
