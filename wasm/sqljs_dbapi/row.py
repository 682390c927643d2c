"""A row whose values have names, as sqlite3.Row."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqljs_dbapi.cursor import Cursor


class Row:
    """A row of a result: a sequence, whose values are also found by the name of their column in any case.

    Made by being the `row_factory` of a cursor or connection.
    """

    __slots__ = ("_description", "_values")

    def __new__(cls, cursor: "Cursor", data: tuple[Any, ...], /) -> "Row":  # noqa: D102 - see the class
        from sqljs_dbapi.cursor import Cursor

        for name, value, kind in (("1", cursor, Cursor), ("2", data, tuple)):
            if not isinstance(value, kind):
                raise TypeError(f"Row() argument {name} must be {kind.__module__}.{kind.__name__}, not {type(value).__name__}")
        row = super().__new__(cls)
        row._values = data
        row._description = cursor.description or ()
        return row

    def __init__(self, cursor: "Cursor", data: tuple[Any, ...], /) -> None:
        self._values: tuple[Any, ...]
        self._description: tuple[tuple[Any, ...], ...]

    def keys(self) -> list[str]:
        """The names of the columns."""
        return [column[0] for column in self._description]

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, str):
            for index, column in enumerate(self._description):
                if column[0] == key or (column[0].isascii() and key.isascii() and column[0].lower() == key.lower()):
                    return self._values[index]
            raise IndexError("No item with that key")
        if not isinstance(key, int | slice):
            raise IndexError("Index must be int or string")
        return self._values[key]

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __hash__(self) -> int:
        return hash(self._description) ^ hash(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._description == other._description and self._values == other._values


Sequence.register(Row)  # pyright: ignore[reportAttributeAccessIssue] - it is an ABC
