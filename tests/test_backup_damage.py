"""Damage is named and never restored; what is already there is touched by nothing but a restoration that has succeeded."""

import errno
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select

from ruv_swarm_store import Conflict, InvalidValue, NewEvent, NotFound, Store, schema
from ruv_swarm_store.backup import continuous, manifest, restoring
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.storage import DirectoryStorage, MemoryStorage
from ruv_swarm_store.errors import CorruptBackup, CorruptDatabase, StoreError, Unavailable, Unsupported
from ruv_swarm_store.transfer import copy

pytestmark = pytest.mark.long

KEY = b"k" * 32
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"compression": "none"},
    "zlib": {"compression": "zlib"},
    "zstd": {"compression": "zstd"},
    "encrypted": {"compression": "zstd", "key": KEY},
}


class Kept:
    """A storage with a full backup, two increments and a drill."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.key = options.get("key")
        storage = MemoryStorage()
        with Store.open() as store:
            store.tasks.enqueue_many([("crawl", {"n": number}) for number in range(50)])
            store.events.append("s", [NewEvent("a"), NewEvent("b")], type="t")
            backups = store.backup_to(storage, **options)
            backups.create()
            for number in range(2):
                store.tasks.enqueue(f"round {number}")
                last = backups.create("incremental")
            self.chain = [backup.id for backup in backups.chain(last)]
            backups.drill(last)
        self.files = dict(storage._files)

    def damaged(self, name: str, change: Callable[[bytes], bytes]) -> Backups:
        storage = MemoryStorage()
        storage._files = self.files | {name: change(self.files[name])}
        return Backups.of(storage, key=self.key)


@pytest.fixture(scope="module", params=list(VARIANTS))
def kept(request: pytest.FixtureRequest) -> Kept:
    return Kept(VARIANTS[request.param])


def refuses(kept: Kept, backups: Backups, name: str, directory: Path) -> None:
    """Verification names the file, and whatever it belongs to is restored neither to a new place nor over a store."""
    verified = backups.verify(integrity=False)
    assert name in {problem.file for problem in verified.problems}, (name, verified.problems)
    owner = name.partition(".")[0]
    if ".drill." in name:
        assert backups.drill(owner).passed  # the backup itself is whole
        return
    affected = {owner, kept.chain[-1]}
    target = directory / "swarm.db"
    before = target.read_bytes()
    for id in affected:
        options: dict[str, Any]
        for options in ({"into": directory / "new.db"}, {"into": target, "overwrite": True}):
            with pytest.raises(CorruptBackup) as caught:
                backups.restore(id, **options)
            assert caught.value.data["file"] == name
        assert backups.verify(id, integrity=False).problems
    assert target.read_bytes() == before
    assert sorted(path.name for path in directory.iterdir()) == ["swarm.db"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    Store.open(place / "swarm.db").close()
    return place


def test_any_byte_of_any_file_may_flip(kept: Kept, directory: Path):
    @settings(max_examples=settings.default.max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(name=st.sampled_from(sorted(kept.files)), where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
    def flip(name: str, where: float, mask: int) -> None:
        at = int(where * len(kept.files[name]))
        refuses(kept, kept.damaged(name, lambda data: data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]), name, directory)

    flip()


def test_the_first_and_last_bytes_of_every_file(kept: Kept, directory: Path):
    for name, data in kept.files.items():
        for at in (0, len(data) - 1):
            refuses(kept, kept.damaged(name, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]), name, directory)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "without its last byte": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_file_may_be_shorter_or_longer(kept: Kept, directory: Path, change: str):
    for name in kept.files:
        refuses(kept, kept.damaged(name, CHANGES[change]), name, directory)


def test_no_file_may_be_another_s(kept: Kept, directory: Path):
    first, second = kept.chain[1:]
    for role in ("pages", "hashes", "manifest"):
        other = kept.files[f"{second}.{role}"]
        refuses(kept, kept.damaged(f"{first}.{role}", lambda _: other), f"{first}.{role}", directory)


def test_a_consistent_lie_is_found_by_what_it_gives(directory: Path):
    """Whoever can write manifests can make checksums right; the database still says what it is."""
    storage = MemoryStorage()
    with Store.open() as store:
        store.tasks.enqueue("crawl")
        backups = store.backup_to(storage)
        made = backups.create()
    fields = {name: getattr(made, name) for name in made.__struct_fields__}
    lies: list[dict[str, Any]] = [
        {"rows": made.rows | {"tasks": 2}},
        {"position": 9},
        {"image": "0" * 64},
        {"revision": "0001"},
        {"page_count": made.page_count + 1},
    ]
    for lie in lies:
        storage.write(made.manifest, [manifest.seal(manifest.Backup(**fields | lie))])
        told = Backups.of(storage)
        assert not told.verify().ok
        assert not told.drill().passed
        with pytest.raises(CorruptBackup):
            told.restore(into=directory / "new.db")
    assert sorted(path.name for path in directory.iterdir()) == ["swarm.db"]
    storage.write(made.manifest, [manifest.seal(manifest.Backup(**fields | {"pages": made.pages + 1}))])
    assert [problem.file for problem in Backups.of(storage).verify(integrity=False).problems] == [made.name("pages")]


def test_a_database_that_was_damaged_already_is_told_of_and_not_restored(path: Path, directory: Path):
    with Store.open(path) as store:
        store.tasks.enqueue_many([("crawl", {"text": "x" * 1_000})] * 200)
    with sqlite3.connect(path) as raw:
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tasks'").fetchone()
    raw.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)
    storage = MemoryStorage()
    with Store.open(path) as store:
        try:
            made = store.backup_to(storage).create()
        except CorruptDatabase:
            return  # counting has found it
    told = Backups.of(storage)
    assert {problem.file for problem in told.verify().problems} == {made.manifest}
    assert not told.drill().passed
    with pytest.raises(CorruptBackup, match="not whole"):
        told.restore(into=directory / "new.db")
    assert [path.name for path in directory.iterdir()] == ["swarm.db"]


def test_a_drill_that_fails_is_recorded():
    storage = MemoryStorage()
    with Store.open() as store:
        made = store.backup_to(storage).create()
    data = storage._files[made.name("pages")]
    storage._files[made.name("pages")] = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    backups = Backups.of(storage)
    drill = backups.drill()
    assert not drill.passed
    assert made.name("pages") in drill.problems[0]
    assert backups.drills(made.id) == [drill]


@pytest.mark.parametrize("whole", [True, False])
def test_a_drill_on_a_storage_that_may_only_be_read_tells_how_it_went(caplog: pytest.LogCaptureFixture, whole: bool):
    class ReadOnly(MemoryStorage):
        closed = False

        def write(self, name: str, chunks: Any) -> None:
            if self.closed:
                raise PermissionError(errno.EACCES, "read-only credentials")
            super().write(name, chunks)

    storage = ReadOnly()
    with Store.open() as store:
        made = store.backup_to(storage).create()
    if not whole:
        storage.delete(made.name("pages"))
    storage.closed = True
    backups = Backups.of(storage)
    assert backups.drill(made).passed == whole
    assert "could not be recorded" in caplog.text
    assert backups.drills(made.id) == []


def test_a_backup_that_is_removed_while_it_is_drilled_has_not_failed():
    class Pruned(MemoryStorage):
        def read(self, name: str) -> Any:
            if name.endswith(".pages"):
                for other in self.names(name.partition(".")[0]):
                    self.delete(other)
            return super().read(name)

    storage = Pruned()
    with Store.open() as store:
        made = store.backup_to(storage).create()
    with pytest.raises(NotFound, match="removed while it was drilled"):
        Backups.of(storage).drill(made)
    assert storage.names() == []


def test_an_increment_never_trusts_a_damaged_base(caplog: pytest.LogCaptureFixture):
    storage = MemoryStorage()
    with Store.open() as store:
        backups = store.backup_to(storage)
        base = backups.create()
        storage._files[base.name("hashes")] = storage._files[base.name("hashes")][:-1] + b"\0"
        made = backups.create("incremental")
        assert made.kind == "full"
        assert backups.drill(made).passed
    assert "base is damaged" in caplog.text


def test_an_increment_adds_to_the_newest_that_is_whole():
    storage = MemoryStorage()
    with Store.open() as store:
        backups = store.backup_to(storage)
        whole, broken = backups.create(), backups.create()
        storage.delete(broken.name("pages"))
        made = backups.create("incremental")
        assert made.parent == whole.id
        assert backups.newest() == made


def test_verification_reads_manifests_again():
    storage = MemoryStorage()
    with Store.open() as store:
        backups = store.backup_to(storage)
        made = backups.create()
        assert list(backups.list()) == [made]
        storage._files[made.manifest] = storage._files[made.manifest].replace(b"full", b"fool")
        assert [problem.file for problem in backups.verify().problems] == [made.manifest]


def test_a_file_that_became_smaller_comes_back_smaller(path: Path, tmp_path: Path):
    with Store.open(path) as store:
        many = store.tasks.enqueue_many([("bulk", {"text": "x" * 500})] * 400)
        large = store.backups.create()
        store.tasks.delete_many([task.id for task in many])
        with sqlite3.connect(path) as raw:
            raw.execute("VACUUM")
        raw.close()
        small = store.backups.create("incremental")
        assert (small.kind, small.page_count < large.page_count) == ("incremental", True)
        assert store.backups.verify().ok
        for backup in (small, large):
            store.backups.restore(backup, into=tmp_path / f"{backup.id}.db")
            assert (tmp_path / f"{backup.id}.db").stat().st_size == backup.page_count * backup.page_size


# Over a store that is there


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        opened.tasks.enqueue_many([("crawl", None)] * 10)
        yield opened


def other(path: Path, tasks: int) -> Path:
    with Store.open(path) as opened:
        opened.tasks.enqueue_many([("other", None)] * tasks)
    return path


def count(path: Path) -> int:
    with Store.open(path) as opened:
        assert opened.check() == []
        return opened.tasks.count()


def test_a_closed_store_is_replaced_when_asked_to(store: Store, tmp_path: Path):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    with pytest.raises(Conflict, match="exists already") as caught:
        store.backups.restore(into=target)
    assert caught.value.data["kind"] == "exists"
    assert store.backups.restore(into=target, overwrite=True).replaces
    assert count(target) == 10


def test_a_store_that_is_open_here_is_not_replaced(store: Store, tmp_path: Path):
    store.backups.create()
    with Store.open(tmp_path / "target.db") as target:
        target.tasks.enqueue("mine")
        for place in (tmp_path / "target.db", store._engine.file):
            assert place is not None
            for dry_run in (True, False):  # known before anything is read
                with pytest.raises(Conflict, match="in use"):
                    store.backups.restore(into=place, overwrite=True, dry_run=dry_run)
        target.tasks.enqueue("mine")
    assert count(tmp_path / "target.db") == 2


def test_a_database_somebody_reads_in_this_process_is_not_replaced(store: Store, tmp_path: Path):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    raw = sqlite3.connect(target)
    raw.execute("SELECT count(*) FROM tasks").fetchall()
    with pytest.raises(Conflict, match="in use"):
        store.backups.restore(into=target, overwrite=True)
    raw.execute("UPDATE tasks SET priority = 1")
    raw.commit()
    raw.close()
    assert count(target) == 3


IDLE = """
import sys
from ruv_swarm_store import Store
with Store.open(sys.argv[1], read_only=len(sys.argv) > 2) as store:
    store.tasks.count()
    print("open", flush=True)
    sys.stdin.readline()
    print(store.tasks.count() if len(sys.argv) > 2 else store.tasks.enqueue("mine").type, store.check(), flush=True)
"""


@pytest.mark.parametrize("words", [[], ["read only"]])
def test_a_store_that_is_open_elsewhere_is_not_replaced(store: Store, tmp_path: Path, environment: dict[str, str], words: list[str]):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    arguments = [sys.executable, "-c", IDLE, str(target), *words]
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(Conflict, match="in use"):
            store.backups.restore(into=target, overwrite=True)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() in ("mine []\n", "3 []\n")
    assert process.returncode == 0
    assert count(target) == (3 if words else 4)
    store.backups.restore(into=target, overwrite=True)
    assert count(target) == 10


READING = """
import sqlite3, sys
raw = sqlite3.connect(sys.argv[1])
assert raw.execute("PRAGMA journal_mode=DELETE").fetchone()[0] == "delete"
raw.execute("BEGIN")
print(raw.execute("SELECT count(*) FROM tasks").fetchone()[0], flush=True)
sys.stdin.readline()
"""


def test_a_database_without_a_log_is_not_replaced_while_somebody_reads(store: Store, tmp_path: Path, environment: dict[str, str]):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    arguments = [sys.executable, "-c", READING, str(target)]
    with subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "3\n"
        with pytest.raises(Conflict, match="in use"):
            store.backups.restore(into=target, overwrite=True)
        process.communicate("\n")
    store.backups.restore(into=target, overwrite=True)
    assert count(target) == 10


CRASHED = """
import os, sys
from ruv_swarm_store import Store
store = Store.open(sys.argv[1])
store.tasks.enqueue_many([("lost", None)] * 500)
os._exit(1)
"""


def test_a_log_left_by_a_crash_is_never_applied_to_what_is_restored(store: Store, tmp_path: Path, environment: dict[str, str]):
    store.backups.create()
    target = tmp_path / "target.db"
    subprocess.run([sys.executable, "-c", CRASHED, str(target)], env=environment, timeout=60, check=False)
    assert (tmp_path / "target.db-wal").stat().st_size > 0
    store.backups.restore(into=target, overwrite=True)
    assert not (tmp_path / "target.db-wal").exists()
    assert count(target) == 10


def test_a_log_without_its_database_is_in_the_way(store: Store, tmp_path: Path, environment: dict[str, str]):
    store.backups.create()
    target = tmp_path / "target.db"
    subprocess.run([sys.executable, "-c", CRASHED, str(target)], env=environment, timeout=60, check=False)
    target.unlink()
    with pytest.raises(Conflict, match="-wal exists"):
        store.backups.restore(into=target)
    store.backups.restore(into=target, overwrite=True)
    assert count(target) == 10


@pytest.mark.parametrize("damage", [b"not a database at all, though it is long enough to be one" * 100, b""])
def test_a_damaged_store_is_what_backups_are_for(store: Store, tmp_path: Path, environment: dict[str, str], damage: bytes):
    store.backups.create()
    target = tmp_path / "target.db"
    subprocess.run([sys.executable, "-c", CRASHED, str(target)], env=environment, timeout=60, check=False)
    target.write_bytes(damage)  # its log is there still
    store.backups.restore(into=target, overwrite=True)
    assert count(target) == 10
    assert sorted(path.name for path in tmp_path.glob("target.db*")) == ["target.db"]


CHANGED = """
import os, sys
from sqlalchemy import text
from ruv_swarm_store import Store
store = Store.open(sys.argv[1])
store.execute(text("UPDATE tasks SET priority = 7"))
os._exit(1)
"""


def test_a_log_that_cannot_be_brought_in_is_not_left_beside_what_is_restored(store: Store, tmp_path: Path, environment: dict[str, str]):
    store.backups.create()
    target = other(tmp_path / "target.db", 10)
    subprocess.run([sys.executable, "-c", CHANGED, str(target)], env=environment, timeout=60, check=False)
    log = (tmp_path / "target.db-wal").read_bytes()
    target.write_bytes(b"\xff" * 5_000)
    store.backups.restore(into=target, overwrite=True)
    assert sorted(path.name for path in tmp_path.glob("target.db*")) == ["target.db"]
    with Store.open(target) as restored:
        assert {task.priority for task in restored.tasks.find_all()} == {store.tasks.find_all()[0].priority}
        assert restored.check() == []
    # What it would have done: the log is valid, and says nothing of whose it is.
    shutil.copy(target, tmp_path / "victim.db")
    (tmp_path / "victim.db-wal").write_bytes(log)
    raw = sqlite3.connect(tmp_path / "victim.db")
    with pytest.raises((AssertionError, sqlite3.DatabaseError)):
        assert raw.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert raw.execute("SELECT DISTINCT priority FROM tasks").fetchall() != [(7,)]
    raw.close()


def test_who_opens_the_file_in_the_last_moment_does_not_write_into_the_void(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    late: list[sqlite3.Connection] = []
    replace = Path.replace

    def while_replacing(self: Path, there: Path) -> Path:
        if there == target:
            late.append(sqlite3.connect(target, timeout=0))  # opens the old file, and has not looked into it yet
            late[0].execute("PRAGMA cache_size")
        return replace(self, there)

    monkeypatch.setattr(Path, "replace", while_replacing)
    store.backups.restore(into=target, overwrite=True)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        late[0].execute("UPDATE tasks SET priority = 1")
    late[0].close()
    assert count(target) == 10


def test_another_name_of_the_replaced_file_keeps_its_contents(store: Store, tmp_path: Path):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    os.link(target, tmp_path / "copy.db")
    store.backups.restore(into=target, overwrite=True)
    assert (count(target), count(tmp_path / "copy.db")) == (10, 3)


def test_a_link_is_followed(store: Store, tmp_path: Path):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    (tmp_path / "link.db").symlink_to(target)
    store.backups.restore(into=tmp_path / "link.db", overwrite=True)
    assert (tmp_path / "link.db").is_symlink()
    assert count(target) == 10


def test_places_that_cannot_be_restored_to(store: Store, tmp_path: Path):
    store.backups.create()
    (tmp_path / "directory").mkdir()
    for place, error in (
        (tmp_path / "no" / "such" / "place.db", InvalidValue),
        (tmp_path / "directory", StoreError),
        (":memory:", InvalidValue),
        ("oracle://x/y", Unsupported),
        ("", InvalidValue),
        (None, InvalidValue),
        (7, InvalidValue),
        (tmp_path / "a\0b.db", InvalidValue),
    ):
        with pytest.raises(error):
            store.backups.restore(into=place)
    with pytest.raises(StoreError):
        store.backups.restore(into=tmp_path / "directory", overwrite=True)
    assert list((tmp_path / "directory").iterdir()) == []
    assert list(tmp_path.glob(".*restoring*")) == []


def test_what_is_no_backup_is_refused(store: Store):
    store.backups.create()
    wrong: Any
    for wrong in ([], 7, {"id": 1}):
        for verb in (store.backups.get, store.backups.verify, store.backups.drill, store.backups.delete):
            with pytest.raises(InvalidValue, match="backup"):
                verb(wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="paths may not be that long")
@pytest.mark.parametrize("name", ["n" * 240, "ü" * 120])
def test_a_name_may_be_as_long_as_a_store_s(store: Store, tmp_path: Path, name: str):
    target = other(tmp_path / name, 3)
    store.backups.create()
    store.backups.restore(into=target, overwrite=True)
    assert count(target) == 10
    assert [path for path in tmp_path.iterdir() if "restoring" in path.name] == []


def test_a_failure_of_any_step_leaves_the_target_as_it_was(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store.backups.create()
    target = other(tmp_path / "target.db", 3)
    before = target.read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    for where in ("write_pages", "check_image", "examine", "points.apply", "os.fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(f"ruv_swarm_store.backup.restoring.{where}", fail)
            with pytest.raises((OSError, StoreError)):
                store.backups.restore(into=target, overwrite=True)
        assert target.read_bytes() == before, where
    assert sorted(path.name for path in tmp_path.iterdir() if "target" in path.name) == ["target.db"]


RESTORE = """
import sys
from ruv_swarm_store.backup.backups import Backups
backups = Backups.of(sys.argv[1])
print("ready", flush=True)
while True:
    backups.restore(sys.argv[3], into=sys.argv[2], overwrite=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_a_kill_during_a_restoration_leaves_one_store_or_the_other(store: Store, tmp_path: Path, environment: dict[str, str]):
    storage = DirectoryStorage(tmp_path / "kept")
    backups = store.backup_to(storage)
    made = [backups.create()]
    store.tasks.enqueue_many([("crawl", {"text": "x" * 500})] * 500)
    made.append(backups.create())
    target = tmp_path / "target.db"
    seen = set()
    deadline = time.monotonic() + 120
    number = 0
    longest = 0.2
    while seen != {3, 10, 510}:  # before the first restoration, and after one of either backup
        assert time.monotonic() < deadline, seen
        number += 1
        for path in tmp_path.glob("target.db*"):
            path.unlink()
        other(target, 3)
        arguments = [sys.executable, "-c", RESTORE, str(tmp_path / "kept"), str(target), made[number % 2].id]
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(random.uniform(0, longest))
            process.kill()
        seen.add(found := count(target))
        longest *= 2 if found == 3 else 0.5
        assert seen <= {3, 10, 510}
    backups.restore(into=target, overwrite=True)
    assert count(target) == 510
    left = list(tmp_path.glob(".target.db.restoring-*"))
    for path in left:
        age(path)
    backups.restore(into=target, overwrite=True)
    assert list(tmp_path.glob(".target.db.restoring-*")) == []


def age(directory: Path) -> None:
    """Makes it look as if nothing had been written there for longer than a day."""
    for path in (*directory.iterdir(), directory):
        os.utime(path, (time.time() - restoring.ABANDONED - 1,) * 2)


DRILL = """
import os, signal, sys, tempfile
from ruv_swarm_store.backup import Backups, drill
tempfile.tempdir = sys.argv[2]
drill.examine = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Backups.of(sys.argv[1]).drill()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_what_a_killed_drill_leaves_goes_after_a_day(
    store: Store, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store.backup_to(tmp_path / "kept").create()
    subprocess.run([sys.executable, "-c", DRILL, str(tmp_path / "kept"), str(temporary)], env=environment, check=False)
    [left] = temporary.iterdir()
    backups = Backups.of(tmp_path / "kept")
    for written in (left, left / "store.db"):  # one that goes on: in either something was written lately
        age(left)
        os.utime(written)
        assert backups.drill().passed
        assert list(temporary.iterdir()) == [left]
    age(left)
    (temporary / "another").mkdir()
    age(temporary / "another")
    with monkeypatch.context() as other:
        if hasattr(os, "geteuid"):
            other.setattr(os, "geteuid", lambda: os.getuid() + 1)
            assert backups.verify().ok
            assert left.exists()
    assert backups.verify().ok
    assert [path.name for path in temporary.iterdir()] == ["another"]


def test_an_increment_after_few_random_changes_is_small(path: Path):
    chance = random.Random(1)
    with Store.open(path) as store:
        while path.stat().st_size < 30_000_000:
            payloads = [{"url": chance.randbytes(40).hex(), "text": "word " * 250, "number": number} for number in range(1_000)]
            store.tasks.enqueue_many([("crawl", payload) for payload in payloads])
        backups = store.backup_to(MemoryStorage(), compression="none")
        full = backups.create()
        ids = [row[0] for row in store.execute(select(schema.tasks.c.id))]
        with store.transaction() as work:
            for id in chance.sample(ids, 250):  # as 1 000 in 120 MB
                work.execute(schema.tasks.update().where(schema.tasks.c.id == id).values(error_message="changed"))
        increment = backups.create("incremental")
        assert increment.kind == "incremental"
        assert increment.size < 0.08 * full.size, increment.size / full.size
        backups.restore(into=path.with_name("restored.db"))
        with Store.open(path.with_name("restored.db")) as copy:
            assert sum(task.error_message == "changed" for task in copy.tasks.query().all()) == 250


def test_ten_writers_and_backups_at_once(store: Store, tmp_path: Path):
    stop = threading.Event()
    failures: list[BaseException] = []
    acknowledged: list[int] = [0] * 10

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                store.events.append(f"s{number}", [NewEvent("e", acknowledged[number])], type="t")
                acknowledged[number] += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    made = []
    for kind in ("full", "incremental", "incremental", "full", "incremental"):
        before = list(acknowledged)
        made.append((before, store.backups.create(kind), [number + 1 for number in acknowledged]))  # type: ignore[arg-type]
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.backups.verify().ok
    for number, (before, backup, after) in enumerate(made):
        store.backups.restore(backup, into=tmp_path / f"{number}.db")
        with Store.open(tmp_path / f"{number}.db") as restored:
            versions = [restored.events.version(f"s{stream}", type="t") for stream in range(10)]
            assert all(low <= here <= high for low, here, high in zip(before, versions, after, strict=True))
            assert restored.events.last_position() == backup.position
            assert restored.events.count() == sum(versions) == backup.rows["events"]


# Schemas


def test_an_old_schema_comes_back_as_it_was(path: Path, tmp_path: Path):
    from ruv_swarm_store import migrations, schema
    from ruv_swarm_store.engines import Options, connect

    storage = MemoryStorage()
    engine = connect(path, Options())
    migrations.upgrade(engine, "0001")
    made = Backups(storage, engine).create()
    engine.close()
    assert made.revision == "0001"
    backups = Backups.of(storage)
    assert backups.verify().ok
    assert backups.drill().passed
    assert backups.restore(into=tmp_path / "restored.db").revision == "0001"
    with pytest.raises(StoreError):
        Store.open(tmp_path / "restored.db", migrate=False)
    with Store.open(tmp_path / "restored.db") as opened:
        assert opened.backups.create().revision == schema.REVISION


def test_a_later_schema_comes_back_as_it_was_and_does_not_open(path: Path, tmp_path: Path):
    with Store.open(path) as store:
        from sqlalchemy import text

        with store.transaction() as work:
            work.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        made = store.backups.create()
        assert made.revision == "9999"
        assert store.backups.drill().passed
        assert store.backups.restore(into=tmp_path / "restored.db").revision == "9999"
    with pytest.raises(StoreError, match="9999"):
        Store.open(tmp_path / "restored.db")


def test_pages_can_be_restored_onto_a_server(store: Store, request: pytest.FixtureRequest):
    databases = request.getfixturevalue("postgresql")
    address = databases.new(absent=True)
    try:
        store.execute(insert(schema.event_projections).values(name="p", slot="a", state="live", version=1, changed_at=0))
        store.events.subscribe("s")
        store.backups.create()
        assert store.backups.restore(into=address).rows["event_projections"] == 0
        with Store.open(address) as restored:
            assert restored.events.live("p") is None  # its tables are not there
            assert [consumer.name for consumer in restored.events.consumers()] == ["s"]
            assert [task.id for task in restored.tasks.find_all()] == [task.id for task in store.tasks.find_all()]
            restored.tasks.enqueue("mine")
        with pytest.raises(Conflict):
            store.backups.restore(into=address)
        with pytest.raises(Unsupported):
            store.backups.restore(into=address, overwrite=True)
    finally:
        databases.drop(address)


def test_a_read_only_store_can_be_backed_up(path: Path, tmp_path: Path):
    other(path, 3)
    with Store.open(path, read_only=True) as store:
        made = store.backup_to(tmp_path / "kept").create()
    assert made.rows["tasks"] == 3
    assert Backups.of(tmp_path / "kept").drill().passed


@pytest.mark.parametrize("form", ["pages", "rows"])
def test_without_files_a_database_is_put_together_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch, form: Any):
    monkeypatch.setattr("ruv_swarm_store.backup.restoring.IN_BROWSER", True)
    store.backups.create(format=form)
    assert store.backups.verify().ok
    drill = store.backups.drill()
    assert (drill.passed, drill.rows["tasks"]) == (True, 10)


def test_a_restored_store_is_the_same_to_the_last_row(store: Store, tmp_path: Path):
    store.backups.create()
    store.backups.restore(into=tmp_path / "restored.db")
    ours = copy(store._engine.file, tmp_path / "a.db")  # type: ignore[arg-type]
    assert copy(tmp_path / "restored.db", tmp_path / "b.db") == ours


def test_a_moved_directory_of_backups_is_as_good(store: Store, tmp_path: Path):
    store.backups.create()
    kept = tmp_path / "swarm.db.backups"
    shutil.move(kept, tmp_path / "elsewhere")
    backups = Backups.of(tmp_path / "elsewhere")
    assert backups.verify().ok
    assert list(store.backups.list()) == []


def test_the_latest_state_is_not_an_older_one_in_silence(tmp_path: Path, clock: Any):
    storage = MemoryStorage()
    with Store.open(clock=clock) as store:
        backups = store.backup_to(storage)
        first = backups.create()
        clock.advance(60)
        second = backups.create("incremental")
        good = dict(storage._files)
        for name, change in ((second.manifest, CHANGES["half"]), (second.name("pages"), None)):
            storage._files = dict(good)
            if change is None:
                del storage._files[name]
            else:
                storage._files[name] = change(good[name])
            damaged = Backups.of(storage)
            with pytest.raises(CorruptBackup, match="the newest backup is damaged") as caught:
                damaged.restore(into=tmp_path / "new.db", dry_run=True)
            assert caught.value.data["file"] == name
            drill = damaged.drill()
            assert (drill.passed, drill.backup) == (False, first.id)
            assert damaged.restore(first, into=tmp_path / "new.db", dry_run=True).exact
            assert damaged.restore(at=first.began_at, into=tmp_path / "new.db", dry_run=True).backup == first.id
        storage._files = {second.manifest: good[second.manifest][:-1]}
        with pytest.raises(CorruptBackup):
            Backups.of(storage).restore(into=tmp_path / "new.db", dry_run=True)
        storage._files = dict(good)
        storage._files[second.manifest] = good[second.manifest][:-1]
        clock.advance(60)
        third = backups.create()
        assert Backups.of(storage).restore(into=tmp_path / "new.db", dry_run=True).backup == third.id


@pytest.mark.parametrize("following", ["segments", "drill"])
def test_a_newest_manifest_that_is_missing_is_told(path: Path, tmp_path: Path, following: str, monkeypatch: pytest.MonkeyPatch):
    storage = MemoryStorage()
    with Store.open(path) as store:
        backups = store.backup_to(storage)
        first = backups.create()
        time.sleep(0.003)
        if following == "drill":
            second = backups.create()
            assert backups.drill().passed
        else:
            monkeypatch.setattr(continuous, "LOOK_AROUND", 0.0)
            with backups.continuous(60) as shipping:
                shipping.ship()
                backups.create()
                shipping.ship()
                store.tasks.enqueue("crawl")
                shipped = shipping.ship().name
            assert ".log." in shipped
            second = backups.get(shipped.partition(".")[0])
        manifest = storage._files.pop(second.manifest)
        lost = Backups.of(storage)
        assert [problem.file for problem in lost.verify().problems] == [second.manifest]
        with pytest.raises(CorruptBackup, match="is missing") as caught:
            lost.restore(into=tmp_path / "new.db", dry_run=True)
        assert caught.value.data["file"] == second.manifest
        assert not lost.drill().passed
        assert lost.restore(first, into=tmp_path / "new.db", dry_run=True).exact
        lost.now = lambda: time.time_ns() // 1_000_000 + 7 * 86_400_000
        pruned = lost.prune(1)
        assert (pruned.leftovers, pruned.broken) == ((), (second.id,))
        assert second.parent not in pruned.removed
        alone = MemoryStorage()
        alone._files = {name: data for name, data in storage._files.items() if not name.startswith(first.id)}
        with pytest.raises(CorruptBackup, match="is missing"):
            Backups.of(alone).restore(into=tmp_path / "new.db", dry_run=True)
        storage._files[second.manifest] = manifest  # a copy of it was found
        assert Backups.of(storage).verify().ok
        storage._files.pop(second.manifest)
        time.sleep(0.003)
        third = backups.create()  # whatever was in it is in this one
        assert Backups.of(storage).verify().ok
        assert Backups.of(storage).restore(into=tmp_path / "new.db", dry_run=True).backup == third.id
        assert second.name("pages") in lost.prune(1).leftovers


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")
def test_a_file_that_is_replaced_keeps_its_mode_and_its_owner(store: Store, tmp_path: Path):
    target = other(tmp_path / "target.db", 3)
    target.chmod(0o664)
    if os.getuid() == 0:
        os.chown(target, 1234, 5678)
    was = target.stat()
    made = store.backups.create()
    store.backups.restore(made, into=target, overwrite=True)
    now = target.stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (was.st_mode, was.st_uid, was.st_gid)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no modes")
@pytest.mark.parametrize("format", ["pages", "rows"])
def test_a_new_file_is_for_its_owner_only(store: Store, tmp_path: Path, format: Any):
    store.backups.restore(store.backups.create(format=format), into=tmp_path / "new.db")
    assert (tmp_path / "new.db").stat().st_mode & 0o777 == 0o600


def test_a_log_that_was_moved_aside_comes_back_when_replacing_fails(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, log = tmp_path / "target.db", tmp_path / "target.db-shm"
    target.write_bytes(b"no database any more" * 100)
    log.write_bytes(b"what it was")
    made = store.backups.create()
    move = Path.replace

    def failing(self: Path, to: Any) -> Path:
        if Path(to) == target:
            raise OSError("not now")
        return move(self, to)

    with monkeypatch.context() as patched, pytest.raises(StoreError, match="not now"):
        patched.setattr(Path, "replace", failing)
        store.backups.restore(made, into=target, overwrite=True)
    assert log.read_bytes() == b"what it was"
    assert target.read_bytes().startswith(b"no database")
    store.backups.restore(made, into=target, overwrite=True)
    assert (count(target), list(tmp_path.glob("target.db-*"))) == (10, [])


def test_a_database_that_cannot_be_opened_just_now_is_not_taken_for_none(store: Store, tmp_path: Path):
    target = other(tmp_path / "target.db", 3)
    log = tmp_path / "target.db-wal"
    log.mkdir()
    before = target.read_bytes()
    with pytest.raises(Unavailable, match="cannot be opened"):
        store.backups.restore(store.backups.create(), into=target, overwrite=True)
    assert (log.is_dir(), target.read_bytes()) == (True, before)
