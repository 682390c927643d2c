"""Backups of a store of 120 MB: full ones beside what SQLite's own online backup takes, and increments beside full ones."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, update

from ruv_swarm_store import NewEvent, NewTask, Sample, Store
from ruv_swarm_store.backup.frames import Compression
from ruv_swarm_store.schema import tasks

WORDS = [f"word{number}" for number in range(3_000)]
CHANGED = 1_000
_CHANGE = update(tasks).where(tasks.c.id == bindparam("key")).values(priority=(tasks.c.priority + 1) % 100, error_message="changed")


def payload(choose: random.Random) -> dict[str, Any]:
    return {
        "url": f"https://example.com/{'/'.join(choose.choices(WORDS, k=5))}",
        "number": choose.randrange(10**9),
        "tags": choose.choices(WORDS, k=12),
        "score": choose.random(),
    }


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 120 MB, closed."""
    path = tmp_path_factory.mktemp("filled") / "swarm.db"
    choose = random.Random(1)
    with Store.open(path) as store:
        stream = 0
        while path.stat().st_size < 120_000_000:
            stream += 1
            with store.transaction() as work:
                work.tasks.enqueue_many([NewTask("crawl", payload(choose)) for _ in range(1_000)])
                work.events.append(f"s{stream}", [NewEvent("moved", payload(choose)) for _ in range(1_000)], type="bench")
                work.metrics.record_many([Sample("latency", choose.random(), unit="ms") for _ in range(1_000)])
    return path


@pytest.fixture
def large(filled: Path, tmp_path: Path) -> Iterator[tuple[Store, Path]]:
    path = tmp_path / "swarm.db"
    shutil.copy(filled, path)
    with Store.open(path) as store:
        yield store, path


@pytest.mark.parametrize("compression", ["none", "zlib", "zstd"])
def bench_full_backup(large: tuple[Store, Path], compression: Compression, compare: Callable[..., float], tmp_path: Path) -> None:
    store, path = large
    backups = store.backup_to(tmp_path / "kept", compression=compression)

    def ours() -> None:
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        backups.create()

    def below() -> None:
        (tmp_path / "copy.db").unlink(missing_ok=True)
        source, target = sqlite3.connect(path), sqlite3.connect(tmp_path / "copy.db")
        source.backup(target)
        target.close()
        source.close()

    size = path.stat().st_size
    share = backups.create().size / size
    compare(
        ours,
        below,
        operations=size // 1_000_000,
        floor_is=f"MB through sqlite3.Connection.backup, which hashes nothing; ours takes {share:.1%} of the space",
    )


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def bench_increment(large: tuple[Store, Path], compression: Compression, compare: Callable[..., float], tmp_path: Path) -> None:
    store, path = large
    backups = store.backup_to(tmp_path / "kept", compression=compression)
    others = store.backup_to(tmp_path / "others", compression=compression)
    full = backups.create()
    ids = [row[0] for row in store.execute(tasks.select().with_only_columns(tasks.c.id))]
    with store.transaction() as work:
        for id in random.Random(2).sample(ids, CHANGED):
            work.execute(_CHANGE, {"key": id})

    def ours() -> None:
        # Taken away at once: each is to hold the same changes.
        made = backups.create("incremental")
        assert made.kind == "incremental"
        for name in (made.manifest, made.name("pages"), made.name("hashes")):
            backups.storage.delete(name)

    def below() -> None:
        shutil.rmtree(tmp_path / "others", ignore_errors=True)
        others.create()

    made = backups.create("incremental")
    for name in (made.manifest, made.name("pages"), made.name("hashes")):
        backups.storage.delete(name)
    compare(
        ours,
        below,
        operations=1,
        floor_is=f"a full backup; the increment of {CHANGED} changed rows takes {made.size / full.size:.1%} of its space, "
        f"{made.size / path.stat().st_size:.1%} of the store's",
    )
