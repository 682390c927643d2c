"""What was measured, as tables: one for speeds beside the floor, one for waking up. In the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

TITLE = "Speed as a share of the floor (1.00 = the plain driver doing the same; higher is better)"
HEAD = ("job", "on", "durability", "who", "ratio", "quartiles", "per second", "floor per second")
WAKE_TITLE = "Waking up in another process: from before the enqueue until the task is claimed there"
WAKE_HEAD = ("on", "durability", "wake-ups", "p50", "p99", "longest", "idle waiter")
LEFT = 4
"""Columns of words, in either table at most."""

Rows = list[tuple[str, ...]]


def speeds(measured: Sequence[dict[str, Any]]) -> Rows:
    """A row for each job of ours, and below it one for each peer at that job."""
    rows: Rows = []
    for info in measured:
        where = (info["job"], info["engine"], info["durability"])
        rows.append((*where, "ours", *_figures(info), f"{info['floor_per_second']:,}"))
        rows.extend((*where, peer["name"], *_figures(peer), f"{info['floor_per_second']:,}") for peer in info["peers"])
    return rows


def _figures(info: dict[str, Any]) -> tuple[str, ...]:
    low, high = info["quartiles"]
    return f"{info['ratio']:.2f}", f"{low:.2f} to {high:.2f}", f"{info['per_second']:,}"


def notes(measured: Sequence[dict[str, Any]]) -> list[str]:
    """What each floor does, and what is particular about the peers."""
    floors = {f"floor of {info['job']} ({info['engine']}): {info['floor']}": None for info in measured}
    peers = {
        f"{peer['name']}, {info['job']} ({info['engine']}): {peer['note']}": None
        for info in measured
        for peer in info["peers"]
        if peer["note"]
    }
    about = {f"{peer['name']} ({info['engine']}): {peer['about']}": None for info in measured for peer in info["peers"] if peer["about"]}
    return [*floors, *about, *peers]


def wakes(measured: Sequence[dict[str, Any]]) -> Rows:
    return [
        (
            info["engine"],
            info["durability"],
            str(info["count"]),
            *(f"{info[key]:.1f} ms" for key in ("p50", "p99", "longest")),
            f"{info['idle']:.1%} of a core",
        )
        for info in measured
    ]


def show(console: Console, title: str, head: Sequence[str], rows: Rows) -> None:
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for index, column in enumerate(head):
        table.add_column(column, justify="left" if index < LEFT and not rows[0][index][:1].isdigit() else "right", no_wrap=True)
    shown: tuple[str, ...] = ()
    for row in rows:
        if shown and row[0] != shown[0]:
            table.add_section()
        table.add_row(*row)
        shown = row
    console.print(table)


def markdown(head: Sequence[str], rows: Rows, words: int = LEFT) -> str:
    """A table whose first columns are words."""
    lines = [head, ["---" if index < words else "---:" for index in range(len(head))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
