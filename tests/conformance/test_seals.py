"""The hash chain: whatever is done to sealed events behind the store's back is found."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import crew
import pytest
from sqlalchemy import delete, insert, select, update

from ruv_swarm_store import NewEvent, Store, UnitOfWork, migrations, schema
from ruv_swarm_store.engines import Options, connect
from ruv_swarm_store.errors import InvalidValue, Unsupported
from ruv_swarm_store.events import reading, seals
from ruv_swarm_store.transfer import copy_between

events, links = schema.events.c, schema.event_seals.c


def fill(store: Store, count: int = 10, stream: str = "a") -> None:
    store.events.append(
        stream,
        [
            NewEvent(
                f"type {n}",
                {"b": n, "a": [1.0, 1e16, -0.0, None]},
                {"m": n} if n % 2 else None,
                id=f"{stream}-{n}",
                correlation_id="c" * (n % 3) or None,
            )
            for n in range(count)
        ],
        type="thing",
    )


def test_a_chain_covers_what_there_is_and_grows(store: Store, clock):
    assert store.events.seal() is None
    audit = store.events.verify()
    assert (audit.intact, audit.links, audit.events, audit.unsealed, audit.head) == (True, 0, 0, 0, None)
    fill(store, 10)
    assert store.events.verify().unsealed == 10
    clock.advance(5)
    head = store.events.seal(block=4)
    assert head is not None
    assert (head.count, head.position, head.sealed_at) == (2, store.events.last_position(), clock.now)
    audit = store.events.verify(head=head.hash)
    assert (audit.intact, audit.links, audit.events, audit.unsealed, audit.head) == (True, 3, 10, 0, head.hash)
    assert store.events.seal() == head, "there is nothing new"
    fill(store, 3, "b")
    assert store.events.verify(head=head.hash).unsealed == 3
    newer = store.events.seal()
    assert newer is not None
    assert (newer.after, newer.count) == (head.position, 3)
    assert store.events.verify(head=head.hash).head == newer.hash
    assert store.events.verify(head=newer.hash).intact
    for wrong in (0, -1, "1"):
        with pytest.raises(InvalidValue):
            store.events.seal(block=wrong)


def test_the_hash_is_the_same_on_every_engine(store: Store):
    fill(store)
    head = store.events.seal(block=7)
    assert head is not None
    assert head.hash == "e4171e7a1ecd64c1f3fc9212df870ea06f6754279e4ff6ff868c6cc93e43838b"


def test_pages_make_no_difference(store: Store, monkeypatch):
    fill(store)
    with undone(store) as work:
        head = work.events.seal(block=8)
    monkeypatch.setattr(reading, "FIRST_PAGE", 3)
    monkeypatch.setattr(reading, "WEIGHT", 1)
    assert store.events.seal(block=8) == head
    assert store.events.verify().intact


def test_a_copy_verifies(store: Store):
    fill(store)
    head = store.events.seal(block=3)
    assert head is not None
    engine = connect(None, Options())
    migrations.prepare(engine, migrate=True)
    with Store(engine) as arrived:
        copy_between(store._engine, engine)
        audit = arrived.events.verify(head=head.hash)
        assert (audit.intact, audit.links, audit.events) == (True, 4, 10)
        fill(arrived, 1, "b")
        arrived.events.seal()
        assert arrived.events.verify(head=head.hash).intact


def test_links_are_append_only(store: Store):
    fill(store)
    store.events.seal()
    for statement in (update(schema.event_seals).values(hash="other"), delete(schema.event_seals)):
        with pytest.raises(Unsupported, match="append-only"):
            store.execute(statement)
    assert store.events.verify().intact


class _Undo(Exception):
    pass


@contextmanager
def undone(store: Store) -> Iterator[UnitOfWork]:
    """A unit of work of which nothing is left."""
    with pytest.raises(_Undo), store.transaction() as work:
        yield work
        raise _Undo


@pytest.fixture
def sealed(database: Any, store: Store) -> Store:
    """Three links of four events, and nothing that keeps them from being changed."""
    fill(store, 12)
    store.events.seal(block=4)
    for table in (schema.events, schema.event_seals):
        database.unguard(store, table)
    return store


OTHER: dict[str, list[Any]] = {
    "id": ["other"],
    "aggregate_id": ["other", ""],
    "aggregate_type": ["other", "thing "],
    "event_type": ["other", "type 5 "],
    "event_data": [None, {}, {"b": 5}, {"b": 5, "a": [1, 1e16, -0.0, None]}, {"b": 5.0, "a": [1.0, 1e16, -0.0, None]}, "text"],
    "metadata": [{}, {"m": 6}, {"m": "5"}, [None]],
    "timestamp": [0, 1_800_000_000_001],
    "sequence_number": [99],
    "position": [-5, 1_000],
    "schema_version": [2, 0],
    "correlation_id": ["other", "", None],
    "causation_id": ["other", ""],
}


def test_every_field_of_an_event_is_sealed(sealed: Store):
    assert set(OTHER) == {column.name for column in schema.events.c}
    [(position, first)] = sealed.execute(select(events.position, events.position - 5).where(events.id == "a-5"))
    second = sealed.execute(select(links.position).order_by(links.position))[1][0]
    for name, values in OTHER.items():
        for value in values:
            with undone(sealed) as work:
                work.execute(update(schema.events).where(events.position == position).values({events[name]: value}))
                audit = work.events.verify()
                assert audit.fault is not None, (name, value)
                assert audit.fault.link is not None
                # It is in the second block, unless it was put before everything.
                assert (audit.fault.link.position == second, audit.links) == ((True, 1) if value != -5 else (False, 0)), (name, value)
    with undone(sealed) as work:  # null in JSON is not what there is without any
        work.execute(update(schema.events).where(events.position == first).values(event_data=None))
        assert not work.events.verify().intact
    assert sealed.events.verify().intact


def test_every_field_of_a_link_is_sealed(sealed: Store):
    second = sealed.execute(select(links.position).order_by(links.position))[1][0]
    others = {
        "position": [second - 1, second + 1, -1, 10**6], "after": [0, 5, -1], "count": [3, 5], "hash": ["", "0" * 64], "sealed_at": [0],
    }  # fmt: skip
    assert set(others) == {column.name for column in links}
    for name, values in others.items():
        for value in values:
            with undone(sealed) as work:
                work.execute(update(schema.event_seals).where(links.position == second).values({links[name]: value}))
                audit = work.events.verify()
                assert audit.fault is not None, (name, value)
                assert audit.links == (1 if value != -1 or name != "position" else 0)
    assert sealed.events.verify().intact


def test_nothing_can_be_taken_away_put_in_or_exchanged(sealed: Store):
    rows = sealed.execute(select(schema.events).order_by(events.position))
    head = sealed.events.seal()
    assert head is not None
    stored = sealed.execute(select(schema.event_seals).order_by(links.position))
    between = {**rows[0]._asdict(), "id": "new", "aggregate_id": "new", "position": rows[-1].position + 1_000}
    for position in (0, -1, -(2**63)):
        with undone(sealed) as work:
            work.execute(insert(schema.events).values({**between, "position": position}))
            assert work.events.verify().fault is not None, position
    for row in rows:  # the last one of a block, and the last of all, as well
        with undone(sealed) as work:
            work.execute(delete(schema.events).where(events.position == row.position))
            assert work.events.verify().fault is not None
    with undone(sealed) as work:  # two change places
        for position, data in ((rows[4].position, rows[5].event_data), (rows[5].position, rows[4].event_data)):
            work.execute(update(schema.events).where(events.position == position).values(event_data=data))
        assert work.events.verify().fault is not None
    for link in stored[:-1]:
        with undone(sealed) as work:
            work.execute(delete(schema.event_seals).where(links.position == link.position))
            assert work.events.verify().fault is not None
    with undone(sealed) as work:  # a link of somebody else's making, over an event of theirs
        work.execute(insert(schema.events).values(between))
        link = {"position": between["position"], "after": head.position, "count": 1, "hash": "0" * 64, "sealed_at": 1}
        work.execute(insert(schema.event_seals).values(link))
        audit = work.events.verify()
        assert audit.fault is not None
        assert (audit.links, audit.head) == (3, head.hash)


def test_a_chain_cut_off_or_written_anew_is_told_by_its_head(sealed: Store):
    head = sealed.events.seal()
    assert head is not None
    with undone(sealed) as work:
        work.execute(delete(schema.event_seals).where(links.position == head.position))
        work.execute(delete(schema.events).where(events.position > head.after))
        assert work.events.verify().intact
        audit = work.events.verify(head=head.hash)
        assert audit.fault is not None
        assert audit.fault.link is None
        assert head.hash in audit.fault.what
    with undone(sealed) as work:
        work.execute(delete(schema.event_seals))
        assert work.events.verify(head=head.hash).fault is not None
        work.execute(update(schema.events).where(events.id == "a-5").values(event_data="forged"))
        work.events.seal(block=4)
        assert work.events.verify().intact
        assert work.events.verify(head=head.hash).fault is not None
    assert sealed.events.verify(head=head.hash).intact


def test_what_cannot_be_read_is_a_fault_of_its_block(database: Any, sealed: Store):
    database.damage(sealed, schema.events, "id", "a-5", "event_data", "{not json")
    audit = sealed.events.verify()
    assert audit.fault is not None
    assert audit.fault.link is not None
    assert audit.links == 1


def test_who_was_overtaken_goes_on_from_the_other_s_links(store: Store, monkeypatch):
    fill(store, 10)
    read = seals._pages
    overtaken = False

    def overtake(*arguments: Any) -> Iterator[Any]:
        nonlocal overtaken
        yield from read(*arguments)
        if not overtaken:
            overtaken = True
            fill(store, 2, "late")
            store.events.seal(block=3)

    monkeypatch.setattr(seals, "_pages", overtake)
    store.events.seal(block=8)
    fill(store, 1, "later")
    store.events.seal(block=8)
    audit = store.events.verify()
    assert (audit.intact, audit.links, audit.events, audit.unsealed) == (True, 5, 13, 0)


@pytest.mark.needs("threads")
def test_who_seals_at_the_same_time_makes_one_chain(database: Any):
    store = database.open()
    fill(store, 300)

    def seal(number: int, barrier: threading.Barrier) -> Any:
        barrier.wait()
        for n in range(5):
            fill(store, 3, f"s-{number}-{n}")
            store.events.seal(block=20)

    crew.in_threads(4, seal)
    head = store.events.seal(block=20)
    assert head is not None
    audit = store.events.verify(head=head.hash)
    assert (audit.intact, audit.events, audit.unsealed) == (True, 360, 0)
