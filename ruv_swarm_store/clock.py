"""Time and identity: integer milliseconds since the epoch (UTC), and ids that sort by them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, islice

from ruv_swarm_store.errors import InvalidValue

Clock = Callable[[], int]
"""Returns the present as milliseconds since 1970-01-01 UTC."""

Moment = int | datetime
"""An instant: milliseconds since the epoch, or an aware `datetime`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_random = random.Random()


def system_clock() -> int:
    """The machine's clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def milliseconds(moment: Moment, what: str = "time") -> int:
    """`moment` as milliseconds since the epoch. Raises `InvalidValue` for a naive datetime or another type."""
    if isinstance(moment, int) and not isinstance(moment, bool):
        if not -(2**63) <= moment < 2**63:
            raise InvalidValue(f"{what} {moment} does not fit 64 bits", hint="Give milliseconds since 1970-01-01 UTC")
        return moment
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidValue(f"{what} {moment!r} has no time zone", hint="Use an aware datetime, e.g. datetime.now(UTC)")
        return (moment - _EPOCH) // _MILLISECOND
    raise InvalidValue(f"{what} is a {type(moment).__name__}", hint="Give milliseconds since 1970-01-01 UTC or an aware datetime")


def duration(seconds: float, what: str) -> int:
    """A positive or zero span given in seconds, as whole milliseconds. Raises `InvalidValue` otherwise."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= 1e11:
        raise InvalidValue(f"{what} is {seconds!r}", hint="Give a number of seconds, zero or more")
    return round(seconds * 1000)


def new_id(now: int) -> str:
    """A new UUID version 7 (RFC 9562, section 5.7) as text.

    The first id of a millisecond is 48 bits of time and 73 random ones; those that follow in it are counted up from there
    (section 6.2, method 2), so the ids a process makes ascend.
    """
    global _series  # noqa: PLW0603 - the one series of this process
    series = _series
    if series[0] != now:
        series = _series = _new_series(now)
    return series[1] + next(series[2]).to_bytes(6, "big").hex()  # half the time of formatting the number


def new_ids(now: int, size: int) -> list[str]:
    """`size` new ids in ascending order; see `new_id`."""
    global _series  # noqa: PLW0603 - the one series of this process
    series = _series
    if series[0] != now:
        series = _series = _new_series(now)
    prefix = series[1]
    return [prefix + number.to_bytes(6, "big").hex() for number in islice(series[2], size)]


def _new_series(now: int) -> tuple[int, str, Iterator[int]]:
    # 48 bits of time, version 7, 12 random bits, variant 10, 14 random bits; then 48 bits that start in their lower half
    bits = _random.getrandbits(26)
    prefix = f"{now >> 16 & 0xFFFFFFFF:08x}-{now & 0xFFFF:04x}-7{bits >> 14:03x}-{0x8000 | bits & 0x3FFF:04x}-"
    return now, prefix, count(_random.getrandbits(47))


def _after_fork() -> None:
    """A child must not repeat its parent's ids."""
    global _series  # noqa: PLW0603 - the one series of this process
    _random.seed()
    _series = _new_series(-1)


_series = _new_series(-1)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
