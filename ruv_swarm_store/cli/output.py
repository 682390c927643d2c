"""How the commands print: rich tables on a terminal, plain aligned text into a pipe, JSON when asked for."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

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
    texts = [[_printable(value) for value in row] for row in rows]
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


def _printable(value: Any) -> str:
    """A value as text that stays on its line and does nothing to a terminal."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    """Prints a value as one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def say(text: str) -> None:
    """Prints a line as it is."""
    sys.stdout.write(f"{text}\n")


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
