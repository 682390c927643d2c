"""The text of a statement with its parameters in it, as it is shown to a trace callback."""

from collections.abc import Sequence
from typing import Any

from sqljs_dbapi.statements import Statement


def expanded(statement: Statement, values: Sequence[Any]) -> str:
    """The statement as it would be written without parameters; one that is missing is NULL."""
    parts = []
    end = 0
    for placeholder in statement.placeholders:
        value = values[placeholder.number - 1] if placeholder.number <= len(values) else None
        parts += [statement.sql[end : placeholder.start], literal(value)]
        end = placeholder.end
    return "".join([*parts, statement.sql[end:]])


def literal(value: Any) -> str:
    """A value as SQL."""
    match value:
        case None:
            return "NULL"
        case bool() | int():
            return str(int(value))
        case float():
            return repr(value)
        case str():
            return "'" + value.replace("'", "''") + "'"
        case bytes() | bytearray() | memoryview():
            return f"x'{bytes(value).hex()}'"
    return "'" + str(value).replace("'", "''") + "'"
