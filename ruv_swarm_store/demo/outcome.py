"""How a run ends: stopped, to go on later; or finished, and then checked before anybody hears of it."""

from __future__ import annotations

from msgspec import Struct, to_builtins

from ruv_swarm_store.demo.run import FAILED, FINISHED, Effort, Run, Slow
from ruv_swarm_store.demo.totals import Recount, Totals
from ruv_swarm_store.demo.verification import Mismatch, verify
from ruv_swarm_store.demo.work import PARSE_TIME
from ruv_swarm_store.metrics import Aggregate
from ruv_swarm_store.store import Store


class Finished(Struct, frozen=True):
    """A run that came to its end and was found right."""

    run: Run
    totals: Totals
    recount: Recount
    slowest: list[Slow]
    effort: Effort
    parse_time: Aggregate | None


class Stopped(Struct, frozen=True):
    """A run that was asked to stop, and can be resumed."""

    signal: int
    """What asked; 0 where it was not a signal."""
    files: int
    known: int


def conclude(store: Store, run: Run, recount: Recount) -> Finished:
    """Checks a run that has nothing left to do, and notes how it ended. Raises `Mismatch` when it is not as it must be."""
    totals, slowest = run.add_up()
    try:
        verify(run, totals, recount)
    except Mismatch as mismatch:
        run.note(FAILED, {"reason": mismatch.message})
        raise
    effort = run.effort()
    run.note(FINISHED, {"totals": to_builtins(totals), "effort": to_builtins(effort)})
    parse_time = next(iter(store.metrics.aggregate(PARSE_TIME, since=run.began)), None)
    return Finished(run, totals, recount, slowest, effort, parse_time)
