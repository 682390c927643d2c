"""Time in whole milliseconds, and ids that sort by it."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruv_swarm_store import InvalidValue
from ruv_swarm_store.clock import duration, milliseconds, new_id, new_ids, system_clock


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.timezones() | st.just(UTC)))  # noqa: DTZ001
def test_a_datetime_becomes_its_milliseconds_exactly(moment: datetime) -> None:
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert milliseconds(moment) == expected
    assert milliseconds(moment.astimezone(timezone(timedelta(hours=-9, minutes=-30)))) == expected


@pytest.mark.parametrize("moment", [0, -1, 2**63 - 1, -(2**63)])
def test_milliseconds_stay_as_they_are(moment: int) -> None:
    assert milliseconds(moment) == moment


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), 2**63, -(2**63) - 1, 1.5, "now", None, True], ids=repr)  # noqa: DTZ001
def test_what_is_no_instant_is_refused_by_its_name(moment: Any) -> None:
    with pytest.raises(InvalidValue, match="since"):
        milliseconds(moment, "since")


@pytest.mark.parametrize(("seconds", "expected"), [(0, 0), (1, 1_000), (0.0015, 2), (1e-9, 0), (12.3456, 12_346), (1e11, 10**14)])
def test_a_duration_is_rounded_to_milliseconds(seconds: float, expected: int) -> None:
    assert duration(seconds, "lease") == expected


@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), 1e12, "1", None, True, timedelta(1)], ids=repr)
def test_what_is_no_duration_is_refused_by_its_name(seconds: Any) -> None:
    with pytest.raises(InvalidValue, match="lease"):
        duration(seconds, "lease")


@given(st.integers(0, 2**48 - 1))
def test_an_id_is_a_uuid_of_version_7_with_its_time(now: int) -> None:
    for text in (new_id(now), *new_ids(now, 3)):
        number = uuid.UUID(text)
        assert str(number) == text
        assert (number.version, number.variant) == (7, uuid.RFC_4122)
        assert number.int >> 80 == now


def test_ids_differ_and_sort_by_time() -> None:
    ids = [new_id(1_000) for _ in range(10_000)]
    assert len(set(ids)) == 10_000
    assert max(ids) < min(new_id(1_001) for _ in range(100))


@given(st.integers(0, 2**48 - 1), st.integers(0, 300))
def test_ids_of_a_batch_ascend(now: int, count: int) -> None:
    ids = [*new_ids(now, count), new_id(now), *new_ids(now, count)]
    assert ids == sorted(set(ids))
    assert len(ids) == 2 * count + 1
    assert {uuid.UUID(id).int >> 80 for id in ids} == {now}


def test_the_system_clock_is_in_milliseconds_of_utc() -> None:
    assert abs(system_clock() - datetime.now(UTC).timestamp() * 1000) < 5_000
