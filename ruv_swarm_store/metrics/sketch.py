"""A sketch of many values that merges with others, and from which percentiles can be read to within 1 %.

This is DDSketch (Masson, Rim and Lee, VLDB 2019): values are counted in buckets whose bounds grow by a constant factor, so each
value lies within 1 % of its bucket's middle, and sketches merge by adding counts, in any order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from math import ceil, log

import msgspec
from msgspec import Struct, field

ACCURACY = 0.01
"""How far off a percentile may be, as a share of its value."""
BUCKETS = 2_048
"""Most buckets kept for each sign. Beyond them, when values spread over more than 17 powers of ten, those nearest to zero share one."""

_GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_STEP = log(_GAMMA)
_MIDDLE = log((1 + _GAMMA) / 2)
_SMALLEST = sys.float_info.min
_LARGEST = sys.float_info.max


class Sketch(Struct, omit_defaults=True, rename={"zeros": "0", "positive": "+", "negative": "-"}):
    """Counts of values by bucket: the i-th holds what is above g^(i-1) and at most g^i, with g = 1.01 / 0.99.

    Negative values are counted by their size. What is closer to zero than every normal float counts as zero.
    """

    zeros: int = 0
    positive: dict[int, int] = field(default_factory=dict)
    negative: dict[int, int] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many values were counted."""
        return self.zeros + sum(self.positive.values()) + sum(self.negative.values())

    def add(self, values: Iterable[float]) -> None:
        """Counts finite values."""
        positive, negative = self.positive, self.negative
        for value in values:
            if value >= _SMALLEST:
                index = ceil(log(value) / _STEP)
                positive[index] = positive.get(index, 0) + 1
            elif value <= -_SMALLEST:
                index = ceil(log(-value) / _STEP)
                negative[index] = negative.get(index, 0) + 1
            else:
                self.zeros += 1
        _collapse(positive)
        _collapse(negative)

    def merge(self, other: Sketch) -> None:
        """Counts everything the other has counted, too."""
        self.zeros += other.zeros
        for mine, theirs in ((self.positive, other.positive), (self.negative, other.negative)):
            if mine:
                for index, count in theirs.items():
                    mine[index] = mine.get(index, 0) + count
                _collapse(mine)
            else:
                mine.update(theirs)

    def percentiles(self, percents: Sequence[int]) -> list[float]:
        """Those percentiles by nearest rank, in the order given, which must ascend; there must be values."""
        count = self.count
        ranks = [(count * percent + 99) // 100 for percent in percents]
        found: list[float] = []
        seen = 0
        for value, number in self._ascending():
            seen += number
            while len(found) < len(ranks) and ranks[len(found)] <= seen:
                found.append(value)
        return found

    def _ascending(self) -> Iterable[tuple[float, int]]:
        for index in sorted(self.negative, reverse=True):
            yield -_value(index), self.negative[index]
        yield 0.0, self.zeros
        for index in sorted(self.positive):
            yield _value(index), self.positive[index]


def _value(index: int) -> float:
    """The value closest to all that a bucket holds, by share."""
    try:
        return math.exp(index * _STEP - _MIDDLE)
    except OverflowError:
        return _LARGEST


def _collapse(counts: dict[int, int]) -> None:
    if len(counts) > BUCKETS:
        indexes = sorted(counts)
        kept = indexes[-BUCKETS]
        for index in indexes[:-BUCKETS]:
            counts[kept] += counts.pop(index)


_encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Sketch).decode
"""The sketch of its JSON text. Raises `msgspec.MsgspecError` for other text."""


def encode(sketch: Sketch) -> str:
    """A sketch as JSON text: `0` counts zeros, `+` and `-` the buckets by index."""
    return _encode(sketch).decode()
