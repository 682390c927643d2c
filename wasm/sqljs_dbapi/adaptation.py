"""What Python's values become in SQLite, and what SQLite's become in Python: adapters and converters, as in sqlite3."""

import datetime
import time
from collections.abc import Callable, Sequence
from typing import Any
from warnings import warn

from sqljs_dbapi.errors import ProgrammingError

Date = datetime.date
Time = datetime.time
Timestamp = datetime.datetime
Binary = memoryview


def DateFromTicks(ticks: float) -> datetime.date:  # noqa: N802
    """The local date of a time in seconds since the epoch."""
    return Date(*time.localtime(ticks)[:3])


def TimeFromTicks(ticks: float) -> datetime.time:  # noqa: N802
    """The local time of day of a time in seconds since the epoch."""
    return Time(*time.localtime(ticks)[3:6])


def TimestampFromTicks(ticks: float) -> datetime.datetime:  # noqa: N802
    """The local date and time of a time in seconds since the epoch."""
    return Timestamp(*time.localtime(ticks)[:6])


class PrepareProtocol:
    """What an object is asked to conform to when it is bound to a parameter."""


adapters: dict[tuple[type, type], Callable[[Any], Any]] = {}
converters: dict[str, Callable[[bytes], Any]] = {}
plain: set[type] = {int, bool, float, str, bytes, bytearray, memoryview, type(None)}
"""Types whose values travel as they are: those that SQLite can hold, without those that have an adapter."""


def register_adapter(type_: type, adapter: Callable[[Any], Any], /) -> None:
    """Have `adapter` called with each parameter of exactly this type, and its result bound."""
    adapters[type_, PrepareProtocol] = adapter
    plain.discard(type_)


def register_converter(typename: str, converter: Callable[[bytes], Any], /) -> None:
    """Have `converter` called with the bytes of each value of this declared type; see `detect_types` of `connect`."""
    converters[typename.upper()] = converter


_MISSING = object()


def adapt(value: Any, protocol: type = PrepareProtocol, alternative: Any = _MISSING, /) -> Any:
    """The value in whose place something SQLite can hold is bound.

    Raises ProgrammingError when there is none and no alternative was given.
    """
    if (adapter := adapters.get((type(value), protocol))) is not None:
        return adapter(value)
    for owner, name, argument in ((protocol, "__adapt__", value), (value, "__conform__", protocol)):
        if (method := getattr(owner, name, None)) is not None:
            adapted = method(argument)
            if adapted is not None:
                return adapted
    if alternative is not _MISSING:
        return alternative
    raise ProgrammingError("can't adapt")


def bindable(values: Sequence[Any], names: Sequence[str | None]) -> list[Any]:
    """Parameters as they can travel.

    Raises ProgrammingError for one that SQLite cannot hold.
    """
    return [_bindable(adapt(value, PrepareProtocol, value), index, names) for index, value in enumerate(values)]


_HELD = frozenset(plain)


def _bindable(value: Any, index: int, names: Sequence[str | None]) -> Any:
    if type(value) in _HELD:
        return value
    if isinstance(value, int):
        return int.__index__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    try:
        return memoryview(value)
    except TypeError:
        name = names[index] if index < len(names) else None
        which = str(index + 1) if name is None or name[0] == "?" else f":{name[1:]}"
        raise ProgrammingError(f"Error binding parameter {which}: type '{type(value).__name__}' is not supported") from None


def _deprecated(what: str) -> None:
    warn(
        f"The default {what} is deprecated as of Python 3.12; see the sqlite3 documentation for suggested replacement recipes",
        DeprecationWarning,
        stacklevel=4,
    )


def _adapt_date(value: datetime.date) -> str:
    _deprecated("date adapter")
    return value.isoformat()


def _adapt_datetime(value: datetime.datetime) -> str:
    _deprecated("datetime adapter")
    return value.isoformat(" ")


def _convert_date(value: bytes) -> datetime.date:
    _deprecated("date converter")
    return datetime.date(*map(int, value.split(b"-")))


def _convert_timestamp(value: bytes) -> datetime.datetime:
    _deprecated("timestamp converter")
    day, clock = value.split(b" ")
    seconds, _, fraction = clock.partition(b".")
    microsecond = int(fraction.decode().ljust(6, "0")[:6]) if fraction else 0
    hour, minute, second = map(int, seconds.split(b":"))
    return datetime.datetime.combine(datetime.date(*map(int, day.split(b"-"))), datetime.time(hour, minute, second, microsecond))


register_adapter(datetime.date, _adapt_date)
register_adapter(datetime.datetime, _adapt_datetime)
register_converter("date", _convert_date)
register_converter("timestamp", _convert_timestamp)
