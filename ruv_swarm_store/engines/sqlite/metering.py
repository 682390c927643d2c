"""What is timed of SQLite beside statements: the ends of transactions, and waiting for who else writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from ruv_swarm_store.engines.metering import Meter
from ruv_swarm_store.engines.sqlite.connections import Writer
from ruv_swarm_store.timings import BATCH, Timings

THREADS = "other threads' writes"
PROCESSES = "other processes' writes"


def more(plain: type[Any], meter: Meter) -> Mapping[str, Any]:
    """What executors of that class do beside running statements."""
    if not issubclass(plain, Writer):
        return {}
    busy = meter.waits.keep(PROCESSES)

    def patiently(run: Any, error: Exception, attempt: Callable[[], Any]) -> Any:
        started = perf_counter()
        try:
            return plain._patiently(run, error, attempt)
        finally:
            busy.add(perf_counter() - started)
            busy.fold()

    return {
        "begin": meter.level(plain.begin, ("BEGIN IMMEDIATE", "SAVEPOINT"), 0),
        "commit": meter.level(plain.commit, ("COMMIT", "RELEASE"), 1),
        "unwind": meter.named(plain.unwind, lambda run, level: "ROLLBACK TO" if level else "ROLLBACK"),
        "_patiently": patiently,
    }


class TimedLock:
    """A lock that tells how long threads wait for it. It is another's, who may have taken it before."""

    __slots__ = ("__exit__", "_note", "acquire", "plain", "release")

    __exit__: Callable[..., None]
    """The other's own: `with` finds it in the slot."""

    def __init__(self, plain: Any, meter: Meter) -> None:
        self.plain = plain
        self.__exit__ = plain.__exit__
        self.acquire = plain.acquire
        self.release = plain.release
        self._note: Timings = meter.waits.keep(THREADS)

    def __enter__(self) -> bool:
        if not self.acquire(False):
            started = perf_counter()
            self.acquire()
            try:
                note = self._note
                note.add(perf_counter() - started)
                if len(note.pending) >= BATCH:
                    note.fold()
            except BaseException:  # an interrupt: nobody would let go of it
                self.release()
                raise
        return True
