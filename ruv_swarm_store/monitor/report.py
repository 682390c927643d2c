"""What a monitor has counted, for people: text where it is printed, HTML in a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape

from ruv_swarm_store.monitor.figures import CacheFigures, Snapshot, Timing

ROWS = 20
"""Most rows of a table: those that took longest in total."""
WIDTH = 70
"""Characters of a statement that a table shows."""
HEAD = ("count", "errors", "per second", "p50", "p95", "p99", "max", "total")

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


class Report(str):
    """A snapshot as text; in a notebook, as tables."""

    __slots__ = ("snapshot",)

    snapshot: Snapshot
    """What it shows."""

    def __new__(cls, snapshot: Snapshot) -> Report:
        """The text of a snapshot."""
        report = super().__new__(cls, _text(snapshot))
        report.snapshot = snapshot
        return report

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(line)}</p>" for line in _facts(self.snapshot)]
        for head, rows in _tables(self.snapshot):
            cells = "".join(f"<th>{escape(title)}</th>" for title in head)
            lines = ["".join(_cell(index, value) for index, value in enumerate(row)) for row in rows]
            parts.append(f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody></table>")
        for title, plan in _plans(self.snapshot):
            parts.append(f"<details><summary>{escape(title)}</summary><pre>{escape(plan)}</pre></details>")
        return "\n".join(parts)

    def __repr__(self) -> str:
        return str(self)


def span(seconds: float) -> str:
    """Seconds in a unit that suits them, such as `1.2 ms`."""
    for factor, unit in ((1, "s"), (1_000, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1_000 else f"{seconds * factor:,.0f} {unit}"
    return f"{seconds * 1_000_000:.3g} µs"


def size(count: int) -> str:
    """Bytes in a unit that suits them, such as `1.2 MB`."""
    if count < 1_000:
        return f"{count} bytes"
    amount = float(count)
    for unit in ("kB", "MB", "GB"):
        amount /= 1_000
        if amount < 1_000:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1_000:.1f} TB"


def _cell(index: int, value: str) -> str:
    return f'<td style="text-align:{"right" if index else "left"}">{escape(value)}</td>'


def _facts(snapshot: Snapshot) -> Iterator[str]:
    yield f"{snapshot.address}, timed for {span(snapshot.seconds)}"
    if (found := snapshot.footprint) is not None:
        parts = [] if found.size is None else [f"database {size(found.size)}"]
        parts += [] if found.log is None else [f"log {size(found.log)}"]
        parts += [] if found.cache_hits is None else [f"{found.cache_hits:.1%} of pages found in memory"]
        yield ", ".join([*parts, f"{found.connections} connections"])


def _tables(snapshot: Snapshot) -> Iterator[Table]:
    if snapshot.operations:
        yield ("operation", *HEAD), [_timing(row.name, row) for row in snapshot.operations[:ROWS]]
    if snapshot.statements:
        shown = snapshot.statements[:ROWS]
        yield ("statement", *HEAD, "rows"), [(*_timing(_short(row.name), row), f"{row.rows:,}") for row in shown]
    if snapshot.waits:
        yield ("waited for", *HEAD), [_timing(row.name, row) for row in snapshot.waits]
    if snapshot.caches:
        yield ("cache", "hits", "misses", "hit ratio", "evictions", "invalidations", "size"), [_cache(row) for row in snapshot.caches]


def _timing(name: str, row: Timing) -> tuple[str, ...]:
    times = (row.p50, row.p95, row.p99, row.max, row.total)
    return name, f"{row.count:,}", f"{row.errors:,}", f"{row.per_second:,.1f}", *map(span, times)


def _cache(row: CacheFigures) -> tuple[str, ...]:
    return row.name, f"{row.hits:,}", f"{row.misses:,}", f"{row.ratio:.1%}", f"{row.evictions:,}", f"{row.invalidations:,}", f"{row.size:,}"


def _plans(snapshot: Snapshot) -> Iterator[tuple[str, str]]:
    for slow in snapshot.slow:
        at = datetime.fromtimestamp(slow.at / 1000, UTC).isoformat(sep=" ", timespec="milliseconds")
        failed = f", {slow.error}" if slow.error else ""
        sql = " ".join(slow.sql.split())
        yield f"slow: {span(slow.seconds)}, {slow.rows:,} rows{failed}, {at}", f"{sql}\n{slow.plan}".rstrip()


def _short(sql: str) -> str:
    line = " ".join(sql.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…"


def _text(snapshot: Snapshot) -> str:
    parts = ["\n".join(_facts(snapshot))]
    for head, rows in _tables(snapshot):
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        parts.append(
            "\n".join(
                "  ".join(
                    cell.rjust(width) if index else cell.ljust(width) for index, (cell, width) in enumerate(zip(row, widths, strict=True))
                )
                for row in (head, *rows)
            )
        )
    parts += ["\n    ".join([title, *plan.splitlines()]) for title, plan in _plans(snapshot)]
    return "\n\n".join(parts)
