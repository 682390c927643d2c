"""The sketch: percentiles within its accuracy, whatever the values; merging in any order gives the same."""

import math
import random
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruv_swarm_store.metrics import sketch
from ruv_swarm_store.metrics.sketch import ACCURACY, BUCKETS, Sketch
from ruv_swarm_store.metrics.sums import total

PERCENTS = (1, 50, 95, 99, 100)
values = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-20, 20).map(float), min_size=1, max_size=60)


def of(numbers: list[float]) -> Sketch:
    made = Sketch()
    made.add(numbers)
    return made


def nearest(numbers: list[float], percent: int) -> float:
    return sorted(numbers)[math.ceil(len(numbers) * percent / 100) - 1]


def close(found: float, exact: float) -> bool:
    """Within the accuracy; what is smaller than every normal number counts as zero."""
    bound = Fraction(ACCURACY) * abs(Fraction(exact)) * Fraction(1 + 1e-9)
    return abs(Fraction(found) - Fraction(exact)) <= max(bound, Fraction(sys.float_info.min))


@given(values)
def test_percentiles_are_within_the_accuracy(numbers):
    found = of(numbers).percentiles(PERCENTS)
    assert len(found) == len(PERCENTS)
    for percent, value in zip(PERCENTS, found, strict=True):
        assert close(value, nearest(numbers, percent))


@given(values, values, values)
def test_merging_is_associative_and_the_same_as_adding(one, two, three):
    left, right = of(one), of(two)
    left.merge(of(two))
    left.merge(of(three))
    right.merge(of(three))
    right.merge(of(one))
    assert left == right == of([*one, *two, *three])
    assert left.count == len(one) + len(two) + len(three)


@given(values)
def test_a_sketch_comes_back_from_its_text(numbers):
    text = sketch.encode(of(numbers))
    assert sketch.decode(text) == of(numbers)


def test_the_text_is_short_and_says_what_it_holds():
    assert sketch.encode(Sketch()) == "{}"
    assert sketch.encode(of([0.0, 1.0, 1.0, -1.0, 1.02])) == '{"0":1,"+":{"0":2,"1":1},"-":{"0":1}}'
    assert len(sketch.encode(of([random.Random(1).lognormvariate(3, 1) for _ in range(3_600)]))) < 3_600


def test_a_merge_leaves_the_other_as_it_was():
    one, other = Sketch(), of([1.0, 2.0])
    one.merge(other)
    one.add([1.0])
    assert other == of([1.0, 2.0])


@pytest.mark.parametrize("sign", [1, -1])
def test_values_of_every_size_share_a_bounded_number_of_buckets(sign):
    numbers = [sign * 10.0 ** (exponent / 20) for exponent in range(-6_000, 6_000)]
    many = of(numbers)
    assert len(many.positive) + len(many.negative) == BUCKETS
    assert many.count == len(numbers)
    large = sorted(numbers, key=abs)[-1_000:]
    [found] = many.percentiles((100,)) if sign > 0 else many.percentiles((1,))
    assert close(found, nearest(numbers, 100 if sign > 0 else 1))
    # Merged from parts it is the same, though each part was cut on its own.
    for split in (1, 3_000, 9_000):
        parts = of(numbers[:split])
        parts.merge(of(numbers[split:]))
        assert parts == many
    assert all(math.ceil(math.log(abs(value)) / math.log(1.01 / 0.99)) in {**many.positive, **many.negative} for value in large)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=20))
def test_a_sum_is_rounded_once_and_never_overflows(numbers):
    exact = sum(map(Fraction, numbers), Fraction(0))
    found = total(numbers)
    assert math.isfinite(found)
    if abs(exact) <= Fraction(sys.float_info.max):
        assert found == float(exact)
    else:
        assert found == (sys.float_info.max if exact > 0 else -sys.float_info.max)
