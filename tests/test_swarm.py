"""A whole swarm on one file: processes of threads, some of them killed, and every task done exactly once."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ruv_swarm_store import NewTask, Store, TaskStatus

pytestmark = pytest.mark.long

PROGRAM = Path(__file__).parent / "programs" / "drain.py"
Worker = subprocess.Popen[str]


@pytest.fixture
def worker(environment: dict[str, str]) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(path: Path, *, threads: int, lease: float) -> Worker:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(path), str(threads), str(lease)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def go(process: Worker) -> None:
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def test_eight_processes_of_four_threads_drain_the_queue_while_one_is_killed_each_second(
    tmp_path: Path, worker: Callable[..., Worker]
) -> None:
    path, tasks = tmp_path / "swarm.db", 20_000
    with Store.open(path) as store:
        # A killed worker's tasks count as retries, and so do those of one that a busy machine holds up for a whole lease.
        store.tasks.enqueue_many(NewTask("work", number, max_retries=100) for number in range(tasks))
        running = [worker(path, threads=4, lease=2.0) for _ in range(8)]
        for process in running:
            go(process)
        killed, deadline = 0, time.monotonic() + 240
        while store.tasks.stats().total(TaskStatus.COMPLETED) < tasks:
            assert time.monotonic() < deadline, store.tasks.stats()
            time.sleep(1.0)
            if (victim := running[killed % 8]).poll() is None and killed < 40:
                victim.kill()
                victim.wait()
                killed += 1
                running[(killed - 1) % 8] = replacement = worker(path, threads=4, lease=2.0)
                go(replacement)
        for process in running:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert "locked" not in errors
        assert killed >= 3
        stats = store.tasks.stats()
        assert stats.total() == stats.total(TaskStatus.COMPLETED) == tasks
        completed = Counter(event.aggregate_id for event in store.events.walk())
        assert len(completed) == tasks  # none lost …
        assert set(completed.values()) == {1}  # … and none completed twice
        assert any(task.retry_count for page in store.tasks.pages(5_000) for task in page)  # the kills did hit
        assert store.check() == []


def test_four_processes_share_the_queue_fairly(tmp_path: Path, worker: Callable[..., Worker]) -> None:
    path = tmp_path / "swarm.db"
    with Store.open(path) as store:
        store.tasks.enqueue_many([("work", number) for number in range(12_000)])
    running = [worker(path, threads=1, lease=60.0) for _ in range(4)]
    for process in running:
        go(process)
    claimed = []
    for process in running:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        claimed.append(int(output))
    assert sum(claimed) == 12_000
    assert max(claimed) <= 2 * min(claimed), claimed
