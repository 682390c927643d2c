"""A backup as rows: what any engine holds at one instant, put into any engine, whole or not at all."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace
from plenty import fill, rows
from sqlalchemy import Column, ForeignKey, MetaData, PrimaryKeyConstraint, Table

from ruv_swarm_store import ANY, Conflict, NewEvent, Store, migrations, schema, transfer
from ruv_swarm_store.backup import frames
from ruv_swarm_store.backup import rows as format_rows
from ruv_swarm_store.backup.catalog import Catalog
from ruv_swarm_store.backup.encryption import Key
from ruv_swarm_store.backup.frames import Compression
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.backup.storage import MemoryStorage
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines import Engine, Options, connect
from ruv_swarm_store.errors import CorruptBackup, SchemaMismatch

New = Callable[..., Any]


class Shelf:
    """A storage with one backup of a store in it."""

    def __init__(
        self, store: Store, *, compression: Compression = "zlib", key: Key | None = None, storage: MemoryStorage | None = None
    ) -> None:
        self.storage: Any = storage or MemoryStorage()
        self.catalog = Catalog(self.storage, key)
        self.told: list[tuple[int, int]] = []
        self.backup = format_rows.create(
            self.catalog,
            store._engine,
            id=new_id(1),
            compression=compression,
            encryption=self.catalog.keyring.begin(),
            progress=lambda done, total: self.told.append((done, total)),
        )
        self.name = self.backup.name("rows")

    def restore(self, engine: Engine, backup: Backup | None = None) -> None:
        format_rows.restore(self.catalog, backup or self.backup, engine)

    def verify(self) -> list[str]:
        return format_rows.verify(self.catalog, self.backup)

    @property
    def file(self) -> bytes:
        return b"".join(self.storage.read(self.name))

    @file.setter
    def file(self, data: bytes) -> None:
        self.storage.write(self.name, [data])


@pytest.fixture
def full(new_database: New) -> Store:
    """A store with rows in every table."""
    store: Store = new_database().open()
    fill(store)
    return store


@pytest.fixture
def nothing(new_database: New) -> Iterator[Callable[[], Engine]]:
    """Opens databases without a schema."""
    opened: list[Engine] = []

    def new() -> Engine:
        opened.append(connect(new_database(absent=True).address, Options()))
        return opened[-1]

    yield new
    for engine in opened:
        engine.close()


def test_every_row_comes_back(full: Store, new_database: New) -> None:
    before = rows(full)
    assert [name for name, found in before.items() if not found] == []
    shelf = Shelf(full)
    target = new_database().open()
    shelf.restore(target._engine)
    assert rows(target) == before == rows(full)
    assert target.check() == []
    assert shelf.verify() == []
    assert {name: shelf.backup.rows[name] for name in before} == {name: len(found) for name, found in before.items()}
    assert (shelf.backup.position, shelf.backup.revision) == (full.events.last_position(), schema.REVISION)


def test_a_database_without_a_schema_gets_the_backup_s(full: Store, nothing: Callable[[], Engine]) -> None:
    engine = nothing()
    Shelf(full).restore(engine)
    assert migrations.current(engine) == schema.REVISION
    with Store(engine) as target:
        assert rows(target) == rows(full)


def test_a_restored_store_is_backed_up_alike(full: Store, new_database: New) -> None:
    first = Shelf(full).backup
    target = new_database().open()
    Shelf(full).restore(target._engine)
    second = Shelf(target).backup
    assert (second.checksums, second.rows, second.position) == (first.checksums, first.rows, first.position)
    assert len(set(first.checksums.values())) == len(transfer.tables())
    target.config.set("another", 1)
    # The source's journal had a row but no triggers: it was not being written, and is not now.
    assert {name for name, sum in Shelf(target).backup.checksums.items() if sum != first.checksums[name]} == {"swarm_config"}
    assert target.journal.status() is None


def test_pages_and_frames_may_be_as_small_as_can_be(full: Store, new_database: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "WEIGHT", 1)
    monkeypatch.setattr(transfer, "PAGE", 3)
    monkeypatch.setattr(format_rows, "FRAME", 7)
    shelf = Shelf(full, compression="none")
    pieces = list(shelf.catalog.read(shelf.backup, "rows"))
    assert {len(piece) for piece in pieces[:-1]} == {7}
    target = new_database().open()
    shelf.restore(target._engine)
    assert rows(target) == rows(full)


def test_frames_hold_what_they_are_meant_to(new_database: New) -> None:
    store = new_database().open()
    store.tasks.enqueue_many(
        [("long", {"text": "x" * 300_000}), ("long", {"text": "y" * 3_000_000}), *[("short", n) for n in range(2_000)]]
    )
    shelf = Shelf(store)
    sizes = [len(frame) for frame in shelf.catalog.read(shelf.backup, "rows")]
    assert set(sizes[:-1]) == {frames.FRAME}
    assert len(sizes) == 4
    target = new_database().open()
    shelf.restore(target._engine)
    assert rows(target) == rows(store)


def test_progress_ends_where_it_said(full: Store) -> None:
    told = Shelf(full).told
    assert told == sorted(told, key=lambda pair: pair[0])
    assert all(0 < done <= total for done, total in told)
    assert told[-1][0] == told[-1][1]


def test_what_is_added_later_has_new_numbers(full: Store, new_database: New) -> None:
    newest = full.messages.publish("newest", 0)
    full.messages.delete(newest)  # inboxes may have seen it: its number must not come again
    target = new_database().open()
    Shelf(full).restore(target._engine)
    assert target.messages.publish("t", 0).position > newest.position
    assert target.tasks.enqueue("t").position > max(task.position for task in full.tasks.find_all())
    position = full.events.last_position()
    target.events.append("later", [NewEvent("e")], type="t")
    assert target.events.last_position() > position


def test_a_journaled_store_is_journaled_when_it_is_restored(new_database: New) -> None:
    store = new_database().open(journal=True)
    scout = store.agents.register("scout")
    store.tasks.enqueue("t")
    store.tasks.claim(scout)
    target = new_database().open()
    Shelf(store).restore(target._engine)
    assert target.journal.status() == store.journal.status()
    assert target.events.last_position() == store.events.last_position()
    before = target.events.last_position()
    target.tasks.enqueue("more")
    assert target.events.last_position() > before
    assert target.journal.rebuild().agrees


# Rows that are there, and others that write


def test_a_database_with_rows_stays_as_it_is(full: Store, new_database: New) -> None:
    target = new_database().open()
    target.config.set("mine", 1)
    before = rows(target)
    with pytest.raises(Conflict, match="is not empty: there are rows in swarm_config"):
        Shelf(full).restore(target._engine)
    assert rows(target) == before


def move(store: Store, chance: random.Random, number: int) -> None:
    """A change of four tables that leaves their sum as it is, and a task for each event."""
    one, other = chance.sample(range(4), 2)
    with store.transaction() as work:
        for account, amount in sorted([(one, -number), (other, number)]):
            entry = work.config.entry(f"account/{account}")
            work.config.set(f"account/{account}", entry.value + amount)
        task = work.tasks.enqueue("moved", number)
        work.events.append(f"move-{one}", [NewEvent("moved", {"task": task.id})], type="move", expected_version=ANY)
        work.messages.publish("moved", task.id)


@pytest.mark.needs("threads")
def test_a_backup_is_of_one_instant_while_others_write(new_database: New) -> None:
    store = new_database().open()
    for account in range(4):
        store.config.set(f"account/{account}", 1_000)
    done, failed = threading.Event(), []

    def write(seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not done.is_set():
                move(store, chance, chance.randrange(100))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        while store.events.last_position() < 20 and not failed:
            done.wait(0.01)
        shelves = [Shelf(store) for _ in range(4)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failed == []
    states = []
    for shelf in shelves:
        target = new_database().open()
        shelf.restore(target._engine)
        assert sum(target.config.prefix("account/").values()) == 4_000
        tasks = {task.id for task in target.tasks.find_all()}
        assert (
            {event.event_data["task"] for event in target.events.walk()}
            == tasks
            == {message.content for message in target.messages.find_all()}
        )
        assert shelf.backup.position == target.events.last_position()
        assert shelf.backup.rows["tasks"] == len(tasks)
        states.append(len(tasks))
    assert states == sorted(states)
    assert states[0] >= 20


class Failing(MemoryStorage):
    """A storage whose every write fails at first, after some of it."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: set[str] = set()

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        if name not in self.failed:
            self.failed.add(name)
            next(iter(chunks))
            raise OSError("the line is busy")
        super().write(name, chunks)


def test_an_attempt_that_failed_is_made_anew_of_the_same_instant(full: Store, new_database: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_rows, "FRAME", 2_000)
    shelf = Shelf(full, storage=Failing())
    assert shelf.storage.failed == {shelf.name}
    assert shelf.verify() == []
    target = new_database().open()
    shelf.restore(target._engine)
    assert rows(target) == rows(full)


# Damage


@pytest.fixture
def small(new_database: New) -> Store:
    store: Store = new_database().open()
    agent = store.agents.register("scout", configuration={"n": 1})
    parent = store.tasks.enqueue("t", [1, 1.5], priority=7)
    store.tasks.enqueue("t", parent=parent)
    store.messages.publish("found", {"n": 1}, sender=agent)
    return store


@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_any_byte_that_differs_is_found(small: Store, compression: Compression) -> None:
    shelf = Shelf(small, compression=compression)
    whole = shelf.file
    assert shelf.verify() == []
    for place in range(0, len(whole), len(whole) // 30):
        shelf.file = whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        [problem] = shelf.verify()
        assert shelf.name in problem


def test_what_is_damaged_leaves_nothing_behind(small: Store, new_database: New) -> None:
    shelf = Shelf(small, compression="none")
    whole = shelf.file
    target = new_database().open()
    cuts = [whole[:-1], whole[: len(whole) // 2], whole + b"\0", b""]
    flips = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in range(3, len(whole), len(whole) // 12)]
    for damaged in cuts + flips:
        shelf.file = damaged
        with pytest.raises(CorruptBackup) as raised:
            shelf.restore(target._engine)
        assert raised.value.data["file"] == shelf.name
        assert not any(rows(target).values())
    shelf.storage.delete(shelf.name)
    with pytest.raises(CorruptBackup, match="is missing"):
        shelf.restore(target._engine)
    shelf.file = whole
    shelf.restore(target._engine)
    assert rows(target) == rows(small)


def lines(shelf: Shelf) -> list[bytes]:
    return b"".join(shelf.catalog.read(shelf.backup, "rows")).splitlines()


def rewritten(shelf: Shelf, changed: list[bytes]) -> Backup:
    """Another backup of those lines, its checksums in order: as whoever is able to write into the storage could make it."""
    file = shelf.catalog.write_frames(shelf.name, lambda: [b"\n".join(changed) + b"\n"], "none", None)
    return replace(shelf.backup, files=(replace(shelf.backup.files[0], size=file.size, sha256=file.sha256),))


def test_a_file_that_was_made_up_is_refused(small: Store, new_database: New) -> None:
    shelf = Shelf(small)
    good = lines(shelf)
    agent = next(index for index, line in enumerate(good) if b'"scout"' in line)
    end = next(index for index, line in enumerate(good) if b'"table":"agents"' in line)
    made_up = {
        "a value": [line.replace(b'"scout"', b'"spy"') for line in good],
        "a row more": [*good[:agent], good[agent].replace(b'["', b'["x', 1), *good[agent:]],
        "a row less": [*good[:agent], *good[agent + 1 :]],
        "a wide row": [*good[:agent], good[agent][:-1] + b",1]", *good[agent + 1 :]],
        "no end": good[:-1],
        "more at the end": [*good, b"[]"],
        "more after a gap": [*good, b"", b"[]"],
        "a table less": [*good[:end], *good[end + 1 :]],
        "no header": good[1:],
        "a foreign table": [good[0].replace(b'"name":"agents"', b'"name":"strangers"', 1), *good[1:]],
        "a name that is none": [good[0].replace(b'"name":"agents"', b'"name":"agents; DROP TABLE tasks"', 1), *good[1:]],
        "a column's name that is none": [good[0].replace(b'"name":"payload"', b'"name":"pay\\"load"', 1), *good[1:]],
        "a column twice": [good[0].replace(b'"name":"type"', b'"name":"id"', 1), *good[1:]],
        "a table twice": [good[0].replace(b'"name":"tasks"', b'"name":"agents"', 1), *good[1:]],
        "no key": [good[0].replace(b'"key":["position"]', b'"key":[]', 1), *good[1:]],
        "an unknown type": [good[0].replace(b'"integer"', b'"blob"', 1), *good[1:]],
        "a reference to nothing": [good[0].replace(b'"refers":"id"', b'"refers":"di"', 1), *good[1:]],
        "nonsense": [b"\xff\xfe", *good[1:]],
    }
    target = new_database().open()
    for what, changed in made_up.items():
        assert changed != good, what
        backup = rewritten(shelf, changed)
        [problem] = format_rows.verify(shelf.catalog, backup)
        assert shelf.name in problem, what
        with pytest.raises(CorruptBackup, match=shelf.name):
            shelf.restore(target._engine, backup)
        assert not any(rows(target).values()), what
    assert format_rows.verify(shelf.catalog, rewritten(shelf, good)) == []
    shelf.restore(target._engine, rewritten(shelf, good))
    assert rows(target) == rows(small)


def test_an_encrypted_backup_needs_its_key(small: Store, new_database: New) -> None:
    pytest.importorskip("cryptography")
    shelf = Shelf(small, key=b"k" * 32)
    assert b"scout" not in shelf.file
    target = new_database().open()
    stranger = Shelf(small, key=b"z" * 32)
    stranger.storage = shelf.storage
    with pytest.raises(Exception, match="the key is not the one"):
        format_rows.restore(Catalog(shelf.storage, b"z" * 32), shelf.backup, target._engine)
    assert not any(rows(target).values())
    shelf.restore(target._engine)
    assert rows(target) == rows(small)


# Revisions


def as_of(engine: Engine, revision: str) -> list[Table]:
    """The tables of an earlier revision, as that release described them."""
    with engine.migration() as connection:
        reflected = MetaData()
        reflected.reflect(connection)
        metadata, described = MetaData(), []
        for table in reflected.sorted_tables:
            known = schema.metadata.tables.get(table.name)
            if known is None or known is schema.schema_migrations:
                continue
            columns = [
                Column(
                    column.name,
                    known.c[column.name].type,
                    *(
                        ForeignKey(f"{reference.column.table.name}.{reference.column.name}")
                        for reference in column.foreign_keys
                        if reference.column.table is table
                    ),
                )
                for column in table.columns
            ]
            described.append(Table(table.name, metadata, *columns, PrimaryKeyConstraint(*(column.name for column in table.primary_key))))
    return described


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_backup_of_an_earlier_release_comes_back_at_its_revision(
    full: Store, nothing: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    migrations.downgrade(full._engine, revision)
    earlier = as_of(full._engine, revision)
    with monkeypatch.context() as then:
        then.setattr(schema, "REVISION", revision)
        then.setattr(transfer, "tables", lambda: earlier)
        shelf = Shelf(full)
    assert shelf.backup.revision == revision
    assert shelf.verify() == []
    engine = nothing()
    shelf.restore(engine)
    assert migrations.current(engine) == revision
    migrations.upgrade(engine)
    migrations.upgrade(full._engine)
    with Store(engine) as target:
        assert target.check() == []
        assert rows(target) == rows(full)
        assert len(target.tasks.find_all()) > 10


def test_another_revision_is_refused_with_what_to_do(full: Store, new_database: New, nothing: Callable[[], Engine]) -> None:
    shelf = Shelf(full)
    engine = nothing()
    with pytest.raises(SchemaMismatch, match="at revision 0999") as raised:
        shelf.restore(engine, replace(shelf.backup, revision="0999"))
    assert "Upgrade ruv-swarm-store" in raised.value.hint
    assert engine.tables() == frozenset()
    other = new_database().open()
    with pytest.raises(SchemaMismatch, match="and the backup at 0002") as raised:
        shelf.restore(other._engine, replace(shelf.backup, revision="0002"))
    assert "new database" in raised.value.hint
    migrations.downgrade(other._engine, "0002")
    with pytest.raises(SchemaMismatch, match="ruv-swarm upgrade"):
        Shelf(other)
