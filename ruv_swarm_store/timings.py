"""How long something takes, counted in bounded memory, from which percentiles can be read to within 1.6 %.

A log-linear histogram, as HdrHistogram (Tene) keeps one: each power of two is cut into 32 equal parts. A float's exponent and the first
bits of its fraction together are the number of its part, so a batch of times is sorted into parts by looking at its bytes.
"""

from __future__ import annotations

import sys
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TypeVar

T = TypeVar("T")

BATCH = 256
"""Times that are kept as they are until they are counted."""

_FRACTION = 5
"""Bits of the fraction that tell the part: 32 parts, whose middles are at most 1/64 away from all that is in them."""
_PARTS = 1 << _FRACTION
_SHORTEST, _LONGEST = -24, 12
"""Powers of two, in seconds: 60 ns to more than an hour. Beyond them, times count as these."""
_BIAS = 127  # of a 32-bit float's exponent
_LOWEST = (_BIAS + _SHORTEST) << _FRACTION
_LAST = (_LONGEST - _SHORTEST << _FRACTION) - 1
_UPPER = 1 if sys.byteorder == "little" else 0
_DROPPED = 7 - _FRACTION  # of the fraction's bits in the upper half of a 32-bit float
_ROUND = 0x8000
_COMMON = (_BIAS - 20) << _FRACTION
"""Parts are numbered from that of a microsecond on, round `_ROUND`: numbers up to 256, for times up to 244 µs, need no memory."""
_PATIENCE = 1.0  # seconds that who reads waits for who counts, who may be the same in a signal handler


class Timings:
    """How often something was done, how long it took, how often it failed, and how many rows came of it.

    Any number of threads add. What costs time is put off: `add` and `odd` only keep a number, and whoever finds BATCH of them kept
    in `pending` calls `fold`.
    """

    __slots__ = ("_folding", "_totals", "add", "failed", "name", "odd", "pending", "uneven")

    add: Callable[[float], object]
    """Adds the seconds that something took."""
    odd: Callable[[int], object]
    """Tells that so many rows came of it, where it is not one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._folding = threading.Lock()
        self.pending: list[float] = []
        self.uneven: list[int] = []
        self.failed: list[None] = []
        self.add = self.pending.append
        self.odd = self.uneven.append
        self._totals = _Totals()

    def fail(self, seconds: float) -> None:
        """Adds the seconds that something took until it failed."""
        self.failed.append(None)
        self.odd(0)
        self.add(seconds)
        self.fold()

    def fold(self) -> None:
        """Counts what is pending, unless somebody does so just now."""
        if self._folding.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._folding.release()

    def _fold(self) -> None:
        seconds, uneven, totals = _taken(self.pending), _taken(self.uneven), self._totals
        totals.errors += len(_taken(self.failed))
        totals.rows += sum(uneven) - len(uneven)
        if seconds:
            totals.count += len(seconds)
            totals.seconds += sum(seconds)
            longest = max(seconds)
            totals.longest = max(totals.longest, longest)
            totals.parts.update(_parts(seconds))

    def read(self) -> Distribution:
        """What was counted until now."""
        held = self._folding.acquire(timeout=_PATIENCE)
        try:
            if held:
                self._fold()
            return Distribution(self.name, self._totals)
        finally:
            if held:
                self._folding.release()

    def reset(self) -> None:
        """Forgets everything."""
        held = self._folding.acquire(timeout=_PATIENCE)
        try:
            for pending in (self.pending, self.uneven, self.failed):
                pending.clear()
            self._totals = _Totals()
        finally:
            if held:
                self._folding.release()

    def forked(self) -> None:
        """In a child process: forgets what its parent counted, and a lock that nobody there will release."""
        self._folding = threading.Lock()
        self.reset()


class _Totals:
    __slots__ = ("count", "errors", "longest", "parts", "rows", "seconds")

    def __init__(self) -> None:
        self.count = self.errors = self.rows = 0
        self.seconds = self.longest = 0.0
        self.parts: Counter[int] = Counter()
        """How many were in each part: there are 8 192 of them, of which what is timed has one or two hundred."""


class Distribution:
    """What `Timings` had counted at one moment."""

    __slots__ = ("_buckets", "count", "errors", "longest", "name", "rows", "seconds")

    def __init__(self, name: str, totals: _Totals) -> None:
        self.name = name
        self.count = totals.count
        self.errors = totals.errors
        self.rows = totals.rows + totals.count
        self.seconds = totals.seconds
        self.longest = totals.longest
        self._buckets = array("Q", bytes(8 * (_LAST + 1)))
        for part, number in totals.parts.copy().items():
            self._buckets[min(max((part + _COMMON) % _ROUND - _LOWEST, 0), _LAST)] += number

    def percentiles(self, percents: Sequence[int]) -> list[float]:
        """Those percentiles by nearest rank, in seconds, in the order given, which must ascend; zeros when nothing was counted."""
        ranks = [(self.count * percent + 99) // 100 for percent in percents]
        found: list[float] = []
        seen = 0
        for index, number in enumerate(self._buckets):
            seen += number
            while len(found) < len(ranks) and 0 < ranks[len(found)] <= seen:
                found.append(min(_middle(index), self.longest))
        return found + [self.longest] * (len(ranks) - len(found))

    def below(self, powers: Sequence[int]) -> list[int]:
        """How many took less than each of these powers of two seconds, which must lie between -24 and 12."""
        return [sum(self._buckets[: power - _SHORTEST << _FRACTION]) for power in powers]


def _parts(seconds: list[float]) -> array[int]:
    """The number of each one's part: exponent and fraction are the upper half of a 32-bit float. All are worked out at once."""
    each = partial(_each, count=len(seconds))
    halves = array("H", array("f", seconds).tobytes())[_UPPER::2].tobytes()
    parts = int.from_bytes(halves, sys.byteorder) >> _DROPPED & each(0x7FFF >> _DROPPED)
    numbers = (parts | each(_ROUND)) - each(_COMMON) & each(_ROUND - 1)
    return array("H", numbers.to_bytes(len(halves), sys.byteorder))


@lru_cache(16)
def _each(number: int, count: int) -> int:
    """A 16-bit number, so many times side by side."""
    return int.from_bytes(number.to_bytes(2, sys.byteorder) * count, sys.byteorder)


def _taken(pending: list[T]) -> list[T]:
    """Empties a list that others append to."""
    taken = pending[:]
    del pending[: len(taken)]
    return taken


def _middle(index: int) -> float:
    power, part = divmod(index, _PARTS)
    width = 2.0 ** (power + _SHORTEST) / _PARTS
    return width * (_PARTS + part + 0.5)
