"""What a finished run found, printed. It was checked before."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ruv_swarm_store.demo.outcome import Finished

MODULES = 10
"""Most imported modules listed."""


def report(done: Finished, console: Console, look: str) -> None:
    """Prints the report; `look` is the command that shows the store it came from."""
    totals, effort = done.totals, done.effort
    console.print()
    _say(console, Text.assemble(("The swarm and the recount agree", "bold green"), f" on {totals.files:,} files under {done.run.path}"))
    console.print()

    numbers = _table(console, "totals", "")
    for name in ("files", "lines", "words", "functions", "classes", "imports"):
        numbers.add_row(name, f"{getattr(totals, name):,}")
        if name == "files":
            numbers.add_row("  that do not parse", f"{totals.unparsable:,}")
    console.print(numbers)
    console.print()

    slowest = _table(console, "slowest files", "ms", "lines")
    for slow in done.slowest:
        slowest.add_row(Text(slow.path), f"{slow.milliseconds:,.1f}", f"{slow.lines:,}")
    console.print(slowest)
    console.print()

    imported = _table(console, "most imported modules", "files")
    for module, files in sorted(totals.modules.items(), key=lambda item: (-item[1], item[0]))[:MODULES]:
        imported.add_row(Text(module), f"{files:,}")
    console.print(imported)
    console.print()

    rate = effort.tasks / effort.seconds if effort.seconds else 0.0
    sessions = f" in {effort.sessions:,} sessions" if effort.sessions > 1 else ""
    _say(console, f"{effort.tasks:,} tasks by {effort.workers:,} workers{sessions} in {effort.seconds:.1f} s: {rate:,.0f} tasks/s")
    _say(console, f"Done again because their worker was lost: {effort.retries:,}")
    if (times := done.parse_time) is not None:
        percentiles = f"p50 {times.p50:.1f} ms, p95 {times.p95:.1f} ms, p99 {times.p99:.1f} ms"
        _say(console, f"Parsing a file took {times.avg:.1f} ms on average: {percentiles}")
    _say(console, f"The recount, one process beside them, took {done.recount.seconds:.1f} s")
    _say(console, f"Look at what the swarm left behind: {look}")


def _table(console: Console, first: str, *numbers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column(first, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _say(console: Console, text: str | Text) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
