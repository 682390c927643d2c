"""Time and identity: integer milliseconds since the epoch (UTC), and ids that sort by them."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from ruv_swarm_store.errors import InvalidValue

Clock = Callable[[], int]
"""Returns the present as milliseconds since 1970-01-01 UTC."""

Moment = int | datetime
"""An instant: milliseconds since the epoch, or an aware `datetime`."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_random = random.Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


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
    """A new UUID version 7 (RFC 9562, section 5.7) as text: 48 bits of `now` in milliseconds, 74 random bits."""
    bits = _random.getrandbits(74)
    return f"{_prefix(now, bits >> 48)}{bits & 0xFFFFFFFFFFFF:012x}"


def new_ids(now: int, count: int) -> list[str]:
    """`count` new ids in ascending order: a random start, counted up (RFC 9562, section 6.2, method 2)."""
    prefix, start = _prefix(now, _random.getrandbits(26)), _random.getrandbits(47)
    return [f"{prefix}{number:012x}" for number in range(start, start + count)]


def _prefix(now: int, bits: int) -> str:
    # 48 bits of time, version 7, 12 random bits, variant 10, 14 random bits
    return f"{now >> 16 & 0xFFFFFFFF:08x}-{now & 0xFFFF:04x}-7{bits >> 14:03x}-{0x8000 | bits & 0x3FFF:04x}-"
