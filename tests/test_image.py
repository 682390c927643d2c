"""Images of a database in use: whatever others write, copy into the file and cut off meanwhile, each is one state of it, whole."""

import os
import random
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import churn
import crew
import pytest
from crew import fork
from sqlalchemy import text

from ruv_swarm_store import Store, StoreError
from ruv_swarm_store.engines import Options, connect
from ruv_swarm_store.engines.image import Image
from ruv_swarm_store.engines.sqlite import image as image_module
from ruv_swarm_store.engines.sqlite import wal

pytestmark = pytest.mark.long

PROMISE = text("SELECT max(number) FROM promise")


@contextmanager
def churning(path: Path, seconds: float, processes: int = 3) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = [
        subprocess.Popen([sys.executable, churn.__file__, str(path), str(seed), str(seconds)], stdout=subprocess.PIPE)
        for seed in range(processes)
    ]
    try:
        yield running
        for process in running:
            answer, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            assert int(answer) > 0
    finally:
        for process in running:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def opened(data: bytes) -> sqlite3.Connection:
    raw = sqlite3.connect(":memory:")
    raw.deserialize(data[:18] + b"\1\1" + data[20:])  # a database in memory keeps no log
    return raw


def whole(image: Image, at_once: int) -> bytes:
    return b"".join(image.read(first, at_once) for first in range(0, image.count, at_once))


@pytest.mark.parametrize(("page_size", "auto_vacuum", "read_only"), [(4096, 0, False), (512, 2, False), (65536, 1, True)])
def test_each_image_of_a_database_in_use_is_one_whole_state(path: Path, page_size: int, auto_vacuum: int, read_only: bool) -> None:
    churn.create(str(path), page_size, auto_vacuum)
    seen, restarts = [], set()
    seconds = float(os.environ.get("CHURN", "1.5"))
    chance = random.Random(page_size)
    with closing(connect(path, Options(read_only=read_only))) as engine, churning(path, seconds) as running:
        while any(process.poll() is None for process in running):
            with engine.image() as image:
                exact = None if image.run is None else image.run.execute(PROMISE)[0][0]
                if chance.random() < 0.5:
                    time.sleep(chance.random() / 30)
                data = whole(image, chance.choice((1, 7, 100, 100_000)))
                assert image.page_size == page_size
                assert len(data) == image.count * page_size
            restarts.add(image.place and image.place.split("-")[0])
            with closing(opened(data)) as raw:
                assert churn.broken(raw) == []
                seen.append(churn.number(raw))
            if exact is None:
                assert read_only
            else:
                assert exact == seen[-1]
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert len(restarts) > 1, "the log was not begun anew, which had to be survived"


def test_an_image_of_a_database_in_memory_is_of_one_instant() -> None:
    with Store.open() as store:
        store.config.set("key", 1)
        with store._engine.image() as image:
            store.config.set("key", 2)
            data = whole(image, 7)
            assert image.run is not None
            assert image.run.execute(text("SELECT value FROM swarm_config"))[0][0] == "1"
        with closing(opened(data)) as raw:
            assert raw.execute("SELECT value FROM swarm_config").fetchall() == [("1",)]
        with store.transaction(), pytest.raises(StoreError, match="inside a transaction"), store._engine.image():
            pass


def test_what_the_block_raises_is_not_taken_for_a_failure_of_the_database(path: Path) -> None:
    with Store.open(path) as store, pytest.raises(OSError, match="storage full"), store._engine.image():
        raise OSError("storage full")


@pytest.mark.skipif(os.name != "posix", reason="locks belong to descriptors here")
def test_an_image_gives_up_no_lock_of_this_process_s(path: Path) -> None:
    # SQLite holds a lock on the file as long as it is open: who closes it and finds none deletes the log.
    with Store.open(path) as store:
        for _ in range(2):
            store.config.set("key", 1)
            with store._engine.image() as image:
                whole(image, 100)
        log = Path(f"{path}-wal").stat().st_ino
        other = (
            "import sqlite3, sys; raw = sqlite3.connect(sys.argv[1]); raw.execute('SELECT * FROM sqlite_master').fetchall(); raw.close()"
        )
        subprocess.run([sys.executable, "-c", other, str(path)], check=True)
        assert Path(f"{path}-wal").stat().st_ino == log
        store.config.set("key", 2)
    with Store.open(path) as store:
        assert store.config.get("key") == 2


def test_descriptors_of_deleted_databases_are_closed(tmp_path: Path) -> None:
    def count() -> int:
        return len(image_module._opened)

    before = count()
    for number in range(5):
        path = tmp_path / f"{number}.db"
        with Store.open(path) as store, store._engine.image() as image:
            whole(image, 100)
        path.unlink()
    with Store.open(tmp_path / "last.db") as store, store._engine.image():
        assert count() <= before + 1


@pytest.mark.skipif(os.name != "posix", reason="locks belong to descriptors here")
def test_the_descriptor_of_a_deleted_database_is_closed_when_nobody_reads_it_any_more(tmp_path: Path) -> None:
    with Store.open(tmp_path / "old.db") as store, Store.open(tmp_path / "new.db") as other:
        store.config.set("key", "value")
        with store._engine.image() as image:
            data = whole(image, 3)
            (tmp_path / "old.db").unlink()
            with other._engine.image():
                assert whole(image, 3) == data
        before = len(image_module._opened)
        with other._engine.image():
            assert len(image_module._opened) < before


@pytest.mark.skipif(os.name != "posix", reason="locks belong to descriptors here")
def test_many_threads_may_be_the_first_to_open_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(dict[Any, Any]):
        def setdefault(self, *arguments: Any) -> Any:
            try:
                return super().setdefault(*arguments)
            finally:
                time.sleep(0.01)  # others come

    monkeypatch.setattr(image_module, "_opened", Slow())
    path = tmp_path / "file"
    path.touch()

    def read(number: int, barrier: threading.Barrier) -> int:
        barrier.wait()
        time.sleep(number / 1000)
        with image_module.opened(str(path)) as file:
            return file

    assert len(set(crew.in_threads(8, read))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_store_closes_while_another_thread_makes_a_backup(tmp_path: Path, python: Any) -> None:
    code = """
import logging, sys, time
from ruv_swarm_store import Store
logging.disable()
for number in range(30):
    store = Store.open(f"{sys.argv[1]}/{number}.db")
    store.config.set("k", 1)
    with store.backups.schedule(3_600):  # the first begins at once
        time.sleep(number % 10 * 0.0007)
        store.close()
print("closed")
"""
    assert python(code, tmp_path) == "closed\n"


def test_a_fork_in_the_middle_of_an_image_is_told(path: Path) -> None:
    with Store.open(path) as store:
        store.config.set("key", 1)
        with store._engine.image() as image:
            whole(image, 100)
            assert fork(lambda: store.config.get("key"))() == "1"
            with pytest.raises(StoreError, match="fork"):
                image.read(0, 1)
        with store._engine.image() as image:
            assert len(whole(image, 3)) == image.count * image.page_size


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_waits_for_an_image_whose_holder_goes_on_using_the_store(path: Path) -> None:
    with Store.open(path) as store:
        store.config.set("key", 1)
        begun, forking = threading.Event(), threading.Event()
        read = []

        def hold() -> None:
            with store._engine.image() as image:
                begun.set()
                forking.wait()
                time.sleep(0.02)
                read.extend([store.config.get("key"), store.tasks.count()])  # a connection of this thread's is opened
                store.config.set("key", 2)
                whole(image, 100)

        holder = threading.Thread(target=hold)
        holder.start()
        begun.wait()
        forking.set()
        assert fork(lambda: store.config.get("key"))() == "2"
        holder.join()
        assert read == [1, 0]


# The log's file, against SQLite's own recovery


def plain_checksum(data: bytes, first: int, second: int, order: str) -> tuple[int, int]:
    """As the format's description has it."""
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second


def in_big_endian(log: bytes) -> bytes:
    """The same log as a machine of the other byte order would have written it."""
    size = struct.unpack(">I", log[8:12])[0] + 24
    header = struct.pack(">I", 0x377F0683) + log[4:24]
    sums = plain_checksum(header, 0, 0, ">")
    frames = [header + struct.pack(">2I", *sums)]
    for start in range(32, len(log) - size + 1, size):
        frame = log[start : start + size]
        sums = plain_checksum(frame[:8] + frame[24:], *sums, ">")
        frames.append(frame[:16] + struct.pack(">2I", *sums) + frame[24:])
    return b"".join(frames)


@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_of_a_damaged_log_an_image_holds_what_sqlite_recovers(tmp_path: Path, page_size: int) -> None:
    source = tmp_path / "source.db"
    churn.create(str(source), page_size, 0)
    chance = random.Random(page_size)
    with closing(sqlite3.connect(source, isolation_level=None)) as raw:
        raw.execute("PRAGMA wal_autocheckpoint=0")
        for number in range(12):
            raw.execute("INSERT INTO blob (size, data) VALUES (?, ?)", (number, b"\xff" * number * 300))
            raw.execute("UPDATE promise SET number = number + 1")
        main, log = source.read_bytes(), Path(f"{source}-wal").read_bytes()
    logs = {"whole": log, "other byte order": in_big_endian(log), "empty": b"", "header only": log[:32], "torn header": log[:17]}
    for number in range(12):
        logs[f"cut off {number}"] = log[: chance.randrange(len(log))]
        flipped = bytearray(chance.choice((log, logs["other byte order"])))
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        logs[f"flipped {number}"] = bytes(flipped)
    numbers = set()
    for name, content in logs.items():
        place = tmp_path / f"{name}.db"
        for copy in (place, tmp_path / "reference.db"):
            copy.write_bytes(main)
            Path(f"{copy}-wal").write_bytes(content)
        with closing(sqlite3.connect(tmp_path / "reference.db")) as raw:
            expected = list(raw.iterdump())
        with closing(connect(place, Options(read_only=True))) as engine, engine.image() as image, closing(opened(whole(image, 9))) as raw:
            assert list(raw.iterdump()) == expected, name
            numbers.add(churn.number(raw))
    assert len(numbers) > 5


def test_checksums_of_many_frames_at_once_do_not_run_over(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for page in (b"\xff" * 65536, b"\0" * 65536, random.Random(1).randbytes(65536)):
        header = struct.pack(">6I", 0x377F0682, 3007000, 65536, 0, 0xFFFFFFFF, 0xFFFFFFFF)
        sums = plain_checksum(header, 0, 0, "<")
        content = header + struct.pack(">2I", *sums)
        for number in range(1, 71):
            head = struct.pack(">2I", number, number)
            sums = plain_checksum(head + page, *sums, "<")
            content += head + b"\xff" * 8 + struct.pack(">2I", *sums) + page
        log.write_bytes(content)
        with log.open("rb") as file:
            found = wal.read_header(file.fileno())
            assert found is not None
            commits = list(wal.read_commits(file.fileno(), found))
        assert [commit.frame for commit in commits] == list(range(1, 71))
        assert commits[-1].checksum == sums
