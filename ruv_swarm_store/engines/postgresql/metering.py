"""What is timed of PostgreSQL beside statements: commits, locks taken by name or row, and waiting for a connection.

BEGIN and SAVEPOINT travel with the statement after them, and are part of its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from ruv_swarm_store.engines.metering import Meter
from ruv_swarm_store.engines.postgresql.connections import LOCK, PostgreSQLExecutor, Session

POOL = "a free connection"
WAITED = 0.001
"""Seconds beyond which getting a connection has meant waiting for it."""
LOCKS = "what other transactions hold"
HELD_UP = 0.01
"""Seconds beyond which holding a row or a name has meant waiting for who held it: more than a round trip takes."""


def taking(take: Callable[[], Session], meter: Meter) -> Callable[[], Session]:
    """`take`, which tells a meter when it had to wait."""
    waits = meter.waits.keep(POOL)

    def timed() -> Session:
        started = perf_counter()
        try:
            return take()
        finally:
            if (seconds := perf_counter() - started) > WAITED:
                waits.add(seconds)
                waits.fold()

    return timed


def more(plain: type[Any], meter: Meter) -> Mapping[str, Any]:
    """What executors of that class do beside running statements."""
    committing = meter.named(plain.commit, lambda run: "COMMIT")
    unwinding = meter.named(plain.unwind, lambda run, level: "ROLLBACK TO" if level else "ROLLBACK")

    def commit(run: Any) -> None:
        (committing if run.depth == run._opened == 1 else plain.commit)(run)  # what ends further in is told the server later

    locks = meter.waits.keep(LOCKS)

    def waiting(take: Callable[..., None]) -> Callable[..., None]:
        def timed(run: Any, *given: Any) -> None:
            started = perf_counter()
            try:
                take(run, *given)
            finally:
                if (seconds := perf_counter() - started) > HELD_UP:
                    locks.add(seconds)
                    locks.fold()

        return timed

    def unwind(run: Any, level: int) -> None:
        (unwinding if run._opened > level else plain.unwind)(run, level)

    return {
        "commit": commit,
        "unwind": unwind,
        "hold": waiting(meter.named(plain.hold, _held)),
        "lock": waiting(meter.named(plain.lock, lambda run, name: LOCK)),
        "settle": waiting(meter.named(plain.settle, lambda run, table: f"LOCK TABLE {table.name} IN SHARE MODE")),
    }


def _held(run: PostgreSQLExecutor, statement: Any, *_: object) -> str:
    prepared = run._statements.get((statement, "hold"))
    return (prepared or run._prepare((statement, "hold"), statement.with_for_update(key_share=True))).sql
