"""Another process that does what the monitor is measured at: told what to do line by line, answers line by line.

`python monitored.py PATH on|off`, then `JOB COUNT`, which answers when that has been done so many times. The processes of a comparison do
nothing else: in one process the interpreter would specialise the code that both run for neither.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ruv_swarm_store import NewTask, Store

PAYLOAD = {"url": "https://example.com/a/page", "depth": 3, "tags": ["news", "sport"]}


def main(path: str, monitor: str, tasks: str) -> None:
    with Store.open(path) as store:
        store.agents.register("bench", id="worker")
        for start in range(0, int(tasks), 50_000):
            store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, index % 10) for index in range(min(50_000, int(tasks) - start)))
        if monitor == "on":
            store.monitor.start()
        jobs = {"claim": claim, "get": get, "unit": unit}
        print("ready", flush=True)
        total = 0
        for line in sys.stdin:
            job, count = line.split()
            jobs[job](store, int(count))
            total += int(count)
            print("done", flush=True)
        counted = sum(row.count for row in store.monitor.snapshot().operations if row.name in ("tasks.claim", "tasks.get", "transaction"))
        assert counted == (total if monitor == "on" else 0)


def claim(store: Store, count: int) -> None:
    claim: Callable[[str], Any] = store.tasks.claim
    for _ in range(count):
        assert claim("worker") is not None


def get(store: Store, count: int) -> None:
    id = store.tasks.query().limit(1).one().id
    get = store.tasks.get
    for _ in range(count):
        get(id)


def unit(store: Store, count: int) -> None:
    for number in range(count):
        with store.transaction() as work:
            work.config.set("k", number)
            work.metrics.record("m", number)


if __name__ == "__main__":
    main(*sys.argv[1:])
