"""Sums of floating point numbers that neither lose digits on the way nor overflow."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from fractions import Fraction

_LARGEST = sys.float_info.max


def total(values: Sequence[float]) -> float:
    """The sum, rounded once; the largest float of its sign where it is beyond every float."""
    try:
        return math.fsum(values)
    except OverflowError:
        return clamped(sum(map(Fraction, values), Fraction(0)))


def clamped(exact: Fraction) -> float:
    """The float nearest to a number; the largest of its sign where it is beyond every float."""
    return float(max(min(exact, Fraction(_LARGEST)), Fraction(-_LARGEST)))
