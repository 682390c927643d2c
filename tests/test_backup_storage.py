"""Where backups are kept: whole files or none, for their owner only; and what is in the files, which comes back or is refused."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruv_swarm_store import InvalidValue, NotFound, Store
from ruv_swarm_store.backup.backups import Backups, storage_at
from ruv_swarm_store.backup.encryption import Cipher, Keyring
from ruv_swarm_store.backup.frames import FRAME, MAGIC, Compression, FrameReader, FrameWriter, best_compression
from ruv_swarm_store.backup.manifest import Backup, seal
from ruv_swarm_store.backup.remote import FsspecStorage
from ruv_swarm_store.backup.retrying import ATTEMPTS, RetryingStorage
from ruv_swarm_store.backup.storage import BackupStorage, DirectoryStorage, MemoryStorage
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines import name_of
from ruv_swarm_store.errors import CorruptBackup, StoreError, Unavailable, Unsupported

KINDS: dict[str, Callable[[Path], BackupStorage]] = {
    "directory": lambda path: DirectoryStorage(path / "a" / "b"),
    "memory": lambda path: MemoryStorage(),
    "fsspec in memory": lambda path: FsspecStorage(f"memory://backups-{uuid4()}"),
    "fsspec in memory, at what looks like a pattern": lambda path: FsspecStorage(f"memory://backups-[a]*?-{uuid4()}"),
    "fsspec on files, at what looks like a pattern": lambda path: FsspecStorage(f"local://{path}/[a]*?"),
    "fsspec on files": lambda path: FsspecStorage(f"local://{path}/a/b"),
}


@pytest.fixture(params=list(KINDS))
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> BackupStorage:
    return KINDS[request.param](tmp_path)


def test_a_file_comes_back(storage: BackupStorage):
    assert isinstance(storage, BackupStorage)
    assert list(storage.names()) == []
    data = os.urandom(3_000_000)
    storage.write("a.pages", (data[at : at + 700_000] for at in range(0, len(data), 700_000)))
    storage.write("ab.pages", [b"two"])
    storage.write("empty", [])
    assert b"".join(storage.read("a.pages")) == data
    assert b"".join(storage.read("empty")) == b""
    assert storage.size("a.pages") == len(data)
    assert sorted(storage.names()) == ["a.pages", "ab.pages", "empty"]
    assert list(storage.names("a.")) == ["a.pages"]
    storage.write("a.pages", [b"other"])
    assert b"".join(storage.read("a.pages")) == b"other"
    storage.delete("a.pages")
    storage.delete("a.pages")
    assert sorted(storage.names()) == ["ab.pages", "empty"]


def test_what_is_not_there_is_not_found(storage: BackupStorage):
    for call in (lambda: list(storage.read("nothing")), lambda: storage.size("nothing")):
        with pytest.raises(NotFound):
            call()
    storage.write("something", [b"1"])
    for call in (lambda: list(storage.read("nothing")), lambda: storage.size("nothing")):
        with pytest.raises(NotFound):
            call()


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "../a", "A", "a b", "a\0", "é", "a" * 201])
def test_no_name_leads_out(storage: BackupStorage, name: str):
    with pytest.raises(InvalidValue):
        storage.write(name, [b"1"])


def test_what_fails_halfway_is_not_there(storage: BackupStorage):
    storage.write("a", [b"before"])

    def half() -> Iterator[bytes]:
        yield b"x" * 2_000_000
        raise RuntimeError("the source has run dry")

    for name in ("a", "b"):
        with pytest.raises(RuntimeError):
            storage.write(name, half())
    assert list(storage.names()) == ["a"]
    assert b"".join(storage.read("a")) == b"before"


def test_a_whole_store_goes_through_every_storage(storage: BackupStorage, tmp_path: Path):
    with Store.open() as store:
        store.tasks.enqueue_many([("crawl", number) for number in range(100)])
        backups = store.backup_to(storage)
        backups.create()
        store.tasks.enqueue("more")
        backups.create("incremental")
        assert backups.verify().ok
        backups.restore(into=tmp_path / "restored.db")
    with Store.open(tmp_path / "restored.db") as restored:
        assert restored.tasks.count() == 101


def test_files_are_their_owner_s(tmp_path: Path):
    old = os.umask(0)
    try:
        with Store.open(tmp_path / "swarm.db") as store:
            backups = store.backup_to(tmp_path / "kept")
            backups.create()
            backups.drill()
            backups.restore(into=tmp_path / "restored.db")
    finally:
        os.umask(old)
    assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").iterdir()} == {0o600}
    assert (tmp_path / "restored.db").stat().st_mode & 0o777 == 0o600


def test_a_place_may_be_a_path_or_a_url(tmp_path: Path):
    assert isinstance(storage_at("backups"), DirectoryStorage)
    assert isinstance(storage_at(tmp_path), DirectoryStorage)
    on_disk = storage_at(f"file://{tmp_path}/x")
    assert isinstance(on_disk, DirectoryStorage)
    assert on_disk.directory == tmp_path / "x"
    assert isinstance(storage_at("memory://x"), FsspecStorage)
    for url in ("nosuch://x", f"zip://x::file://{tmp_path}/absent.zip"):
        with pytest.raises(InvalidValue, match="cannot open"):
            storage_at(url)
    with pytest.raises(InvalidValue):
        storage_at(object())  # type: ignore[arg-type]
    with pytest.raises(InvalidValue):
        storage_at(MemoryStorage)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match=r"ruv-swarm-store\[backup\]|Install"):
        storage_at("s3://bucket/x")  # s3fs is not installed with the tests


def test_without_the_extra_the_errors_say_so(monkeypatch: pytest.MonkeyPatch):
    from ruv_swarm_store.backup import encryption, frames

    for module in ("fsspec.core", "cryptography.hazmat.primitives.ciphers.aead", "compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("backports.zstd", None, raising=False)
    frames._zstd.cache_clear()
    encryption._cipher.cache_clear()
    try:
        assert best_compression() == "zlib"
        with Store.open() as store:
            for call in (
                lambda: store.backup_to("memory://x"),
                lambda: store.backup_to(MemoryStorage(), compression="zstd"),
                lambda: store.backup_to(MemoryStorage(), key=bytes(32)).create(),
            ):
                with pytest.raises(Unsupported, match=r"ruv-swarm-store\[backup\]"):
                    call()
            backups = store.backup_to(MemoryStorage())
            assert backups.create().compression == "zlib"
            assert backups.verify().ok
    finally:
        frames._zstd.cache_clear()


# Trying again


class Scripted(MemoryStorage):
    """Fails as often as it is told to."""

    def __init__(self, *failures: Exception) -> None:
        super().__init__()
        self.failures = list(failures)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        data = list(chunks)
        if self.failures:
            raise self.failures.pop(0)
        super().write(name, data)

    def read(self, name: str) -> Iterator[bytes]:
        for number, chunk in enumerate(super().read(name)):
            if number == 1 and self.failures:
                raise self.failures.pop(0)
            yield chunk[: len(chunk) // 3]
            yield chunk[len(chunk) // 3 :]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ruv_swarm_store.backup.retrying.FIRST_WAIT", 0.0001)


def test_failures_are_over_in_a_moment():
    storage = Scripted(*[ConnectionError("away")] * (ATTEMPTS - 1))
    RetryingStorage(storage).write("a", lambda: [b"1", b"2"])
    assert storage._files == {"a": b"12"}


def test_a_reader_goes_on_where_it_was():
    storage = Scripted()
    data = os.urandom(5_000_000)
    storage.write("a", [data])
    storage.failures = [TimeoutError("away")] * 3
    assert b"".join(RetryingStorage(storage).read("a")) == data
    assert storage.failures == []


def test_at_some_point_it_is_an_error():
    storage = Scripted(*[ConnectionError("away")] * ATTEMPTS)
    with pytest.raises(Unavailable, match="away") as caught:
        RetryingStorage(storage).write("a", lambda: [b"1"])
    assert (caught.value.data["file"], caught.value.retryable, storage._files) == ("a", True, {})


def test_what_cannot_get_better_is_not_tried_again():
    full = OSError(28, "No space left on device")
    storage = Scripted(full, full)
    with pytest.raises(Unavailable, match="No space left"):
        RetryingStorage(storage).write("a", lambda: [b"1"])
    assert len(storage.failures) == 1
    broken = [InvalidValue("no"), InvalidValue("no")]
    storage = Scripted(*broken)
    with pytest.raises(InvalidValue):
        RetryingStorage(storage).write("a", lambda: [b"1"])
    assert len(storage.failures) == 1


def test_a_source_that_fails_is_not_the_storage_s_fault():
    calls = []

    def source() -> Iterator[bytes]:
        calls.append(1)
        yield b"1"
        raise TypeError("a mistake of ours")

    with pytest.raises(TypeError, match="a mistake of ours"):
        RetryingStorage(MemoryStorage()).write("a", source)
    assert calls == [1]


LIMITED = """
import resource, signal, sys
from ruv_swarm_store import Store
from ruv_swarm_store.backup.backups import Backups
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open(sys.argv[1])
backups = store.backup_to(sys.argv[2], compression="none")
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    backups.create()
except Exception as error:
    print(type(error).__name__, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(backups.list()), store.tasks.count(), store.check())
store.tasks.enqueue("after")
print(backups.create().rows["tasks"], backups.verify().ok)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    backups.restore(into=sys.argv[4], overwrite=True)
except Exception as error:
    print(type(error).__name__, error)
store.close()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size are POSIX's")
def test_a_full_disk_leaves_no_half_a_backup(tmp_path: Path, environment: dict[str, str]):
    with Store.open(tmp_path / "swarm.db") as store:
        store.tasks.enqueue_many([("crawl", {"text": "x" * 1_000})] * 1_000)
    Store.open(tmp_path / "target.db").close()
    target = (tmp_path / "target.db").read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path / "swarm.db", tmp_path / "kept", "400000", tmp_path / "target.db"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    failed, after, then, unrestored = done.stdout.splitlines()
    assert failed.startswith("Unavailable"), done.stdout + done.stderr
    assert unrestored.startswith("Unavailable a database could not be put together")
    assert (tmp_path / "target.db").read_bytes() == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "swarm.db", "target.db"]
    assert "File too large" in failed
    assert (after, then) == ("0 1000 []", "1001 True")
    assert len(list((tmp_path / "kept").iterdir())) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_without_space_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ruv_swarm_store.backup.storage._private", lambda path, flags: os.open("/dev/full", os.O_WRONLY))
    with Store.open() as store, pytest.raises(Unavailable, match="No space left"):
        store.backup_to(tmp_path).create()


ENDLESS = """
import sys
from ruv_swarm_store import Store
with Store.open(sys.argv[1]) as store:
    backups = store.backup_to(sys.argv[2])
    print("ready", flush=True)
    while True:
        backups.create("incremental")
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills as POSIX does")
def test_kills_leave_nothing_half_there(tmp_path: Path, environment: dict[str, str]):
    import random
    import time

    with Store.open(tmp_path / "swarm.db") as store:
        store.tasks.enqueue_many([("crawl", {"text": "x" * 1_000})] * 1_000)
        for _ in range(3):
            arguments = [sys.executable, "-c", ENDLESS, str(tmp_path / "swarm.db"), str(tmp_path / "kept")]
            with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                time.sleep(random.uniform(0, 0.15))
                store.tasks.enqueue("meanwhile")
                process.kill()
        backups = store.backup_to(tmp_path / "kept")
        verified = backups.verify(integrity=False)
        assert verified.problems == ()
        if backups.list():
            assert backups.drill().passed
        last = backups.create("incremental")
        assert last.rows["tasks"] == store.tasks.count() == 1_003
        assert backups.drill(last).passed


# Frames

COMPRESSIONS: list[Compression] = ["none", "zlib", "zstd"]


def ciphers() -> dict[str, Cipher | None]:
    keyring = Keyring(b"k" * 32)
    return {"open": None, "encrypted": keyring.cipher(keyring.begin())}


@given(
    chunks=st.lists(st.binary(max_size=300) | st.integers(0, 5_000).map(lambda size: b"abc" * size), max_size=6),
    compression=st.sampled_from(COMPRESSIONS),
    encrypted=st.booleans(),
    pieces=st.integers(1, 400),
)
def test_frames_come_back_however_they_are_read(chunks: list[bytes], compression: Compression, encrypted: bool, pieces: int):
    cipher = ciphers()["encrypted"] if encrypted else None
    writer = FrameWriter("a", compression, cipher)
    data = b"".join(writer.all(chunks))
    assert (writer.size, writer.plain) == (len(data), sum(map(len, chunks)))
    reader = FrameReader("a", (data[at : at + pieces] for at in range(0, len(data), pieces)), cipher)
    assert list(reader) == chunks
    assert (reader.size, reader.sha256) == (writer.size, writer.sha256)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", ["open", "encrypted"])
def test_no_byte_of_a_file_can_change(compression: Compression, kind: str):
    cipher = ciphers()[kind]
    data = b"".join(FrameWriter("a", compression, cipher).all([b"one " * 20, os.urandom(30), b""]))
    for at in range(len(data)):
        for mask in (1, 0x80, 0xFF):
            with pytest.raises(CorruptBackup) as caught:
                list(FrameReader("a", [data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]], cipher))
            assert caught.value.data == {"file": "a"}
    for at in range(len(data)):
        with pytest.raises(CorruptBackup):
            list(FrameReader("a", [data[:at]], cipher))
    with pytest.raises(CorruptBackup):
        list(FrameReader("a", [data, b"\0"], cipher))


def test_encrypted_frames_cannot_be_moved_left_out_or_exchanged():
    cipher = ciphers()["encrypted"]
    writer = FrameWriter("a", "none", cipher)
    first, second, third, end = writer.frame(b"1" * 50), writer.frame(b"2" * 50), writer.frame(b"3" * 50), writer.end()
    assert list(FrameReader("a", [first, second, third, end], cipher)) == [b"1" * 50, b"2" * 50, b"3" * 50]
    second_first = MAGIC + second + first[len(MAGIC) :]
    for wrong in ([second_first, third, end], [first, third, end], [first, third, second, end], [first, second, second, third, end]):
        with pytest.raises(CorruptBackup):
            list(FrameReader("a", wrong, cipher))
    with pytest.raises(CorruptBackup):
        list(FrameReader("b", [first, second, third, end], cipher))
    other = ciphers()["encrypted"]
    with pytest.raises(CorruptBackup):
        list(FrameReader("a", [first, second, third, end], other))
    with pytest.raises(CorruptBackup):
        list(FrameReader("a", [first, second, third, end]))
    assert b"1" * 50 not in first


def test_what_does_not_compress_is_stored_as_it_is():
    data = os.urandom(FRAME)
    assert len(b"".join(FrameWriter("a", "zlib").all([data]))) < FRAME + 100


# Keys


@pytest.mark.parametrize("key", [b"k" * 31, "", "\ud800", 7])
def test_what_is_no_key_is_refused(key: object):
    with pytest.raises(InvalidValue) as raised:
        Backups.of(MemoryStorage(), key=key)  # type: ignore[arg-type]
    assert raised.value.__cause__ is None  # nothing that holds it


@pytest.mark.parametrize("key", [b"k" * 32, "correct horse battery staple"])
def test_an_encrypted_backup_needs_its_key(tmp_path: Path, key: bytes | str):
    storage = MemoryStorage()
    with Store.open() as store:
        store.config.set("secret", "the cow jumps over the moon")
        backups = store.backup_to(storage, key=key, compression="none")
        full = backups.create()
        store.tasks.enqueue("more")
        increment = backups.create("incremental")
        assert (increment.kind, increment.encryption) == ("incremental", full.encryption)
        assert backups.verify().ok
        assert backups.drill().passed
        plain = store.backup_to(MemoryStorage(), compression="none")
        plain.create()
    stored = b"".join(storage._files.values())
    assert b"the cow jumps" not in stored
    assert b"the cow jumps" in b"".join(plain.storage._files.values())  # type: ignore[attr-defined]
    others: list[bytes | str | None] = [
        None,
        b"l" * 32,
        "correct horse",
        key.decode() if isinstance(key, bytes) else key.encode().ljust(32)[:32],
    ]
    for other in others:
        wrong = Backups.of(storage, key=other)
        assert list(wrong.list()) == [full, increment]  # what is in the manifests is no secret
        for call in (wrong.verify, wrong.drill, lambda: wrong.restore(into=tmp_path / "x.db")):
            with pytest.raises(InvalidValue, match="key"):
                call()
    assert list(tmp_path.iterdir()) == []
    right = Backups.of(storage, key=key)
    right.restore(into=tmp_path / "x.db")
    with Store.open(tmp_path / "x.db") as restored:
        assert restored.config.get("secret") == "the cow jumps over the moon"


def test_another_key_begins_another_chain():
    storage = MemoryStorage()
    with Store.open() as store:
        store.backup_to(storage).create()
        first = store.backup_to(storage, key="one").create("incremental")
        second = store.backup_to(storage, key="two").create("incremental")
        third = store.backup_to(storage, key="two").create("incremental")
        assert [first.kind, second.kind, third.kind] == ["full", "full", "incremental"]
        assert store.backup_to(storage, key="two").drill(third).passed


def test_a_manifest_is_signed_with_the_key():
    from ruv_swarm_store.backup import manifest

    storage = MemoryStorage()
    with Store.open() as store:
        backups = store.backup_to(storage, key=b"k" * 32)
        made = backups.create()
        fields = {name: getattr(made, name) for name in made.__struct_fields__}
        storage.write(made.manifest, [manifest.seal(manifest.Backup(**fields | {"position": 7}))])
        forged = Backups.of(storage, key=b"k" * 32)
        assert [problem.file for problem in forged.verify().problems] == [made.manifest]
        with pytest.raises(CorruptBackup, match="signed"):
            forged.get(made.id)


def test_threads_may_share_backups(tmp_path: Path):
    with Store.open(tmp_path / "swarm.db") as store:
        failures: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(3):
                    store.tasks.enqueue("crawl")
                    store.backups.create("incremental")
            except StoreError as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        made = store.backups.list()
        assert len(made) == 9
        assert made[0].kind == "full"
        assert max(backup.rows["tasks"] for backup in made) == 9
        assert store.backups.verify().ok


def test_with_a_key_nothing_else_is_taken_for_the_latest(tmp_path: Path):
    """Whoever can write to a storage can add a backup, but not one with the key."""
    storage, key = MemoryStorage(), b"k" * 32
    with Store.open(tmp_path / "swarm.db") as store:
        store.config.set("who", "the owner")
        safe = store.backup_to(storage, key=key)
        real = safe.create()
        store.config.set("who", "somebody")
        forged = store.backup_to(storage).create()
        strange = store.backup_to(storage, key=bytes(32)).create()
        assert safe.newest() == real
        added = safe.create("incremental")
        assert (added.parent, added.encryption) == (real.id, real.encryption)
        for later in (forged, strange):
            fields = {name: getattr(later, name) for name in later.__struct_fields__} | {"id": new_id(added.began_at + 60_000)}
            last = Backup(**fields | {"began_at": added.began_at + 60_000})
            storage.write(last.manifest, [seal(last)])
            for role in ("pages", "hashes"):
                storage._files[last.name(role)] = storage._files[later.name(role)]
    kept = Backups.of(storage, key=key)
    assert kept.newest() == added
    for place in ({}, {"at": added.began_at + 120_000}):
        done = kept.restore(into=tmp_path / "new.db", dry_run=True, **place)
        assert (done.backup, done.encrypted, done.exact) == (added.id, True, False)
        assert len(done.passed_over) == 2
    assert kept.drill().backup == added.id
    named = kept.restore(forged.id, into=tmp_path / "new.db")
    assert (named.backup, named.encrypted) == (forged.id, False)
    for only in (forged, real):
        alone = MemoryStorage()
        alone._files = {name: data for name, data in storage._files.items() if name.startswith(only.id)}
        other = Backups.of(alone, key=b"o" * 32)
        with pytest.raises(InvalidValue, match="not the one of any"):
            other.restore(into=tmp_path / "other.db")
        assert other.newest() is None


def test_two_stores_in_one_place_do_not_add_to_each_other(tmp_path: Path):
    storage = MemoryStorage()
    with Store.open(tmp_path / "a.db") as one, Store.open(tmp_path / "b.db") as two:
        for store in (one, two):
            store.config.set("name", store.address)
        first = one.backup_to(storage).create()
        second = two.backup_to(storage).create("incremental")
        assert (second.kind, second.origin) == ("full", f"sqlite:///{tmp_path / 'b.db'}")
        third = two.backup_to(storage).create("incremental")
        assert (third.parent, one.backup_to(storage).newest()) == (second.id, first)
        assert one.backup_to(storage).restore(into=tmp_path / "new.db", dry_run=True).backup == first.id
        schedule = one.backup_to(storage).schedule(3_600, full_every=2)
        assert not schedule._is_full_due()
    kept = Backups.of(storage)
    assert kept.newest() == third
    with pytest.raises(InvalidValue, match="several stores"):
        kept.restore(into=tmp_path / "new.db")
    assert kept.restore(first, into=tmp_path / "new.db", dry_run=True).backup == first.id
    for name, backup in (("a.db", first), ("b.db", third)):
        assert Backups.of(storage, origin=str(tmp_path / name)).restore(into=tmp_path / "new.db", dry_run=True).backup == backup.id


def test_where_a_database_is_holds_no_password():
    assert name_of("postgresql+psycopg://me:secret@host/db?password=secret&host=/run") == "postgresql://me:***@host/db?host=%2Frun"


FIRST = """
import sys
import threading
from ruv_swarm_store.backup.backups import Backups

def look(kind):
    backups = Backups.of(sys.argv[1] + kind)
    turn.wait()
    try:
        assert backups.drill().passed
        assert backups.verify(integrity=False).ok
    except BaseException as error:
        print(repr(error))

sys.setswitchinterval(1e-6)
turn = threading.Barrier(6)
threads = [threading.Thread(target=look, args=(kind,)) for kind in ("pages", "rows") * 3]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.long
def test_threads_read_at_once_what_the_process_has_not_read_before(path: Path, tmp_path: Path, python: Callable[..., str]):
    # msgspec looks at a type when it first decodes one; two threads that have it do so at once crash the process.
    with Store.open(path) as store:
        store.config.set("key", 1)
        for kind in ("pages", "rows"):
            backups = store.backup_to(tmp_path / kind)
            backups.create(format=kind)
            backups.drill()
        with store.backup_to(tmp_path / "pages").continuous() as shipping:
            store.config.set("key", 2)
            shipping.ship()
    for _ in range(3):
        assert python(FIRST, f"{tmp_path}/") == ""
