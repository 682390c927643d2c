"""Consumers that die: consumer.py ADDRESS KIND NAME LIVES.

Forks one process after another, each of which handles events until it is killed, by SIGKILL: by itself, between an effect and its
acknowledgement or right after the commit, or by this one, at any moment. Prints how many were killed each way.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ruv_swarm_store import Event, Store, UnitOfWork

LEASE = 0.15


class Totals:
    """How many events there are of each type."""

    name = "totals"
    version = 1

    def __init__(self, after_effect: Callable[[], object] = lambda: None) -> None:
        self.after_effect = after_effect

    def apply(self, work: UnitOfWork, event: Event, slot: str) -> None:
        key = f"{slot}/{event.event_type}"
        work.config.set(key, (work.config.get(key) or 0) + 1)
        self.after_effect()

    def clear(self, work: UnitOfWork, slot: str) -> None:
        for key in work.config.prefix(f"{slot}/"):
            work.config.delete(key)
        work.metrics.record("cleared", 1)
        self.after_effect()


def record(work: UnitOfWork, event: Event) -> None:
    """An effect in the store that tells which event it is of."""
    work.metrics.record("effect", event.position)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("alive")


def live(address: str, kind: str, name: str, chances: random.Random) -> None:
    """Handles events until there are none, or until it dies."""

    def perhaps_die() -> None:
        if chances.random() < (0.04 if kind == "projection" else 0.08):  # a build must be done now and then
            die()
        if chances.random() < 0.1:
            time.sleep(chances.uniform(0, 0.004))

    def handler(work: UnitOfWork, event: Event) -> None:
        record(work, event)
        perhaps_die()

    with Store.open(address) as store:
        rounds: dict[str, Callable[[], Any]] = {
            "subscription": lambda: store.events.subscribe("s").handle(handler, limit=chances.randint(1, 4)),
            "group": lambda: store.events.group("g", max_attempts=10**6).handle(name, handler, limit=3, lease=LEASE),
            "projection": lambda: store.events.project(Totals(perhaps_die)).rebuild(batch=chances.randint(2, 9)),
        }
        while rounds[kind]():
            perhaps_die()
            if kind == "projection" and chances.random() < 0.5:
                break


def main() -> None:
    address, kind, name, lives = *sys.argv[1:4], int(sys.argv[4])
    chances = random.Random(f"{kind} {name}")
    ends = {"by itself": 0, "from outside": 0, "alive": 0}
    for life in range(lives):
        child = os.fork()
        if not child:
            try:
                live(address, kind, name, random.Random(f"{kind} {name} {life}"))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        killed = chances.random() < 0.5
        deadline = time.monotonic() + (chances.uniform(0.01, 0.15) if killed else 60)
        while not (done := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.0005)
        by_itself = bool(done[0])
        if not done[0]:
            os.kill(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
        assert os.WIFSIGNALED(done[1]) or done[1] == 0, "a consumer failed"
        ends["alive" if done[1] == 0 else "by itself" if by_itself else "from outside"] += 1
    print(ends["by itself"], ends["from outside"], ends["alive"])


if __name__ == "__main__":
    main()
