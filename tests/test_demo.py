"""The demo swarm: it counts right, and killing any part of it at any moment changes nothing about that."""

import contextlib
import email
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from ruv_swarm_store import AgentStatus, NewEvent, Store, StoreError, TaskStatus, schema
from ruv_swarm_store.demo import coordinator, crew, enlistment, recount, run
from ruv_swarm_store.demo.display import Lines
from ruv_swarm_store.demo.liveness import is_gone, whereabouts
from ruv_swarm_store.demo.run import FAILED, FILE, FINISHED, INDEXED, RESUMED, RUN, STARTED, STOPPED, TYPES, Run
from ruv_swarm_store.demo.source import LARGEST, listing, measure
from ruv_swarm_store.demo.totals import Recount, Totals, differences
from ruv_swarm_store.demo.verification import Mismatch, verify
from ruv_swarm_store.demo.worker import INDEXER

pytestmark = pytest.mark.long

posix = pytest.mark.skipif(os.name != "posix", reason="it takes signals")
SLOW = ("--pace", "0.4")
"""For runs that are to be caught in the middle."""


class Demo:
    """`ruv-swarm demo` in a process of its own, over one tree and on one store."""

    def __init__(self, environment, directory, tree):
        self._environment = environment
        self._directory = directory
        self.tree = tree
        self.path = directory / "demo.db"
        self._running = []

    def start(self, *options, tree=None):
        command = [sys.executable, "-m", "ruv_swarm_store.cli", "demo", str(tree or self.tree), "-s", str(self.path), "-w", "2", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, cwd=self._directory, env=self._environment, **pipes)
        self._running.append(process)
        return process

    def finish(self, process, code=0):
        """What a process printed, and complained about, once it has ended."""
        out, err = process.communicate(timeout=90)
        assert process.returncode == code, out + err
        return out, err

    def run(self, *options, code=0, tree=None):
        return self.finish(self.start(*options, tree=tree), code)

    def stop(self):
        """Leaves nothing running."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()

    @contextlib.contextmanager
    def store(self):
        with Store.open(self.path, migrate=False) as store:
            yield store

    def files(self):
        """How many files are indexed so far."""
        with contextlib.suppress(StoreError), Store.open(self.path, read_only=True) as store:  # it may not be there yet
            return store.tasks.where(schema.tasks.c.type == FILE, schema.tasks.c.status == TaskStatus.COMPLETED).count()
        return 0

    def workers(self):
        """The process ids of the workers, by the agents they registered."""
        with self.store() as store:
            agents = store.agents.where(schema.agents.c.type == INDEXER, schema.agents.c.status != AgentStatus.TERMINATED).all()
        return {agent.configuration["pid"]: agent for agent in agents}

    def reach(self, files):
        """Waits until so many files are indexed, and there is more to do."""
        until(lambda: self.files() >= files)
        assert self.files() < sum(1 for _ in self.tree.rglob("*.py")) - 5, "the run went past the point where it was to be caught"

    def notes(self):
        """The events of the last run."""
        with self.store() as store:
            begun = store.events.where(schema.events.c.event_type == STARTED).order_by(schema.events.c.position.desc()).first()
            return store.events.read(begun.aggregate_id, type=RUN)

    def runs(self):
        """What happened to the runs in the store."""
        with self.store() as store:
            return [event.event_type for event in store.events.walk() if event.aggregate_type == RUN]

    def prove(self):
        """The last run finished with the totals of a recount made here, and did every task once."""
        last = self.notes()[-1]
        assert last.event_type == FINISHED
        totals = recount.recount(str(self.tree)).totals
        assert {name: last.event_data["totals"][name] for name in Totals.__struct_fields__} == {
            name: getattr(totals, name) for name in Totals.__struct_fields__
        }
        with self.store() as store:
            done = run.find(store, last.aggregate_id)
            tasks = store.tasks.where(done.tasks).all()
            assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
            assert {task.type for task in tasks} == set(TYPES)
            paths = Counter(task.payload["path"] for task in tasks if task.type == FILE)
            files = {path.relative_to(self.tree).as_posix() for path in self.tree.rglob("*.py")}
            assert paths == Counter(files)
            indexed = Counter(event.aggregate_id for event in store.events.walk(after=0, types=[INDEXED]))
            assert {task.id: indexed[task.id] for task in tasks if task.type == FILE} == {task.id: 1 for task in tasks if task.type == FILE}
            assert not [agent for agent in store.agents.find_all() if agent.status is not AgentStatus.TERMINATED]
            return sum(task.retry_count for task in tasks)


def until(condition, timeout=40.0):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "that did not happen in time"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """Two real packages of the standard library, in directories within directories."""
    tree = tmp_path_factory.mktemp("tree") / "packages"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(json.__file__).parent, tree / "json", ignore=ignore)
    shutil.copytree(Path(email.__file__).parent, tree / "mail" / "email", ignore=ignore)
    return tree


@pytest.fixture
def small(tmp_path):
    """A tree counted by hand: see `test_a_tree_counted_by_hand`."""
    tree = tmp_path / "small"
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "empty").mkdir()
    (tree / "__pycache__").mkdir()
    (tree / ".hidden").mkdir()
    code = "import os, sys\nimport os.path\nfrom json import dumps\n\n\ndef f():\n    async def g():\n        import re\n"
    (tree / "a.py").write_text(code)
    code = "class C:\n    def m(self):\n        from . import x\n        from .y import z\n        import sys\n"
    (tree / "deep" / "b b.py").write_text(code)
    (tree / "deep" / "deeper" / "broken.py").write_text("def broken(:\n    pass\n")
    (tree / "deep" / "deeper" / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\ncaf\xe9 = '\xe9'\n")
    (tree / "deep" / "deeper" / "nul.py").write_bytes(b"x = 1\0\n")
    (tree / "deep" / "deeper" / "escape.py").write_text("x = '\\d'\n")
    (tree / "deep" / "\u732b.py").write_text("match x:\n    case 1:\n        class D: pass\n")
    (tree / "deep" / "nothing.py").write_text("")
    for other in ("__pycache__/a.py", ".hidden/b.py", "notes.txt", "deep/.py", "deep/c.pyc"):
        (tree / other).write_text("import antigravity\n")
    if os.name == "posix":
        (tree / "deep" / "round").symlink_to(tree)
        (tree / "nowhere.py").symlink_to(tree / "gone.py")
    return tree


BY_HAND = Totals(
    files=8,
    unparsable=2,
    lines=22,
    words=16 + 15 + 3 + 7 + 3 + 3 + 7,
    functions=3,
    classes=2,
    imports=5,
    modules={"os": 1, "sys": 2, "json": 1, "re": 1},
)


@pytest.fixture
def make(environment, tmp_path):
    made = []

    def make(tree):
        made.append(Demo(environment, tmp_path, tree))
        return made[-1]

    yield make
    for demo in made:
        demo.stop()


@pytest.fixture
def demo(make, packages):
    return make(packages)


# Undisturbed


def test_a_tree_counted_by_hand(make, small):
    demo = make(small)
    out, err = demo.run()
    assert err == ""
    assert "The swarm and the recount agree on 8 files" in out
    assert "\x1b" not in out
    assert all(line == line.rstrip() for line in out.splitlines())
    last = demo.notes()[-1]
    assert last.event_type == FINISHED
    assert last.event_data["totals"] == {name: getattr(BY_HAND, name) for name in Totals.__struct_fields__}
    with demo.store() as store:
        told = {message.content["path"] for message in store.messages.find_all()}
        assert told == {"deep/deeper/broken.py", "deep/deeper/nul.py"}
        assert store.metrics.count() == 8


def test_a_real_package_again_and_afresh(demo):
    out, _ = demo.run()
    assert "slowest files" in out
    assert "most imported modules" in out
    assert f"ruv-swarm status -s {demo.path}" in out
    assert demo.prove() == 0
    demo.run()  # a finished run is not resumed, a new one begins
    assert demo.prove() == 0
    assert demo.runs() == [STARTED, FINISHED] * 2
    demo.run("--fresh")
    assert demo.prove() == 0
    assert demo.runs() == [STARTED, FINISHED]


# Killed


@posix
def test_one_worker_killed(demo):
    process = demo.start(*SLOW)
    demo.reach(5)
    victims = demo.workers()
    with demo.store() as store:
        held = {task.agent_id for task in store.tasks.where(schema.tasks.c.status == TaskStatus.RUNNING)}
    pid, victim = next((pid, agent) for pid, agent in victims.items() if agent.id in held)
    os.kill(pid, signal.SIGKILL)
    out, _ = demo.finish(process)
    assert f"{victim.name} (pid {pid}) was killed by SIGKILL" in out
    assert demo.prove() <= 1
    with demo.store() as store:
        assert store.agents.where(schema.agents.c.type == INDEXER).count() == 3


@posix
def test_everything_killed_twice_and_resumed(demo):
    files = 5
    for _ in range(2):
        process = demo.start(*SLOW)
        demo.reach(files)
        pids = list(demo.workers())
        os.kill(process.pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=30)
        files = demo.files() + 7  # on a slow machine more than five may have been done by now
    done = demo.files()
    out, _ = demo.run()
    assert "Going on with a run that was not finished" in out
    assert demo.prove() <= 4
    assert [event.event_type for event in demo.notes()] == [STARTED, RESUMED, RESUMED, FINISHED]
    with demo.store() as store:
        assert store.tasks.where(schema.tasks.c.type == FILE).count() > done >= 12


@posix
def test_without_their_coordinator_workers_end(demo):
    process = demo.start(*SLOW)
    demo.reach(5)
    workers = demo.workers()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    until(lambda: all(is_gone(agent.configuration) for agent in workers.values()))
    assert demo.workers() == {}  # they said so themselves
    with demo.store() as store:
        assert not store.tasks.where(schema.tasks.c.status.in_(schema.LEASED)).exists()
    demo.run()
    assert demo.prove() == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_drains(demo, number):
    process = demo.start(*SLOW)
    demo.reach(5)
    process.send_signal(number)
    out, err = demo.finish(process, 128 + number)
    assert err == ""
    assert f"To go on from there: ruv-swarm demo {demo.tree} -s {demo.path}" in out
    assert demo.notes()[-1].event_type == STOPPED
    assert demo.workers() == {}
    with demo.store() as store:
        assert not store.tasks.where(schema.tasks.c.status.in_(schema.LEASED)).exists()
    demo.run()
    assert demo.prove() == 0  # nothing had to be done again


# Refused


def test_a_tree_that_changes_meanwhile_is_told(make, packages, tmp_path):
    demo = make(shutil.copytree(packages, tmp_path / "packages"))
    process = demo.start(*SLOW)
    demo.reach(5)  # by now every directory has been listed
    (demo.tree / "json" / "late.py").write_text("import this\n")
    (demo.tree / "mail" / "email" / "message.py").write_text("import that\n")
    out, err = demo.finish(process, 1)
    assert err.startswith("Error: the swarm and the recount differ: ")
    assert "Changed since the run began: " in err
    assert str(demo.tree / "json" / "late.py") in err
    assert "agree" not in out
    assert demo.notes()[-1].event_type == FAILED
    demo.run()
    assert demo.prove() == 0


@posix
def test_one_coordinator_and_one_tree_at_a_time(demo, tmp_path):
    process = demo.start(*SLOW)
    demo.reach(3)
    for options in ((), ("--fresh",)):
        _, err = demo.run(*options, code=1)
        assert f"the demo is running on this store already, as process {process.pid}" in err
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    (tmp_path / "other").mkdir()
    _, err = demo.run(code=1, tree=tmp_path / "other")
    assert f"an unfinished run over {demo.tree}" in err
    demo.run("--fresh", tree=tmp_path / "other")


def test_fresh_forgets_nothing_of_others(demo):
    with Store.open(demo.path) as store:
        store.tasks.enqueue("mine")
    _, err = demo.run("--fresh", code=1)
    assert "holds 1 rows that are not the demo's" in err
    with demo.store() as store:
        assert store.tasks.count() == 1


def test_a_store_in_memory_is_refused(packages):
    with pytest.raises(StoreError, match="one process's own"):
        conduct(":memory:", packages)


def test_workers_that_fail_by_themselves_are_given_up(monkeypatch, tmp_path, packages):
    spawn = crew.spawn

    def failing(module, *arguments, **pipes):
        if module != "worker":
            return spawn(module, *arguments, **pipes)
        return subprocess.Popen([sys.executable, "-c", "raise SystemExit('no luck today')"], stdin=subprocess.PIPE, **pipes)

    monkeypatch.setattr(crew, "spawn", failing)
    with pytest.raises(StoreError, match="workers keep failing: no luck today"):
        conduct(tmp_path / "demo.db", packages)
    monkeypatch.undo()
    assert conduct(tmp_path / "demo.db", packages).totals == recount.recount(str(packages)).totals


def conduct(address, tree):
    display = Lines(Console(file=io.StringIO()))
    return coordinator.conduct(str(address), str(tree), workers=2, slowdown=0.0, fresh=False, display=display)


# The parts


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::SyntaxWarning")  # of the code that is read
def test_the_swarm_and_the_recount_measure_alike(small):
    files, modules = [], Counter()
    pending = [small]
    while pending:
        here = pending.pop()
        names, directories = listing(here)
        files += [measure(here / name) for name in names]
        pending += [here / name for name in directories]
    for facts in files:
        modules.update(facts.modules)
    totals = Totals(
        len(files),
        sum(facts.fault is not None for facts in files),
        sum(facts.lines for facts in files),
        sum(facts.words for facts in files),
        sum(facts.functions for facts in files),
        sum(facts.classes for facts in files),
        modules.total(),
        dict(modules),
    )
    assert totals == recount.recount(str(small)).totals == BY_HAND


def test_what_cannot_be_measured_is_a_fact(tmp_path):
    assert "cannot be read" in measure(tmp_path / "absent.py").fault
    (tmp_path / "deep.py").write_text("x = " + "(" * 10_000 + ")" * 10_000)
    assert "does not parse" in measure(tmp_path / "deep.py").fault
    (tmp_path / "large.py").write_text("#" * LARGEST + "\n")
    assert measure(tmp_path / "large.py").fault is None or "not parsed" in measure(tmp_path / "large.py").fault
    assert recount.recount(str(tmp_path)).totals.unparsable == 2
    assert listing(tmp_path / "absent") == ([], [])


def test_differences_are_named():
    swarm, again = Totals(files=2, lines=10, modules={"os": 1}), Totals(files=3, lines=10, modules={"os": 2, "re": 1})
    assert differences(swarm, swarm) == []
    assert differences(swarm, again) == ["files 2 against 3", "files importing os 1 against 2", "files importing re 0 against 1"]


def test_the_audit_finds_what_was_left_or_done_twice(tmp_path):
    os.utime(tmp_path, (1, 1))
    with Store.open() as store:
        begun, resumed = run.begin(store, str(tmp_path))
        assert not resumed
        worker = store.agents.register(INDEXER)
        root = store.tasks.claim(worker)
        assert "is assigned" in begun.audit()[0]
        store.tasks.complete(root)
        twice = store.tasks.enqueue(FILE, {"path": "a.py"}, parent=root)
        store.tasks.complete(store.tasks.claim(worker), {"facts": {}, "milliseconds": 1.0})
        assert begun.audit() == [f"task {twice.id} was indexed 0 times"]
        store.events.append(twice.id, [NewEvent(INDEXED)], type=FILE)
        assert begun.audit() == []
        verify(begun, Totals(), Recount(Totals(), 1.0))
        with pytest.raises(Mismatch, match="please report it"):
            verify(begun, Totals(files=1), Recount(Totals(), 1.0))
        (tmp_path / "a.py").touch()
        with pytest.raises(Mismatch, match=r"a\.py\. Run it again"):
            verify(begun, Totals(files=1), Recount(Totals(), 1.0))
        store.events.append(twice.id, [NewEvent(INDEXED)], type=FILE)
        assert begun.audit() == [f"task {twice.id} was indexed 2 times"]
        with pytest.raises(Mismatch, match="indexed 2 times"):
            verify(begun, Totals(), Recount(Totals(), 1.0))


def test_a_run_is_resumed_until_it_ends():
    with Store.open() as store:
        first, _ = run.begin(store, "/tree")
        again, resumed = run.begin(store, "/tree")
        assert (again.id, resumed) == (first.id, True)
        with pytest.raises(StoreError, match="unfinished run over /tree"):
            run.begin(store, "/another")
        first.note(FINISHED)
        other, resumed = run.begin(store, "/another")
        assert isinstance(other, Run)
        assert not resumed


@posix
def test_a_process_is_gone_or_not():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        theirs = {**whereabouts(), "pid": other.pid}
        assert not is_gone(theirs)
        assert not is_gone({**theirs, "host": "elsewhere"})
        other.kill()
        if Path("/proc/self/stat").exists():
            until(lambda: is_gone(theirs))  # dead, though nobody has asked for its exit code
    assert is_gone(theirs)
    assert not is_gone({**theirs, "host": "elsewhere"})
    assert is_gone(whereabouts())  # somebody had this process's number before
    assert not is_gone({})


def test_a_silent_coordinator_is_followed(clock):
    with Store.open(clock=clock) as store:
        elsewhere = {"pid": 1, "host": "elsewhere"}
        store.agents.register("coordinator", id=enlistment.COORDINATOR, configuration=elsewhere)
        store.agents.register(INDEXER, name="theirs", configuration=elsewhere)
        with pytest.raises(StoreError, match="as process 1"):
            enlistment.enlist(store)
        assert enlistment.silent(store) == []
        clock.advance(enlistment.SILENCE + 1)
        assert enlistment.enlist(store).configuration == whereabouts()
        assert [agent.name for agent in enlistment.silent(store)] == ["theirs"]
        enlistment.discharge(store)
        assert store.agents.where(schema.agents.c.type == INDEXER).one().status is AgentStatus.IDLE  # nobody saw it die
