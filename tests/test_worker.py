"""A worker does tasks, keeps their leases, and ends as it is asked to: in threads here, and in real processes with real signals."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ruv_swarm_store import AgentStatus, Conflict, InvalidValue, NotFound, Store, StoreError, Task, TaskStatus
from ruv_swarm_store.errors import Unavailable
from ruv_swarm_store.tasks import Backoff
from ruv_swarm_store.worker import Attempt, GiveUp, Stopped, Worker, current, find

SOON = Backoff(initial=0.02, factor=1.0, jitter=0.0)
JOBS = '''\
import sys, time
from pathlib import Path
from ruv_swarm_store.worker import current

def double(task):
    return 2 * task.payload

def until_told(task):
    """Runs until there is a file named go."""
    Path(task.payload).touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return "told"

def at_the_second_try(task):
    if not task.retry_count:
        raise ValueError("not yet")
    return task.retry_count

number = 7
'''


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process end at once."""
    monkeypatch.setattr("ruv_swarm_store.worker.PATIENCE", 0.1)


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path, timeout=0.3) as store:
        yield store


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits for something to come about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@contextmanager
def working(store: Store, function: Callable[[Task], Any], **options: Any) -> Iterator[Worker]:
    """A worker at work in another thread, for as long as the block lasts; what it raises fails the test."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:
            raised.append(error)

    worker = Worker(store, function, backoff=SOON, **options)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(30)
        assert not thread.is_alive()
    assert not raised, raised


def status(store: Store, task: Task) -> TaskStatus:
    return store.tasks.get(task.id).status


def done(store: Store, *tasks: Task) -> Callable[[], bool]:
    return lambda: all(status(store, task) in ("completed", "failed", "cancelled") for task in tasks)


# What comes of a task


def test_what_a_function_returns_is_the_result(store: Store) -> None:
    tasks = [store.tasks.enqueue("double", n) for n in range(20)]
    with working(store, lambda task: {"twice": 2 * task.payload}, concurrency=3) as worker:
        until(done(store, *tasks))
        [agent] = store.agents.find_all()
        assert (agent.type, agent.name) == ("worker", worker.name)
        assert agent.configuration["pid"] == os.getpid()
    assert [store.tasks.get(task.id).result for task in tasks] == [{"twice": 2 * n} for n in range(20)]
    assert store.agents.get(agent.id).status == AgentStatus.TERMINATED


def test_only_tasks_of_its_types_are_claimed(store: Store) -> None:
    other, mine = store.tasks.enqueue("other", priority=99), store.tasks.enqueue("mine")
    with working(store, lambda task: None, types=["mine"]):
        until(done(store, mine))
    assert status(store, other) == "pending"


def test_so_many_run_at_a_time_and_no_more(store: Store) -> None:
    lock, together, most = threading.Lock(), 0, 0

    def function(task: Task) -> None:
        nonlocal together, most
        with lock:
            together += 1
            most = max(most, together)
        time.sleep(0.05)
        with lock:
            together -= 1

    tasks = [store.tasks.enqueue("t") for _ in range(12)]
    with working(store, function, concurrency=3):
        until(done(store, *tasks))
    assert most == 3


def test_a_function_that_raises_is_tried_again_until_retries_are_spent(store: Store) -> None:
    def function(task: Task) -> int:
        if task.type == "never" or task.retry_count < 2:
            raise ValueError(f"try {task.retry_count}\0\ud800")
        return task.retry_count

    late, never = store.tasks.enqueue("late"), store.tasks.enqueue("never", max_retries=1)
    with working(store, function):
        until(done(store, late, never))
    assert store.tasks.get(late.id).result == 2
    assert status(store, never) == "failed"
    assert [failure.error_message for failure in store.tasks.failures(never)] == [rf"ValueError: try {n}\0\ud800" for n in range(2)]


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_function_cannot_end_its_worker(store: Store, raised: BaseException) -> None:
    def function(task: Task) -> None:
        if task.type == "bad":
            raise raised

    bad, good = store.tasks.enqueue("bad", max_retries=0), store.tasks.enqueue("good")
    with working(store, function):
        until(done(store, bad, good))
    assert (status(store, bad), status(store, good)) == ("failed", "completed")
    assert type(raised).__name__ in store.tasks.get(bad.id).error_message


def test_giving_up_spares_the_retries(store: Store) -> None:
    def function(task: Task) -> None:
        raise GiveUp("there is no such page")

    task = store.tasks.enqueue("t")
    with working(store, function):
        until(done(store, task))
    found = store.tasks.get(task.id)
    assert (found.status, found.retry_count, found.error_message) == ("failed", 0, "GiveUp: there is no such page")


@pytest.mark.parametrize("result", [{1, 2}, float("nan"), object(), {"a": b"bytes"}], ids=["set", "nan", "object", "bytes"])
def test_a_result_that_json_cannot_hold_fails_for_good(store: Store, result: object) -> None:
    task = store.tasks.enqueue("t")
    with working(store, lambda task: result):
        until(done(store, task))
    found = store.tasks.get(task.id)
    assert (found.status, found.retry_count) == ("failed", 0)
    assert "returned what cannot be stored: result" in found.error_message


def test_an_async_function_is_awaited(store: Store) -> None:
    import asyncio

    async def function(task: Task) -> str:
        await asyncio.sleep(0.01)
        return current().task.id

    task = store.tasks.enqueue("t")
    with working(store, function):
        until(done(store, task))
    assert store.tasks.get(task.id).result == task.id


def test_a_function_may_end_its_task_with_what_else_it_writes(store: Store) -> None:
    def function(task: Task) -> str:
        with current().store.transaction() as work:
            work.tasks.complete(task, "its own")
            work.config.set("done", task.id)
        return "dropped"

    task = store.tasks.enqueue("t")
    with working(store, function):
        until(done(store, task))
        until(lambda: store.config.get("done") == task.id)
    assert store.tasks.get(task.id).result == "its own"


# What a function can know


def test_there_is_no_attempt_outside_of_one() -> None:
    with pytest.raises(StoreError, match="no task is being done here"):
        current()


def test_a_cancelled_task_stops_its_function(store: Store) -> None:
    begun, seen = threading.Event(), []

    def function(task: Task) -> None:
        begun.set()
        try:
            current().pause(20)
        except Stopped as stopped:
            seen.append(stopped)
            raise

    task = store.tasks.enqueue("t")
    with working(store, function, lease=0.6):
        assert begun.wait(10)
        store.tasks.cancel(task)
        until(lambda: seen)
    assert status(store, task) == "cancelled"


def test_a_holder_that_is_asked_to_stop_cancels(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stands for `heartbeat` answering False, as it does once a held task was asked to be cancelled.
    beats, heartbeat = [], store.tasks.heartbeat

    def asked(task: Task, **options: Any) -> bool:
        heartbeat(task, **options)
        beats.append(task)
        return False

    monkeypatch.setattr(store.tasks, "heartbeat", asked)

    def function(task: Task) -> None:
        while not current().should_stop:
            time.sleep(0.01)
        if task.type == "obeys":
            current().check()

    obeys, finishes = store.tasks.enqueue("obeys"), store.tasks.enqueue("finishes")
    with working(store, function, lease=0.6, concurrency=2):
        until(done(store, obeys, finishes))
    assert (status(store, obeys), status(store, finishes)) == ("cancelled", "completed")


def test_a_lost_lease_stops_the_function_and_drops_its_result(store: Store) -> None:
    attempts: list[Attempt] = []

    def function(task: Task) -> str:
        attempts.append(current())
        while not current().should_stop:
            time.sleep(0.01)
        return "too late"

    task = store.tasks.enqueue("t")
    with working(store, function, lease=0.6):
        until(lambda: attempts)
        store.tasks.release(task.id, delay=0.01)
        until(lambda: attempts[0].should_stop)
        assert attempts[0].dropped
        until(lambda: len(attempts) == 2)  # this worker has it again: it was free
        store.tasks.cancel(task)
    assert (status(store, task), store.tasks.get(task.id).result) == ("cancelled", None)


def test_a_lease_lost_to_the_same_worker_does_not_disturb_the_new_one(store: Store) -> None:
    attempts: list[Attempt] = []
    go = threading.Event()

    def function(task: Task) -> int:
        attempts.append(current())
        if task.fence == 1:
            go.wait(20)
        else:
            time.sleep(3.0)
        return task.fence

    task = store.tasks.enqueue("t")
    with working(store, function, lease=1.5, concurrency=2):
        until(lambda: attempts)
        store.tasks.release(task.id)
        until(lambda: len(attempts) == 2)
        go.set()  # the first one ends while the second one needs its heartbeats
        until(done(store, task))
    found = store.tasks.get(task.id)
    assert (found.result, found.retry_count) == (2, 0)


def test_a_long_task_keeps_its_lease(store: Store) -> None:
    task = store.tasks.enqueue("t")
    with working(store, lambda task: time.sleep(3.0), lease=1.5), working(store, lambda task: time.sleep(3.0), lease=1.5):
        until(done(store, task))
    found = store.tasks.get(task.id)
    assert (found.status, found.retry_count, found.fence) == ("completed", 0, 1)


# When the database is away


def test_a_worker_outlives_a_database_that_is_away(path: Path, store: Store) -> None:
    begun = threading.Event()

    def function(task: Task) -> str:
        begun.set()
        time.sleep(0.2)
        return "kept"

    lock = sqlite3.connect(path, isolation_level=None)
    try:
        lock.execute("BEGIN IMMEDIATE")  # nobody else can write: calls fail after 0.3 seconds
        with working(store, function, lease=30.0):
            time.sleep(1.0)
            assert store.agents.count() == 0
            lock.execute("ROLLBACK")
            until(lambda: store.agents.count() == 1)
            task = store.tasks.enqueue("t")
            assert begun.wait(10)
            lock.execute("BEGIN IMMEDIATE")
            time.sleep(1.2)
            assert status(store, task) in ("assigned", "running")
            lock.execute("ROLLBACK")
            until(done(store, task))
        found = store.tasks.get(task.id)
        assert (found.result, found.fence) == ("kept", 1)
        assert [agent.status for agent in store.agents.find_all()] == [AgentStatus.TERMINATED]
    finally:
        lock.close()


@pytest.fixture
def server(postgresql: Any) -> Iterator[Any]:
    """A database server that nobody else uses."""
    import pg_server

    if os.environ.get(pg_server.YOURS):
        pytest.skip("the server is yours, and not ours to stop")
    server = pg_server.Server()
    yield server
    server.close()


def test_a_worker_outlives_a_server_that_was_killed(server: Any) -> None:
    begun = threading.Event()

    def function(task: Task) -> int:
        begun.set()
        time.sleep(0.5)
        return task.payload

    with Store.open(server.url(), durability="full", timeout=1.0) as store:
        tasks = store.tasks.enqueue_many([("t", n) for n in range(4)])
        with working(store, function, concurrency=2, lease=30.0):
            assert begun.wait(20)
            server.stop("immediate")
            time.sleep(2.0)
            server.start()
            until(lambda: there(store), 60)
            until(done(store, *tasks), 60)
        found = [store.tasks.get(task.id) for task in tasks]
        assert [(task.result, task.fence, task.retry_count) for task in found] == [(n, 1, 0) for n in range(4)]
        assert [agent.status for agent in store.agents.find_all()] == [AgentStatus.TERMINATED]


def there(store: Store) -> bool:
    try:
        return store.tasks.count() > 0
    except Unavailable:
        return False


class Unclear:
    """Does what it is asked to, and each verb's first answer never comes."""

    def __init__(self, verbs: Any) -> None:
        self._verbs = verbs
        self.lost: list[str] = []

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._verbs, name)
        if name not in ("register", "complete", "fail", "terminate", "start") or name in self.lost:
            return verb

        def call(*arguments: Any, **options: Any) -> Any:
            self.lost.append(name)
            verb(*arguments, **options)
            raise Unavailable("the connection was lost")

        return call


def test_an_answer_that_never_came_is_no_failure(path: Path, store: Store) -> None:
    def function(task: Task) -> str:
        if task.type == "fails" and not task.retry_count:
            raise ValueError("no")
        return "kept"

    with Store.open(path) as unclear:
        unclear.tasks, unclear.agents = Unclear(unclear.tasks), Unclear(unclear.agents)  # type: ignore[assignment]
        task, fails = store.tasks.enqueue("t"), store.tasks.enqueue("fails")
        with working(unclear, function):
            until(done(store, task, fails))
        assert {*unclear.tasks.lost, *unclear.agents.lost} == {"register", "complete", "fail", "terminate", "start"}  # type: ignore[attr-defined]
    assert [store.tasks.get(id).result for id in (task.id, fails.id)] == ["kept", "kept"]
    assert [store.tasks.get(id).retry_count for id in (task.id, fails.id)] == [0, 1]
    assert [agent.status for agent in store.agents.find_all()] == [AgentStatus.TERMINATED]


# Names and other arguments


def test_a_name_in_use_is_a_conflict_unless_its_holder_is_silent(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ruv_swarm_store.worker.BEAT", 0.2)
    monkeypatch.setattr("ruv_swarm_store.worker.SILENCE", 0.6)
    with Store.open(path) as store:
        dead = store.agents.register("worker", name="w")
        task = store.tasks.enqueue("t")
        store.tasks.claim(dead)
        with working(store, lambda task: "done", name="w"):
            until(done(store, task))  # it has the dead one's place, and its task
            assert store.agents.get(dead.id).status == AgentStatus.TERMINATED
            with pytest.raises(Conflict, match="'w'"):
                Worker(store, lambda task: None, name="w").run()
        store.agents.register("scout", name="s")
        with pytest.raises(Conflict, match="'s'"):
            Worker(store, lambda task: None, name="s").run()


def test_a_terminated_agent_s_worker_ends(store: Store) -> None:
    with working(store, lambda task: None):
        until(lambda: store.agents.count() == 1)
        [agent] = store.agents.find_all()
        store.agents.terminate(agent)
        until(lambda: not [thread for thread in threading.enumerate() if thread.name == "worker-heart"])


def test_an_agent_that_vanished_is_registered_anew(store: Store) -> None:
    with working(store, lambda task: "done"):
        until(lambda: store.agents.count() == 1)
        [agent] = store.agents.find_all()
        store.agents.delete(agent)
        task = store.tasks.enqueue("t")
        until(done(store, task))
        assert [found.id for found in store.agents.find_all()] == [agent.id]
    assert [found.status for found in store.agents.find_all()] == [AgentStatus.TERMINATED]


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"concurrency": True}, {"types": "t"}, {"lease": 0.0}, {"lease": "1"}], ids=lambda given: str(given)
)
def test_arguments_are_checked(store: Store, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        Worker(store, lambda task: None, **options)


def test_a_function_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "found_jobs.py").write_text("class A:\n    @staticmethod\n    def f(task): return 1\nnumber = 7\n")
    (tmp_path / "broken_jobs.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "exiting_jobs.py").write_text("raise SystemExit('no\\nmore')\n")
    assert find("found_jobs:A.f")(None) == 1  # type: ignore[arg-type]
    for reference, error, message in [
        ("found_jobs", InvalidValue, "names no function"),
        (":f", InvalidValue, "names no function"),
        ("found_jobs:", InvalidValue, "names no function"),
        ("found_jobs:g", NotFound, "found_jobs has no g"),
        ("found_jobs:number", InvalidValue, "found_jobs:number is a int"),
        ("no_such_jobs:f", NotFound, "there is no module no_such_jobs"),
        ("found_jobs.py:f", NotFound, r"there is no module found_jobs\.py"),
        ("broken_jobs:f", StoreError, "broken_jobs cannot be imported: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("exiting_jobs:f", StoreError, "exiting_jobs cannot be imported: SystemExit: no more"),
    ]:
        with pytest.raises(error, match=message):
            find(reference)


# Real processes, real signals


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, path: Path, environment: dict[str, str]) -> Iterator[Start]:
    """Starts `ruv-swarm work` in a directory with functions to name."""
    (tmp_path / "jobs.py").write_text(JOBS)
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "ruv_swarm_store.cli", "work", *map(str, arguments), "-s", str(path)]
        process = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(start: Start, tmp_path: Path, store: Store, number: int) -> None:
    running = [store.tasks.enqueue("t", name) for name in ("one", "two")]
    waiting = store.tasks.enqueue("t", "three")
    process = start("jobs:until_told", "--concurrency", 2, "--name", "w")
    until(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists())
    process.send_signal(number)
    time.sleep(0.5)
    assert process.poll() is None
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert [store.tasks.get(task.id).result for task in running] == ["told", "told"]
    assert (status(store, waiting), store.tasks.get(waiting.id).fence) == ("pending", 0)
    assert [(agent.name, agent.status) for agent in store.agents.find_all()] == [("w", AgentStatus.TERMINATED)]


def test_a_second_signal_returns_the_tasks_at_once(start: Start, tmp_path: Path, store: Store) -> None:
    task = store.tasks.enqueue("t", "one")
    process = start("jobs:until_told")
    until(lambda: (tmp_path / "one").exists())
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1, errors
    assert "Traceback" not in errors
    found = store.tasks.get(task.id)
    assert (found.status, found.retry_count) == ("pending", 0)
    assert [agent.status for agent in store.agents.find_all()] == [AgentStatus.TERMINATED]


def test_an_idle_worker_ends_soon(start: Start, store: Store) -> None:
    process = start("jobs:double")
    until(lambda: store.agents.count() == 1)
    process.terminate()
    began = time.monotonic()
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert time.monotonic() - began < 10


def test_a_killed_worker_s_tasks_go_to_another_after_the_lease(start: Start, tmp_path: Path, store: Store) -> None:
    task = store.tasks.enqueue("t", "one")
    first = start("jobs:until_told", "--lease", 2)
    until(lambda: (tmp_path / "one").exists())
    first.kill()
    first.wait()
    (tmp_path / "go").touch()
    start("jobs:until_told", "--lease", 2)
    until(done(store, task))
    found = store.tasks.get(task.id)
    assert (found.status, found.retry_count, found.fence) == ("completed", 1, 2)
    assert [failure.error_message for failure in store.tasks.failures(task)] == ["the lease expired"]


def test_a_failing_function_is_tried_again(start: Start, store: Store) -> None:
    task, other = store.tasks.enqueue("t"), store.tasks.enqueue("other")
    process = start("jobs:at_the_second_try", "--type", "t")
    until(done(store, task))
    process.terminate()
    _, errors = process.communicate(timeout=20)
    assert "ValueError: not yet" in errors
    assert store.tasks.get(task.id).result == 1
    assert status(store, other) == "pending"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("jobs", "'jobs' names no function"),
        ("nowhere:f", "there is no module nowhere"),
        ("jobs:nothing", "jobs has no nothing"),
        ("jobs:number", "jobs:number is a int and cannot be called"),
    ],
)
def test_what_cannot_be_imported_is_an_error_and_no_traceback(start: Start, store: Store, reference: str, message: str) -> None:
    process = start(reference)
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert printed == ""
    assert errors.startswith(f"Error: {message}\n")
    assert "Traceback" not in errors
    assert store.agents.count() == 0


def test_an_absent_store_is_an_error(start: Start, path: Path) -> None:
    process = start("jobs:double")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert errors.startswith(f"Error: there is no store at {path}\n")
    assert not path.exists()
