"""How the commands print: rich tables on a terminal, plain aligned text into a pipe, JSON when asked for."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.progress import TaskID

WIDE = 1_000_000
"""Columns of a pipe: nothing is ever wrapped or cut there."""
GAP = 3
"""Blanks between two columns."""
LEAST = 24
"""What a long column has to have."""


class _Trimmed(io.StringIO):
    """A stream without the blanks that tables leave at the ends of lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write("\n".join(line.rstrip(" ") for line in text.split("\n")))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def console() -> Console:
    """Standard output, as it is now."""
    if sys.stdout.isatty():
        return Console()
    return Console(file=_Trimmed(sys.stdout), width=WIDE, force_terminal=False, no_color=True)


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Sequence[str] = (), long: str = "", spare: Sequence[str] = ()
) -> None:
    """Prints rows under their column names.

    Those in `numbers` go to the right. On a terminal the `long` column is cut to what is left of the line, and the `spare` ones
    are left out, the first of them first, while that is too little. In a pipe everything is there in full.
    """
    texts = [[printable(value) for value in row] for row in rows]
    widths = {name: max([len(name), *(cell_len(row[index]) for row in texts)]) for index, name in enumerate(columns)}
    out = console()
    if not out.is_terminal:
        for row in (columns, *texts):
            sides = (
                f"{text:>{width}}" if name in numbers else f"{text:<{width}}"
                for text, (name, width) in zip(row, widths.items(), strict=True)
            )
            say("  ".join(sides).rstrip())
        return
    if long:
        widths = _fit(widths, out.width, long, spare)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name, width in widths.items():
        justify: JustifyMethod = "right" if name in numbers else "left"
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis", justify=justify)
    for row in texts:
        table.add_row(*(Text(row[columns.index(name)]) for name in widths))
    out.print(table)


def _fit(widths: dict[str, int], line: int, long: str, spare: Sequence[str]) -> dict[str, int]:
    """The columns that have room on a line, and their widths."""
    fixed = {name: width for name, width in widths.items() if name != long}
    for name in spare:
        if line - sum(fixed.values()) - GAP * len(fixed) >= min(LEAST, widths[long]):
            break
        del fixed[name]
    left = line - sum(fixed.values()) - GAP * len(fixed)
    return {name: max(1, min(left, width)) if name == long else width for name, width in widths.items() if name == long or name in fixed}


def printable(value: Any) -> str:
    """A value as text that stays on its line and does nothing to a terminal."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    """Prints a value as one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def say(text: str) -> None:
    """Prints a line as it is, but for what is no text in the name of a file."""
    sys.stdout.write(f"{text}\n".encode(errors="backslashreplace").decode())


def instant(milliseconds: int | None) -> str:
    """A time, in UTC to the millisecond."""
    if milliseconds is None:
        return ""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{milliseconds % 1000:03}Z"


def counted(number: int, what: str) -> str:
    """So many of something."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def span(milliseconds: int) -> str:
    """A length of time, roughly."""
    seconds = max(0, milliseconds) / 1000
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def compact(value: Any) -> str:
    """A JSON value on one line."""
    return "" if value is None else msgspec.json.encode(value).decode()


def size(bytes: int) -> str:
    """So many bytes, roughly."""
    return "1 byte" if bytes == 1 else decimal(bytes)


@contextmanager
def bytes_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal's error output while the block lasts; to be told of the bytes done, and of how many."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


@contextmanager
def steps_bars() -> Iterator[Callable[[str, str, int, int], None]]:
    """Bars on a terminal's error output, one for each step; to be told what was done to rows of which table, how many, and of how many."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    screen = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[table]}"),
    )
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        steps: dict[str, TaskID] = {}

        def report(step: str, table: str, done: int, total: int) -> None:
            if step not in steps:
                steps[step] = bars.add_task(step, total=None, table="")
            bars.update(steps[step], completed=done, total=total, table=table)

        yield report
