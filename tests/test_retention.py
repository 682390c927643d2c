"""What is kept: as many as asked for, and all that these add to."""

import random
import time
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ruv_swarm_store import Conflict, InvalidValue, NotFound, Store
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.catalog import Catalog
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.backup.retention import Retention, prune
from ruv_swarm_store.backup.storage import DirectoryStorage, MemoryStorage
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.errors import Unavailable

HOUR = 3_600_000
START = int(datetime(2027, 1, 1, tzinfo=UTC).timestamp() * 1000)


def backup(at: int, parent: str | None = None) -> Backup:
    return Backup(
        id=new_id(at),
        kind="incremental" if parent else "full",
        parent=parent,
        began_at=at,
        created_at=at,
        revision="1",
        position=0,
        rows={},
        files=(),
        compression="none",
    )


def stored(backups: list[Backup]) -> Catalog:
    catalog = Catalog(MemoryStorage())
    for one in backups:
        catalog.write_record(one.manifest, one, None)
    return catalog


def every(hours: int, count: int) -> list[Backup]:
    return [backup(START + number * hours * HOUR) for number in range(count)]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(last=3), [87, 88, 89]),
        (Retention(last=1000), list(range(90))),
        (Retention(hourly=2), [88, 89]),
        (Retention(daily=3), [83, 87, 89]),  # the newest of each day; the last one's is at 06:00
        (Retention(weekly=2), [67, 89]),
        (Retention(monthly=5), [89]),  # all in January
        (Retention(yearly=1, last=1), [89]),
        (Retention(last=1, daily=2, weekly=3), [39, 67, 87, 89]),
    ],
)
def test_the_newest_of_each_period_is_chosen(retention: Retention, kept: list[int]):
    made = every(6, 90)  # 00:00, 06:00, 12:00 and 18:00 from Friday, 1 January to 23 January, 06:00
    assert [number for number, one in enumerate(made) if one.id in retention.chosen(made)] == kept


def test_periods_without_a_backup_are_not_counted():
    made = [backup(START + days * 24 * HOUR) for days in (0, 1, 40, 41, 200)]
    assert Retention(monthly=2).chosen(made) == {made[3].id, made[4].id}
    assert Retention(daily=4).chosen(made) == {one.id for one in made[1:]}


def test_days_are_those_of_utc_whatever_the_time_zone_here(monkeypatch: pytest.MonkeyPatch):
    import time

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
    if hasattr(time, "tzset"):
        time.tzset()
    try:
        late, early = backup(START + 23 * HOUR), backup(START + 25 * HOUR)
        assert Retention(daily=5).chosen([late, early]) == {late.id, early.id}
    finally:
        monkeypatch.undo()
        if hasattr(time, "tzset"):
            time.tzset()


@settings(max_examples=100)
@given(data=st.data())
def test_no_chain_is_ever_broken_and_nothing_else_is_kept(data: st.DataObject):
    made: list[Backup] = []
    at = START
    for _ in range(data.draw(st.integers(1, 40))):
        at += data.draw(st.integers(1, 40 * 24)) * HOUR
        parents = [None, *(one.id for one in made[-4:])]
        made.append(backup(at, data.draw(st.sampled_from(parents))))
    numbers = st.integers(0, 4)
    fields = {name: data.draw(numbers, name) for name in Retention.__struct_fields__}
    retention = Retention(**fields) if any(fields.values()) else Retention(last=1)
    catalog = stored(made)
    pruned = prune(catalog, retention, at)
    left = catalog.contents()
    assert made[-1].id in pruned.kept
    assert set(left.backups) == {*pruned.kept, *pruned.needed}
    assert {*left.backups, *pruned.removed} == {one.id for one in made}
    needed = {part.id for id in pruned.kept for part in left.chain(id)}  # raises for a broken chain
    assert needed == set(left.backups)
    assert set(pruned.kept) == retention.chosen(made)
    assert len(pruned.kept) <= 1 + sum(fields.values()) or not any(fields.values())
    again = prune(catalog, retention, at)
    assert (again.removed, set(again.kept) | set(again.needed)) == ((), needed)


@pytest.mark.parametrize("wrong", [{}, {"last": 0}, {"daily": -1}, {"last": "3"}, {"weekly": 1.5}])
def test_a_retention_that_makes_no_sense_is_refused(wrong: dict[str, Any]):
    with pytest.raises(InvalidValue):
        Retention(**wrong)


def test_twenty_backups_keep_five(tmp_path: Any, clock: Any):
    with Store.open(tmp_path / "swarm.db", clock=clock) as store:
        for number in range(20):
            clock.advance(3_600)
            store.tasks.enqueue("crawl", number)
            store.backups.create("full" if number in (0, 9) else "incremental")
        pruned = store.backups.prune(5)
        assert len(pruned.kept) == 5
        assert len(pruned.needed) == 6  # from the full one at 9 on
        assert len(pruned.removed) == 9
        files = {path.name.partition(".")[0] for path in (tmp_path / "swarm.db.backups").iterdir()}
        assert files == {*pruned.kept, *pruned.needed}
        for number, id in enumerate(pruned.kept, start=16):
            assert store.backups.drill(id).passed
            store.backups.restore(id, into=tmp_path / f"{number}.db")
            with Store.open(tmp_path / f"{number}.db") as restored:
                assert restored.tasks.count() == number


def test_a_hundred_and_fifty_backups_over_months(clock: Any):
    choose = random.Random(7)
    clock.now = START
    storage = MemoryStorage()
    retention = Retention(last=3, daily=7, weekly=5, monthly=6)
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        tasks = {}
        for number in range(150):
            clock.advance(choose.randrange(2, 60) * 3_600)
            store.tasks.enqueue("crawl", {"text": "x" * choose.randrange(500)})
            made = backups.create("full" if number % 10 == 0 else "incremental")
            tasks[made.id] = store.tasks.count()
            if number % 25 == 24:
                backups.prune(retention)
        assert clock.now - START > 150 * 24 * HOUR
        pruned = backups.prune(retention)
        left = backups.list()
        assert 10 <= len(pruned.kept) <= 21
        assert {one.id for one in left} == {*pruned.kept, *pruned.needed}
        assert len({name.partition(".")[0] for name in storage.names()}) == len(left) < 100
        assert pruned.broken == pruned.leftovers == ()
        for one in left:
            drill = backups.drill(one)
            assert (drill.passed, drill.rows["tasks"]) == (True, tasks[one.id]), drill.problems
        assert backups.verify(integrity=False).ok


def test_what_killed_processes_leave_goes_after_a_day(tmp_path: Any, clock: Any):
    storage = DirectoryStorage(tmp_path / "backups")
    with Store.open(tmp_path / "swarm.db", clock=clock) as store:
        backups = store.backup_to(storage)
        first = backups.create()
        orphan = new_id(clock.now)
        left = [
            f"{orphan}.pages",
            f"{orphan}.hashes",
            f"{first.id}.drill.{new_id(clock.now)}.0a1b2c3d.part",
            f"{new_id(clock.now)}.log.{new_id(clock.now)}",  # shipped behind what was pruned
        ]
        for name in left:
            storage.write(name, [b"half"])
        (tmp_path / "backups" / "README").write_text("somebody else's")
        storage.write("notes.txt", [b"somebody else's"])
        assert list(backups.list()) == [first]
        clock.advance(86_399)
        assert backups.prune(3).leftovers == ()  # it may be on its way still
        clock.advance(2)
        assert sorted(backups.prune(3, dry_run=True).leftovers) == sorted(left)
        assert sorted(backups.prune(3).leftovers) == sorted(left)
        assert sorted(path.name for path in (tmp_path / "backups").iterdir()) == sorted(
            ["README", "notes.txt", first.manifest, first.name("pages"), first.name("hashes")]
        )
        assert backups.verify().ok


def test_a_shipment_being_written_is_not_a_leftover(clock: Any):
    """Its name ends as that of a file which is not whole; what counts is when it was begun, not how old its backup is."""
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        first = backups.create()
        clock.advance(30 * 86_400)
        storage.write(f"{first.id}.log.{new_id(clock.now)}.0a1b2c3d.part", [b"half"])
        assert backups.prune(1).leftovers == ()


def test_a_backup_somebody_has_just_added_to_is_not_removed(clock: Any):
    """Between looking and removing, another process has made an increment on what was to go."""
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        old = backups.create()
        clock.advance(60)
        new = backups.create()
        late = backup(clock.now + 1, old.id)

        class Catching(Catalog):
            looks = 0

            def contents(self, *, fresh: bool = False) -> Any:
                seen = super().contents(fresh=fresh)
                self.looks += 1
                if self.looks == 1:
                    self.write_record(late.manifest, late, None)
                return seen

        prune(Catching(storage), 1, clock.now)
        left = Backups.of(storage)
        assert {one.id for one in left.list()} == {old.id, new.id, late.id}
        assert [one.id for one in left.chain(late.id)] == [old.id, late.id]


def test_an_increment_whose_base_was_pruned_meanwhile_becomes_a_full_backup(clock: Any):
    with Store.open(clock=clock) as store:
        storage = Vanishing()
        backups = store.backup_to(storage)
        base = backups.create()
        clock.advance(60)
        store.tasks.enqueue("crawl")
        for point in ("hashes", "manifest"):  # before the increment's manifest is written, and at that very moment
            storage.at, storage.base, storage.written = point, base.id, []
            made = backups.create("incremental")
            assert made.kind == "full"
            assert len([name for name in storage.written if name.endswith("manifest")]) == (1 if point == "hashes" else 2)
            assert [one.id for one in backups.list()] == [made.id]
            assert backups.drill().passed
            clock.advance(60)
            base = made


class Vanishing(MemoryStorage):
    """As a file of an increment is written, its base is removed."""

    at = base = ""
    written: ClassVar[list[str]] = []

    def write(self, name: str, chunks: Any) -> None:
        super().write(name, chunks)
        self.written.append(name)
        if self.base and name.endswith(self.at) and not name.startswith(self.base):
            for other in self.names(self.base):
                self.delete(other)
            self.base = ""


def test_pruning_that_is_interrupted_leaves_whole_chains(clock: Any):
    class Stopping(MemoryStorage):
        left = 10**6

        def delete(self, name: str) -> None:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            super().delete(name)

    with Store.open(clock=clock) as store:
        for stop in range(1, 15, 2):
            storage = Stopping()
            backups = store.backup_to(storage)
            for number in range(6):
                clock.advance(60)
                backups.create("full" if number in (0, 5) else "incremental")
            storage.left = stop
            with pytest.raises(KeyboardInterrupt):
                backups.prune(1)
            contents = Catalog(storage).contents()
            assert all(contents.whole(id) for id in contents.backups), stop
            storage.left = 10**6
            clock.advance(2 * 86_400)
            backups.prune(1)
            assert len({name.partition(".")[0] for name in storage.names()}) == 1


def test_damaged_backups_are_neither_counted_nor_removed(clock: Any):
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        made = []
        for number in range(4):
            clock.advance(60)
            made.append(backups.create("full" if number != 2 else "incremental"))
        storage.delete(made[1].name("pages"))  # so the increment on it is lost, too
        clock.advance(60)
        pruned = Backups.of(storage).prune(2)
        assert pruned.broken == (made[1].id, made[2].id)
        assert pruned.kept == (made[0].id, made[3].id)
        assert pruned.removed == ()


def test_backups_of_an_earlier_key_are_passed_over_and_can_be_deleted(clock: Any):
    pytest.importorskip("cryptography")
    old, new = b"a" * 32, b"b" * 32
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        plain = store.backup_to(storage).create()
        clock.advance(60)
        base = store.backup_to(storage, key=old).create()
        clock.advance(60)
        store.tasks.enqueue("crawl")
        increment = store.backup_to(storage, key=old).create("incremental")
        clock.advance(60)
        backups = store.backup_to(storage, key=new)
        with pytest.raises(InvalidValue, match="not the one"):  # of none: a key that was mistyped
            backups.verify()
        made = backups.create()
        found = backups.verify()
        assert (found.ok, found.backups, found.passed_over) == (True, (plain.id, made.id), (base.id, increment.id))
        for key, error in ((new, "not the one"), (None, "no key was given")):
            with pytest.raises(InvalidValue, match=error):
                store.backup_to(storage, key=key).verify(base)
        with pytest.raises(InvalidValue, match="no key was given"):
            Backups.of(storage).verify()
        with pytest.raises(Conflict, match=f"{increment.id} adds to backup {base.id}"):
            backups.delete(base)
        assert len(backups.list()) == 4
        backups.delete(increment)
        backups.delete(base.id)
        assert [one.id for one in backups.list()] == [plain.id, made.id]
        assert {name.partition(".")[0] for name in storage.names()} == {plain.id, made.id}
        assert backups.verify().passed_over == ()
        with pytest.raises(NotFound):
            backups.delete(base)


def test_a_damaged_backup_can_be_deleted_and_until_then_keeps_what_it_may_add_to(clock: Any):
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        base = backups.create()
        clock.advance(60)
        increment = backups.create("incremental")
        storage._files[increment.manifest] = storage._files[increment.manifest][:-5]
        with pytest.raises(Conflict, match="or may do so"):
            Backups.of(storage).delete(base)
        assert Backups.of(storage).drill(base).passed
        backups.delete(increment.id)
        backups.delete(base)
    assert storage.names() == []


def test_who_adds_to_a_backup_at_the_moment_of_its_deletion_keeps_it(clock: Any):
    class Late(MemoryStorage):
        late: Backup | None = None

        def delete(self, name: str) -> None:
            super().delete(name)
            if self.late is not None:
                late, self.late = self.late, None
                Catalog(self).write_record(late.manifest, late, None)

    storage = Late()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        base = backups.create()
        storage.late = backup(clock.advance(60), base.id)
        with pytest.raises(Conflict, match="adds to"):
            backups.delete(base)
        assert backups.drill(base).passed


def test_a_month_is_a_calendar_month():
    days = [datetime(2027, 1, 31, 23, 59, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC), datetime(2027, 2, 28, tzinfo=UTC)]
    made = [backup(int(day.timestamp() * 1000)) for day in days]
    assert Retention(monthly=2).chosen(made) == {made[0].id, made[2].id}
    assert days[1] - days[0] == timedelta(minutes=1)


def test_what_is_pruned_while_it_is_verified_is_no_problem(clock: Any):
    class Pruned(MemoryStorage):
        """Somebody removes a backup as soon as the next file of it is read."""

        gone = ""

        def read(self, name: str) -> Any:
            if self.gone and name == f"{self.gone}.hashes":
                for other in self.names(self.gone):
                    self.delete(other)
            return super().read(name)

    storage = Pruned()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        first, second = backups.create(), backups.create()
        storage.gone = first.id
        verified = backups.verify()
        assert (verified.problems, verified.backups) == ((), (second.id,))


def test_what_was_shipped_after_a_backup_before_the_newest_stays_until_the_newest_leads_further(tmp_path: Any, path: Any):
    with Store.open(path) as store:
        with store.backups.continuous(interval=1_000) as shipping:
            shipping.ship()
            full = store.backups.create()  # by somebody else, as far as shipping knows
            wait_a_millisecond()
            store.config.set("after", 1)
            base = shipping.ship().name.partition(".")[0]
            assert base != full.id
            pruned = store.backups.prune(1)
            assert (pruned.kept, pruned.needed, pruned.removed) == ((full.id,), (base,), ())
            store.backups.restore(into=tmp_path / "latest.db")
            with Store.open(tmp_path / "latest.db") as latest:
                assert latest.config.get("after") == 1
        wait_a_millisecond()
        newest = store.backups.create()
        assert base in store.backups.prune(1).removed
        assert list(store.backups.list()) == [newest]


def wait_a_millisecond() -> None:
    time.sleep(0.002)


def test_who_adds_to_a_backup_at_the_moment_of_its_removal_keeps_it(clock: Any):
    """The increment's manifest comes after the last look before the removal, and its maker's look just before the removal itself."""

    class Removing(MemoryStorage):
        late: Backup | None = None

        def delete(self, name: str) -> None:
            if self.late is not None:
                late, self.late = self.late, None
                Catalog(self).write_record(late.manifest, late, None)
                assert Backups.of(self).chain(late)
            super().delete(name)

    storage = Removing()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        old = backups.create()
        clock.advance(60)
        new = backups.create()
        storage.late = backup(clock.now + 1, old.id)
        assert backups.prune(1).removed == ()
        assert {one.id for one in backups.list()} >= {old.id, new.id}
        assert [one.kind for one in backups.list()] == ["full", "full", "incremental"]
        assert backups.drill(old).passed


@pytest.mark.parametrize("form", ["pages", "rows"])
def test_a_backup_whose_files_were_taken_for_leftovers_is_none(clock: Any, form: Any):
    class Cleaned(MemoryStorage):
        def write(self, name: str, chunks: Any) -> None:
            if name.endswith(".manifest"):
                for other in self.names():
                    self.delete(other)
            super().write(name, chunks)

    storage = Cleaned()
    with Store.open(clock=clock) as store, pytest.raises(Unavailable, match="removed while it was made") as raised:
        store.backup_to(storage).create(format=form)
    assert "pruned this one at once" in raised.value.hint
    assert storage.names() == []


def test_what_an_unreadable_backup_may_add_to_stays(clock: Any):
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        base = backups.create()
        clock.advance(60)
        store.tasks.enqueue("crawl")
        increment = backups.create("incremental")
        clock.advance(60)
        full = backups.create()
        manifest = storage._files[increment.manifest]
        storage._files[increment.manifest] = manifest[:-5]
        pruned = Backups.of(storage).prune(1)
        assert (pruned.kept, pruned.needed, pruned.broken, pruned.removed) == ((full.id,), (base.id,), (increment.id,), ())
        storage._files[increment.manifest] = manifest  # a copy of it was found
        assert Backups.of(storage).drill(increment).passed


def test_each_store_s_and_each_key_s_backups_are_counted_by_themselves(tmp_path: Any, clock: Any):
    storage = MemoryStorage()
    made = []
    for name, key in (("a", None), ("b", None), ("b", bytes(32))):
        with Store.open(tmp_path / f"{name}.db", clock=clock) as store:
            for _ in range(2):
                clock.advance(60)
                made.append(store.backup_to(storage, key=key).create().id)
            for keep in (Retention(last=1), 1):
                store.backup_to(storage, key=key).prune(keep)
    assert [one.id for one in Backups.of(storage).list()] == made[1::2]
