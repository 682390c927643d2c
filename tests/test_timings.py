"""Timings: percentiles within their accuracy, nothing lost between threads, and no more memory however much is added."""

import math
import sys
import threading

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ruv_swarm_store.timings import BATCH, Timings

PERCENTS = (1, 50, 95, 99, 100)
ACCURACY = 1 / 64 + 1e-6  # half a part, and what a 32-bit float rounds away
seconds = st.lists(st.floats(min_value=1e-7, max_value=3_000), min_size=1, max_size=600)


def of(times: list[float]) -> Timings:
    timings = Timings("t")
    for time in times:
        timings.add(time)
        if len(timings.pending) >= BATCH:
            timings.fold()
    return timings


def nearest(times: list[float], percent: int) -> float:
    return sorted(times)[math.ceil(len(times) * percent / 100) - 1]


@given(seconds)
@example([2.0**-5])
@example([2.0**-5 * (1 - 2**-53)])
def test_percentiles_are_within_the_accuracy(times):
    found = of(times).read()
    assert (found.count, found.longest) == (len(times), max(times))
    assert found.seconds == pytest.approx(math.fsum(times))
    for percent, value in zip(PERCENTS, found.percentiles(PERCENTS), strict=True):
        assert abs(value - nearest(times, percent)) <= ACCURACY * nearest(times, percent)
    assert found.percentiles((100,))[0] <= found.longest


@given(seconds, st.lists(st.integers(-24, 12), max_size=4))
def test_counts_below_a_power_of_two_are_exact(times, powers):
    times = [float(f"{time:.6e}") for time in times]  # none so close to a power that a 32-bit float could not tell
    assert of(times).read().below(powers) == [sum(time < 2.0**power for time in times) for power in powers]


def test_times_beyond_every_part_count_as_the_shortest_and_the_longest():
    found = of([0.0, 1e-30, 1e9]).read()
    assert found.percentiles((1, 100)) == [pytest.approx(2.0**-24, rel=0.02), pytest.approx(2.0**12, rel=0.02)]
    assert (found.count, found.longest) == (3, 1e9)
    assert found.below((-24, 12)) == [0, 3]


def test_nothing_counted_is_nothing():
    found = Timings("t").read()
    assert (found.count, found.errors, found.rows, found.seconds, found.longest) == (0, 0, 0, 0.0, 0.0)
    assert found.percentiles((50, 99)) == [0.0, 0.0]


def test_rows_and_errors():
    timings = Timings("t")
    for rows in (1, 0, 5, 1, 1):
        timings.add(0.001)
        if rows != 1:
            timings.odd(rows)
    timings.fail(0.002)
    found = timings.read()
    assert (found.count, found.rows, found.errors) == (6, 8, 1)
    timings.reset()
    assert (timings.read().count, timings.read().rows, timings.read().errors) == (0, 0, 0)


def test_threads_lose_nothing_to_each_other():
    timings, each, interval = Timings("t"), 20_000, sys.getswitchinterval()

    def add() -> None:
        for _ in range(each):
            timings.add(0.001)
            if len(timings.pending) >= BATCH:
                timings.fold()

    threads = [threading.Thread(target=add) for _ in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            timings.read()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert timings.read().count == 4 * each == timings.read().below((12,))[0]


def test_memory_is_bounded():
    timings = Timings("t")
    for power in range(-5_000, 5_000):
        for _ in range(3):
            timings.add(2.0 ** (power / 30))
        if len(timings.pending) >= BATCH:
            timings.fold()
        assert len(timings.pending) < BATCH
    assert timings.read().count == 30_000
    assert len(timings._totals.parts) <= 8_192
    for _ in range(40):
        timings.pending.extend([0.001 * (1 + n / BATCH) for n in range(BATCH)])
        timings.fold()
    parts = sys.getsizeof(of([0.001 * (1 + n / BATCH) for n in range(BATCH)])._totals.parts)
    assert parts < 10_000


def test_who_reads_in_the_middle_of_a_count_is_not_held_up_for_ever(monkeypatch):
    """As a signal handler would be, whose own thread counts."""
    monkeypatch.setattr("ruv_swarm_store.timings._PATIENCE", 0.01)
    timings = of([0.001])
    with timings._folding:
        assert timings.read().count == 0
        timings.fold()
    assert timings.read().count == 1
