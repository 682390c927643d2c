"""Backups: what was there is there again, or nothing is touched and the error says why."""

from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from ruv_swarm_store import Conflict, Event, InvalidValue, NewEvent, NewTask, NotFound, Sample, Store, UnitOfWork
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.retention import Retention
from ruv_swarm_store.backup.storage import MemoryStorage
from ruv_swarm_store.engines import IN_BROWSER
from ruv_swarm_store.errors import CorruptBackup, StoreError, Unavailable, Unsupported

Address = str | Path
NOUNS = ("agents", "tasks", "messages", "metrics", "groups", "config", "events")


def fill(store: Store, count: int = 20) -> None:
    agent = store.agents.register("worker", capabilities=["it's", "🐝"])
    store.tasks.enqueue_many([NewTask("crawl", {"n": number, "text": "x" * 200}) for number in range(count)])
    task = store.tasks.claim(agent)
    assert task is not None
    store.tasks.complete(task, {"done": [1, 1.0, None]})
    store.messages.publish("found", {"n": 1}, sender=agent)
    store.metrics.record_many([Sample("latency", value) for value in (0.5, 1.5)])
    store.config.set("topology", "mesh")
    store.events.append("s", [NewEvent("began", {"n": 1}), NewEvent("ended")], type="t")


def contents(store: Store) -> dict[str, Any]:
    return {noun: sorted(getattr(store, noun).find_all(), key=repr) for noun in NOUNS}


def restored(address: Address) -> dict[str, Any]:
    with Store.open(address) as store:
        assert store.check() == []
        return contents(store)


@pytest.fixture
def place(new_database: Callable[..., Any], tmp_path: Path) -> Callable[[], Address]:
    """Makes addresses of nothing yet, where the engine itself can be restored; in memory it cannot, a file can."""

    def new() -> Address:
        address = new_database(absent=True).address
        if address is not None:
            return address
        if IN_BROWSER:
            from realm import scratch

            return f"{scratch()}restored-{uuid4()}"
        return tmp_path / f"restored-{uuid4()}.db"

    return new


@pytest.fixture
def storage() -> MemoryStorage:
    return MemoryStorage()


@pytest.fixture
def backups(store: Store, storage: MemoryStorage) -> Backups:
    return store.backup_to(storage)


def test_what_was_there_is_there_again(store: Store, backups: Backups, place: Callable[[], Address], clock: Any):
    fill(store)
    before, began = contents(store), clock.now
    backup = backups.create()
    clock.advance(60)
    store.tasks.enqueue("later")
    store.config.delete("topology")
    address = place()
    restoration = backups.restore(backup.id, into=address)
    assert restored(address) == before
    assert (backup.kind, backup.began_at, backup.rows["tasks"]) == ("full", began, 20)
    assert (restoration.backup, restoration.instant, restoration.dry_run) == (backup.id, began, False)
    assert restoration.rows["tasks"] == 20
    assert restoration.position == backup.position == store.events.last_position()


def test_every_increment_restores_to_its_own_state(store: Store, backups: Backups, place: Callable[[], Address], clock: Any):
    fill(store)
    states = {backups.create().id: contents(store)}
    for number in range(3):
        clock.advance(1)
        store.tasks.enqueue(f"round {number}")
        store.events.append("s", [NewEvent("round", number)], type="t")
        states[backups.create("incremental").id] = contents(store)
    assert [backup.id for backup in backups.list()] == list(states)
    for id, state in states.items():
        address = place()
        backups.restore(id, into=address)
        assert restored(address) == state
    address = place()
    backups.restore(into=address)  # the last
    assert restored(address) == state


def test_a_store_may_grow_and_shrink_between_increments(store: Store, backups: Backups, place: Callable[[], Address]):
    backups.create()
    many = store.tasks.enqueue_many([("bulk", {"text": "x" * 500})] * 400)
    backups.create("incremental")
    store.tasks.delete_many([task.id for task in many])
    backups.create("incremental")
    assert backups.verify().ok
    address = place()
    backups.restore(into=address)
    assert restored(address) == contents(store)


def test_the_first_increment_is_a_full_backup(store: Store, backups: Backups):
    assert backups.create("incremental").kind == "full"


def test_rows_can_be_asked_for_everywhere(store: Store, backups: Backups, place: Callable[[], Address]):
    fill(store)
    backup = backups.create(format="rows")
    assert (backup.format, backup.kind, backup.rows["tasks"]) == ("rows", "full", 20)
    assert backups.verify().ok
    assert backups.drill().passed
    address = place()
    backups.restore(backup, into=address)
    assert restored(address) == contents(store)


class Sold:
    """How often each item was sold, in tables of its own."""

    name, version = "sold", 1

    def apply(self, work: UnitOfWork, event: Event, slot: str) -> None:
        sold = f"INSERT INTO sold_{slot} VALUES (:item, 1) ON CONFLICT (item) DO UPDATE SET number = sold_{slot}.number + 1"
        work.execute(text(sold), {"item": event.event_data})

    def clear(self, work: UnitOfWork, slot: str) -> None:
        work.execute(text(f"CREATE TABLE IF NOT EXISTS sold_{slot} (item TEXT PRIMARY KEY, number INTEGER)"))
        work.execute(text(f"DELETE FROM sold_{slot}"))


def sell(store: Store, *items: str) -> None:
    store.events.append("shop", [NewEvent("sold", item) for item in items], type="shop")


def test_a_projection_whose_tables_did_not_come_along_is_built_again(
    store: Store, backups: Backups, place: Callable[[], Address], caplog: pytest.LogCaptureFixture
):
    sell(store, "tea", "jam", "tea")
    for name in ("booking", "projection:of one's own"):
        store.events.subscribe(name, types=["sold"]).handle(lambda work, event: None)
    projector = store.events.project(Sold(), types=["sold"])
    projector.run(timeout=0)
    backup = backups.create(format="rows")
    assert [told.partition(", not ")[2] for told in caplog.messages] == ["sold_a"]
    assert (backup.rows["event_projections"], backup.rows["event_consumers"]) == (1, 3)
    assert backups.drill(backup).passed
    address = place()
    restoration = backups.restore(backup, into=address)
    assert (restoration.rows["event_projections"], restoration.rows["event_consumers"]) == (0, 2)
    with Store.open(address) as target:
        again = target.events.project(Sold(), types=["sold"])
        assert (again.live, again.due) == (None, True)
        assert [(consumer.name, consumer.position) for consumer in target.events.consumers()] == [
            ("booking", 3),
            ("projection:of one's own", 3),
        ]
        sell(target, "tea")
        again.run(timeout=0)
        assert target.execute(text("SELECT item, number FROM sold_a ORDER BY item")) == [("jam", 1), ("tea", 3)]
    assert projector.live == "a"  # the store itself is as it was


def test_a_build_whose_tables_did_not_come_along_is_not_gone_on_with(store: Store, backups: Backups, place: Callable[[], Address]):
    sell(store, "tea", "jam", "tea")
    left = iter([False, True])
    assert not store.events.project(Sold()).rebuild(batch=2, stop=lambda: next(left))
    address = place()
    backups.restore(backups.create(format="rows"), into=address)
    with Store.open(address) as target:
        assert target.events.project(Sold()).rebuild()
        assert target.execute(text("SELECT item, number FROM sold_a ORDER BY item")) == [("jam", 1), ("tea", 2)]


def test_a_drill_is_recorded_beside_its_backup(store: Store, storage: MemoryStorage, backups: Backups, clock: Any):
    fill(store)
    backup = backups.create()
    clock.advance(5)
    drill = backups.drill(backup.id)
    assert (drill.passed, drill.problems, drill.backup, drill.at) == (True, [], backup.id, clock.now)
    assert drill.rows == backup.rows
    clock.advance(5)
    again = backups.drill()
    assert backups.drills(backup) == Backups.of(storage).drills(backup) == [drill, again]


def test_a_storage_needs_no_store(store: Store, storage: MemoryStorage, backups: Backups, place: Callable[[], Address]):
    fill(store)
    backup = backups.create()
    state = contents(store)
    store.close()
    alone = Backups.of(storage)
    assert list(alone.list()) == [backup]
    assert alone.verify().ok
    assert alone.drill().passed
    address = place()
    alone.restore(into=address)
    assert restored(address) == state
    with pytest.raises(Unsupported):
        alone.create()


def test_a_dry_run_tells_and_touches_nothing(store: Store, storage: MemoryStorage, backups: Backups, place: Callable[[], Address]):
    fill(store)
    full, increment = backups.create(), backups.create("incremental")
    address = place()
    before = dict(storage._files)
    plan = backups.restore(into=address, dry_run=True)
    assert plan.dry_run
    assert plan.backup == increment.id
    assert plan.chain == tuple(backup.id for backup in backups.chain(increment))
    assert plan.rows == increment.rows
    assert plan.size == sum(backup.size for backup in backups.chain(increment))
    assert storage._files == before
    done = backups.restore(into=address)  # the place was still free
    assert (done.chain, done.rows, done.size) == (plan.chain, plan.rows, plan.size)
    assert full.id <= plan.chain[0]


def test_what_is_there_is_not_replaced(store: Store, backups: Backups, place: Callable[[], Address]):
    fill(store)
    backups.create()
    address = place()
    backups.restore(into=address)
    with Store.open(address) as other:
        other.tasks.enqueue("mine")
        state = contents(other)
    with pytest.raises(Conflict):
        backups.restore(into=address)
    assert restored(address) == state


def test_every_file_is_named_that_was_damaged(store: Store, storage: MemoryStorage, backups: Backups, place: Callable[[], Address]):
    fill(store)
    full = backups.create()
    store.tasks.enqueue("more")
    increment = backups.create("incremental")
    backups.drill(full)
    whole = dict(storage._files)
    verified = backups.verify()
    assert (verified.ok, verified.backups) == (True, (full.id, increment.id))
    address = place()
    for name, data in whole.items():
        storage._files = whole | {name: _flipped(data, len(data) // 2)}
        problems = Backups.of(storage).verify(integrity=False).problems
        assert name in {problem.file for problem in problems}, name
        if ".drill." not in name:
            backup = name.partition(".")[0]
            with pytest.raises(CorruptBackup) as caught:
                Backups.of(storage).restore(backup, into=address)
            assert caught.value.data["file"] == name
            assert not Backups.of(storage).verify(backup, integrity=False).ok
    storage._files = dict(whole)
    backups.restore(into=address)  # none of them has left anything there
    assert restored(address) == contents(store)


def _flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    return data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


def test_what_is_missing_is_named(store: Store, storage: MemoryStorage, backups: Backups, place: Callable[[], Address]):
    fill(store)
    backup = backups.create()
    whole = dict(storage._files)
    for name in whole:
        storage._files = {other: data for other, data in whole.items() if other != name}
        assert backups.list() == []
        if name != backup.manifest:
            assert {problem.file for problem in Backups.of(storage).verify().problems} == {name}
        with pytest.raises((CorruptBackup, NotFound)):
            Backups.of(storage).restore(backup.id, into=place())


@pytest.mark.parametrize("compression", ["none", "zlib"])
def test_compressions_restore_alike(store: Store, storage: MemoryStorage, place: Callable[[], Address], compression: Any):
    fill(store)
    backup = store.backup_to(storage, compression=compression).create()
    assert backup.compression == compression
    address = place()
    Backups.of(storage).restore(into=address)
    assert restored(address) == contents(store)


def test_an_unknown_compression_or_kind_is_refused(store: Store, storage: MemoryStorage, backups: Backups):
    refused: list[Callable[[], object]] = [
        lambda: store.backup_to(storage, compression="best"),  # type: ignore[arg-type]
        lambda: backups.create("partial"),  # type: ignore[arg-type]
        lambda: backups.create(format="sql"),  # type: ignore[arg-type]
        lambda: store.backup_to(""),
        lambda: store.backup_to(storage, key=b"short"),
        lambda: store.backup_to(storage, key=""),
        lambda: backups.prune(0),
        lambda: backups.prune(Retention(last=-1)),
        lambda: Retention(),
        lambda: backups.schedule(0),
        lambda: backups.restore("a", at=1, into="x"),
    ]
    for call in refused:
        with pytest.raises(InvalidValue):
            call()
    for unknown in (backups.get, backups.chain, backups.verify, backups.drill, backups.drills):
        with pytest.raises(NotFound):
            unknown("nothing")
    with pytest.raises(NotFound):
        backups.restore(into="x")
    assert storage.names() == []


class Flaky(MemoryStorage):
    """Fails every third time something is written, in the middle of it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        self.writes += 1
        if self.writes % 3 == 0:
            next(iter(chunks))
            raise ConnectionError("the line went dead")
        super().write(name, chunks)


def test_a_storage_that_fails_every_third_write_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch, place: Any):
    monkeypatch.setattr("ruv_swarm_store.backup.retrying.FIRST_WAIT", 0.001)
    fill(store)
    storage = Flaky()
    backups = store.backup_to(storage)
    for number in range(6):
        store.tasks.enqueue(f"round {number}")
        backups.create("incremental")
    assert len(backups.list()) == 6
    assert storage.writes > 6
    assert backups.verify().ok
    address = place()
    backups.restore(into=address)
    assert restored(address) == contents(store)


class Dead(MemoryStorage):
    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        for number, _ in enumerate(chunks):
            if number == 1:
                break
        raise ConnectionError("the line is dead")


def test_a_storage_that_goes_on_failing_is_an_error_and_nothing_counts(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ruv_swarm_store.backup.retrying.FIRST_WAIT", 0.0001)
    fill(store)
    backups = store.backup_to(Dead())
    with pytest.raises(Unavailable, match="the line is dead"):
        backups.create()
    assert (list(backups.list()), store.tasks.count()) == ([], 20)


def test_pruning_keeps_what_others_add_to(store: Store, storage: MemoryStorage, backups: Backups, place: Callable[[], Address], clock: Any):
    fill(store)
    made = []
    for number in range(20):
        clock.advance(60)
        store.tasks.enqueue(f"round {number}")
        made.append(backups.create("full" if number % 6 == 0 else "incremental"))
    planned = backups.prune(5, dry_run=True)
    assert len(backups.list()) == 20
    pruned = backups.prune(5)
    assert pruned.kept == planned.kept == tuple(backup.id for backup in made[-5:])
    left = {backup.id for backup in backups.list()}
    assert left == {*pruned.kept, *pruned.needed}
    assert left == {part.id for id in pruned.kept for part in backups.chain(id)}
    assert {name.partition(".")[0] for name in storage.names()} == left
    for id in pruned.kept:
        assert backups.drill(id).passed
    assert backups.prune(5).removed == ()


def test_progress_goes_up_to_the_end(store: Store, backups: Backups, place: Callable[[], Address]):
    store.tasks.enqueue_many([("bulk", {"text": "x" * 2_000})] * 2_000)
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))

    for work in (
        lambda: backups.create(progress=progress),
        lambda: backups.verify(progress=progress),
        lambda: backups.drill(progress=progress),
        lambda: backups.restore(into=place(), progress=progress),
    ):
        told.clear()
        work()
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1][0] == told[-1][1]


def test_the_store_goes_on_while_it_is_backed_up(store: Store, backups: Backups, storage: MemoryStorage):
    fill(store)
    wrote: list[int] = []

    def progress(done: int, total: int) -> None:
        if store.capabilities.persistent and store.capabilities.threads:
            store.tasks.enqueue("meanwhile")
            wrote.append(done)

    backup = backups.create(progress=progress)
    assert backup.rows["tasks"] == 20
    assert store.tasks.count() == 20 + len(wrote)
    assert backups.drill().passed


def test_a_backup_is_not_made_inside_a_transaction(store: Store, backups: Backups, storage: MemoryStorage):
    with store.transaction() as work:
        work.tasks.enqueue("unseen")
        with pytest.raises(StoreError):
            backups.create()
    assert storage.names() == []


@pytest.mark.needs("threads")
def test_a_schedule_makes_what_is_due(store: Store, backups: Backups, clock: Any):
    schedule = backups.schedule(3_600, full_every=3, keep=4)
    kinds = []
    for _ in range(7):
        assert schedule.run_due()
        assert not schedule.run_due()
        kinds.append(backups.list()[-1].kind)
        clock.advance(3_599)
        assert not schedule.run_due()
        clock.advance(1)
    if "incremental" in kinds:  # where there are pages
        assert kinds == ["full", "incremental", "incremental"] * 2 + ["full"]
    assert {backup.id for backup in backups.list()} >= {backup.id for backup in backups.list()[-4:]}
    assert len(backups.list()) <= 6
    # Whoever begins later goes on from there.
    assert backups.schedule(3_600).due_in() <= 0
    clock.now = backups.list()[-1].began_at + 1_000
    assert backups.schedule(3_600).due_in() == 3_599_000


def test_a_clock_may_be_set_back(store: Store, backups: Backups, clock: Any):
    made = [backups.create()]
    for _ in range(3):
        clock.advance(-3_600)
        store.tasks.enqueue("crawl")
        made.append(backups.create("incremental"))
    assert list(backups.list()) == made
    assert backups.newest() == made[-1]
    assert made[-1].began_at == clock.now
    assert [backup.kind for backup in made[1:]] in (["incremental"] * 3, ["full"] * 3)
    assert all(newer.parent in (older.id, None) for older, newer in pairwise(made))
    assert backups.drill().rows["tasks"] == 3


@pytest.mark.needs("threads")
def test_a_schedule_goes_on_when_the_clock_was_put_right(store: Store, backups: Backups, clock: Any):
    schedule = backups.schedule(3_600)
    assert schedule.run_due()
    clock.advance(365 * 86_400)
    assert schedule.run_due()
    clock.advance(-364 * 86_400)
    for _ in range(3):
        assert schedule.run_due()
        assert schedule.due_in() == 3_600_000
        clock.advance(3_599)
        assert not schedule.run_due()
        clock.advance(1)
    assert len(backups.list()) == 5


@pytest.mark.needs("threads")
def test_a_schedule_works_by_itself(store: Store, storage: MemoryStorage):
    import time

    with store.backup_to(storage).schedule(3_600) as schedule:
        deadline = time.monotonic() + 10
        while not schedule.made and time.monotonic() < deadline:
            time.sleep(0.005)
    assert (schedule.made, schedule.failure) == (1, None)
    assert len(Backups.of(storage).list()) == 1


def test_a_schedule_needs_threads(store: Store, backups: Backups):
    if store.capabilities.threads:
        backups.schedule(60)
    else:
        with pytest.raises(Unsupported):
            backups.schedule(60)


def test_a_manifest_of_a_later_form_is_left_alone(store: Store, storage: MemoryStorage, backups: Backups, clock: Any):
    from ruv_swarm_store.backup import manifest

    old = backups.create()
    later = manifest.file_name("ffffffff-ffff-7000-8000-000000000000", "manifest")

    class Later(manifest.Backup, kw_only=True):  # type: ignore[misc]
        shape: str = "round"

    fields = {name: getattr(old, name) for name in old.__struct_fields__}
    # What a release adds within the form is passed over; a form of its own is not guessed at.
    storage.write(later, [manifest.seal(Later(**fields | {"id": later.partition(".")[0]}))])
    assert len(Backups.of(storage).list()) == 1  # its files are not there, but it was understood
    assert Backups.of(storage).get(later.partition(".")[0]).rows == old.rows
    storage.write(later, [manifest.seal(Later(**fields | {"id": later.partition(".")[0], "format_version": 2}))])
    alone = Backups.of(storage)
    assert list(alone.list()) == [old]
    assert [problem.file for problem in alone.verify().problems] == [later]
    with pytest.raises(StoreError, match="form 2"):
        alone.restore(later.partition(".")[0], into="nowhere")
    clock.advance(10 * 86_400)
    assert backups.prune(1).broken == (later.partition(".")[0],)
    assert later in storage.names()


def test_the_default_place(database: Any, store: Store):
    if store.capabilities.processes and "sql" in store.address and not store.capabilities.concurrent_writers:
        assert "swarm.db.backups" in repr(store.backups)
        assert "swarm.db.backups" in repr(store.backups.schedule(60))
        with pytest.raises(InvalidValue):
            store.backups.get([])
    elif store.capabilities.concurrent_writers:
        with pytest.raises(Unsupported, match="backup_to"):
            store.backups  # noqa: B018 - it raises
        return
    backup = store.backups.create()
    assert list(store.backups.list()) == [backup]
    assert store.backups is store.backups
