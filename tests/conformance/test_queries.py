"""Queries: immutable, typed, and run only when asked for rows."""

from datetime import UTC, date, datetime, time, timedelta

import pytest
from sqlalchemy import bindparam, delete, func, select, update

from ruv_swarm_store import Conflict, InvalidValue, NewTask, NotFound, Query, Store, TaskStatus
from ruv_swarm_store.schema import metrics, tasks


@pytest.fixture
def ten(store: Store):
    return store.tasks.enqueue_many(NewTask("even" if n % 2 == 0 else "odd", n, priority=n) for n in range(10))


def payloads(query):
    return [task.payload for task in query]


def test_criteria_narrow_and_order_sorts(store: Store, ten):
    urgent = store.tasks.where(tasks.c.priority >= 7).order_by(tasks.c.priority.desc())
    assert payloads(urgent) == [9, 8, 7]
    assert payloads(urgent.where(tasks.c.type == "odd")) == [9, 7]
    assert payloads(urgent.limit(2)) == [9, 8]
    assert payloads(urgent.limit(2, offset=1)) == [8, 7]
    assert payloads(urgent.limit(0)) == []
    assert payloads(store.tasks.query().order_by(tasks.c.type).order_by(tasks.c.priority.desc()).limit(2)) == [8, 6]
    assert payloads(store.tasks.where(tasks.c.type == "even", tasks.c.priority < 3).order_by(tasks.c.position)) == [0, 2]


def test_a_query_is_never_changed(store: Store, ten):
    every = store.tasks.query()
    few = every.where(tasks.c.priority >= 7)
    few.limit(1)
    few.order_by(tasks.c.priority)
    assert (every.count(), few.count()) == (10, 3)
    assert isinstance(few, Query)
    assert len(few.all()) == 3


def test_nothing_runs_before_rows_are_asked_for(store: Store, ten):
    query = store.tasks.where(tasks.c.priority >= 7)
    store.tasks.enqueue("late", priority=100)
    assert query.count() == 4


def test_first_one_count_and_exists(store: Store, ten):
    query = store.tasks.where(tasks.c.priority >= 7).order_by(tasks.c.priority)
    assert query.first().payload == 7
    assert store.tasks.where(tasks.c.priority == 3).one().payload == 3
    assert query.exists()
    nothing = store.tasks.where(tasks.c.type == "none")
    assert (nothing.first(), nothing.count(), nothing.exists(), nothing.all()) == (None, 0, False, [])
    with pytest.raises(NotFound):
        nothing.one()
    with pytest.raises(Conflict):
        query.one()


def test_an_empty_table_has_no_rows_to_exist(store: Store):
    assert not store.tasks.query().exists()
    store.tasks.enqueue("t")
    assert store.tasks.query().exists()


def test_a_limit_binds_every_way_of_asking(store: Store, ten):
    query = store.tasks.query().order_by(tasks.c.priority.desc())
    assert query.limit(1).one().payload == 9
    assert query.limit(0).first() is None
    assert query.limit(5, offset=2).first().payload == 7
    assert not query.limit(0).exists()
    assert not query.limit(5, offset=10).exists()
    assert query.limit(5, offset=9).exists()
    assert (query.limit(3).count(), query.limit(0).count(), query.limit(5, offset=8).count()) == (3, 0, 2)
    with pytest.raises(NotFound):
        query.limit(0).one()


def test_pages_of_a_query_hold_its_rows(store: Store, ten):
    query = store.tasks.where(tasks.c.type == "odd")
    assert [payloads(page) for page in query.pages(2)] == [[1, 3], [5, 7], [9]]
    assert [payloads(page) for page in query.order_by(tasks.c.priority.desc()).pages(3)] == [[1, 3, 5], [7, 9]]


def test_pages_of_a_limited_query_are_refused(store: Store, ten):
    for query in (store.tasks.query().limit(5), store.tasks.query().limit(5, offset=2)):
        with pytest.raises(InvalidValue, match="limit"):
            list(query.pages(2))


@pytest.mark.parametrize("criterion", ["priority = 9", "1=1; DROP TABLE tasks", 5, None, ...], ids=repr)
def test_where_takes_no_text(store: Store, ten, criterion):
    with pytest.raises(InvalidValue):
        store.tasks.where(criterion)
    with pytest.raises(InvalidValue):
        store.tasks.query().where(tasks.c.priority > 1, criterion)
    assert store.tasks.count() == 10


@pytest.mark.parametrize("column", ["priority", "priority DESC; DROP TABLE tasks", 5], ids=repr)
def test_order_by_takes_no_text(store: Store, ten, column):
    with pytest.raises(InvalidValue):
        store.tasks.query().order_by(column).all()
    assert store.tasks.count() == 10


@pytest.mark.parametrize("arguments", [(-1,), (1.5,), ("1",), (None,), (True,), (1, -1), (1, "0")], ids=repr)
def test_limits_are_numbers(store: Store, arguments):
    with pytest.raises(InvalidValue):
        store.tasks.query().limit(*arguments)


def test_statuses_compare_as_members_or_text(store: Store, ten):
    agent = store.agents.register("worker")
    store.tasks.claim_many(agent, 4)
    for assigned in (TaskStatus.ASSIGNED, "assigned"):
        assert store.tasks.where(tasks.c.status == assigned).count() == 4
        assert store.tasks.where(tasks.c.status != assigned).count() == 6
        assert store.tasks.where(tasks.c.status.in_([assigned, "pending"])).count() == 10
        assert store.tasks.where(tasks.c.status.not_in([assigned])).count() == 6
    for compare in (
        lambda: tasks.c.status == "sleeping",
        lambda: tasks.c.status != "sleeping",
        lambda: tasks.c.status.in_(["pending", "sleeping"]),
    ):
        with pytest.raises(InvalidValue, match=r"'sleeping' is not a TaskStatus.*pending, scheduled"):
            store.tasks.where(compare()).all()


def test_times_compare_as_aware_datetimes(store: Store, clock, ten):
    at = tasks.c.created_at
    now = datetime.fromtimestamp(clock() / 1000, UTC)
    before, after = now - timedelta(hours=1), (now + timedelta(hours=1)).astimezone()
    for all_ten in (
        at > before,
        at < after,
        at == now,
        at >= now,
        at.between(before, after),
        at.in_([5, now]),
        before < at,
        at - 5 > before,
    ):
        assert store.tasks.where(all_ten).count() == 10
    for none in (at < before, at > after, at != now, at.in_([before]), at.between(after, after), at - 7_200_000 > before):
        assert store.tasks.where(none).count() == 0
    assert store.execute(select(func.count()).where(at > bindparam("since")), {"since": before}) == [(10,)]
    assert store.execute(select(func.count()).where(at > bindparam("since")), {"since": after}) == [(0,)]
    assert store.execute(select(func.count()).select_from(tasks).having(func.max(at) > before)) == [(10,)]


def test_a_cut_by_a_datetime_takes_what_is_older_only(store: Store, clock):
    now = datetime.fromtimestamp(clock() / 1000, UTC)
    for minutes in (30, 90):
        store.metrics.record("m", minutes, at=now - timedelta(minutes=minutes))
    store.execute(delete(metrics).where(metrics.c.timestamp < now - timedelta(hours=1)))
    assert [sample.value for sample in store.metrics.find_all()] == [30]
    store.execute(update(metrics).values(timestamp=now))
    assert [sample.timestamp for sample in store.metrics.find_all()] == [clock()]


@pytest.mark.parametrize(
    "value",
    [datetime(2026, 1, 1), date(2026, 1, 1), time(12), timedelta(1), "2026-01-01", "5"],  # noqa: DTZ001
    ids=repr,
)
def test_a_time_is_not_compared_with_what_is_no_instant(store: Store, ten, value):
    at = tasks.c.created_at
    for compare in (at.__gt__, at.__le__, at.__eq__, lambda value: at.in_([value])):
        with pytest.raises(InvalidValue):
            store.tasks.where(compare(value)).count()
        with pytest.raises(InvalidValue):
            store.execute(delete(tasks).where(compare(value)))
    assert store.tasks.count() == 10


def test_values_are_not_part_of_the_sql(store: Store, ten):
    hostile = "'; DROP TABLE tasks; --"
    query = store.tasks.where(tasks.c.type == hostile)
    assert hostile not in str(query)
    assert query.all() == []
    assert store.tasks.count() == 10


def test_text_says_what_will_run(store: Store):
    query = store.tasks.where(tasks.c.priority >= 7).order_by(tasks.c.created_at.desc()).limit(10)
    assert str(query).startswith("SELECT tasks.id, tasks.type")
    assert "WHERE tasks.priority >= :priority_1 ORDER BY tasks.created_at DESC" in " ".join(str(query).split())
    assert "WHERE tasks.priority" in repr(query)


def test_a_query_of_a_unit_of_work_sees_its_changes(store: Store):
    with store.transaction() as work:
        work.tasks.enqueue("t")
        assert work.tasks.where(tasks.c.type == "t").count() == 1
        assert work.tasks.query().exists()
