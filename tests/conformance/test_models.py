"""Random sequences of verbs give on every engine what a plain Python model gives."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from msgspec import structs

from ruv_swarm_store import ANY, Conflict, InvalidTransition, LeaseLost, NewEvent, NewTask, Store, Task, TaskStatus
from ruv_swarm_store.entities import DependencyPolicy, TaskFailure
from ruv_swarm_store.tasks import Backoff

PENDING, SCHEDULED, BLOCKED = TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.BLOCKED
ASSIGNED, RUNNING = TaskStatus.ASSIGNED, TaskStatus.RUNNING
COMPLETED, FAILED, CANCELLED = TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED
HELD = (ASSIGNED, RUNNING)
FINAL = (COMPLETED, FAILED, CANCELLED)
BACKOFF = Backoff(initial=0.05, factor=3, maximum=1, jitter=0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


class Queue:
    """The task queue in plain Python: every task as the store should have it, by id in order of creation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.tasks: dict[str, Task] = {}
        self.needs: dict[str, set[str]] = {}
        self.failures: list[TaskFailure] = []

    def add(self, task: Task, needs: set[str]) -> None:
        self.tasks[task.id] = task
        self.needs[task.id] = needs
        for need in needs:
            if self.tasks[need].status is not COMPLETED:
                self.tasks[need] = structs.replace(self.tasks[need], awaited=1)

    def unmet(self, needs: set[str]) -> int:
        return sum(self.tasks[need].status is not COMPLETED for need in needs)

    def change(self, id: str, **values: Any) -> Task:
        task = self.tasks[id] = structs.replace(self.tasks[id], version=self.tasks[id].version + 1, **values)
        return task

    def initial_status(self, needs: set[str], run_at: int | None, policy: DependencyPolicy) -> TaskStatus:
        states = {self.tasks[id].status for id in needs}
        if states & {FAILED, CANCELLED}:
            return FAILED if policy is DependencyPolicy.FAIL else CANCELLED
        if states - {COMPLETED}:
            return BLOCKED
        return SCHEDULED if run_at is not None and run_at > self.clock.now else PENDING

    def claim(self, agent: str, limit: int, types: list[str] | None, lease: int) -> list[Task]:
        now = self.clock.now
        if not any(t.status is PENDING or (t.status is SCHEDULED and t.run_at <= now) for t in self.tasks.values()):
            return []
        for task in list(self.tasks.values()):
            if task.status is SCHEDULED and task.run_at <= now:
                self.change(task.id, status=PENDING)
        ready = [t for t in self.tasks.values() if t.status is PENDING and (types is None or t.type in types)]
        ready.sort(key=lambda t: (-t.priority, t.position))
        return [
            self.change(
                t.id, status=ASSIGNED, agent_id=agent, assigned_at=now, started_at=None, lease_expires_at=now + lease, fence=t.fence + 1
            )
            for t in ready[:limit]
        ]

    def refusal(self, lease: Task, allowed: tuple[TaskStatus, ...]) -> type[Exception] | None:
        task = self.tasks[lease.id]
        if task.fence == lease.fence and task.status in allowed:
            return None
        if task.fence != lease.fence or (lease.fence and task.status not in (*HELD, *FINAL)):
            return LeaseLost
        return InvalidTransition

    def settle(self, dead: list[str]) -> None:
        """Ends what waits for tasks that have failed or been cancelled, then what waits for that, and so on down."""
        while dead:
            ended = []
            for other in list(self.tasks.values()):
                if other.status is BLOCKED and (causes := self.needs[other.id] & set(dead)):
                    end = FAILED if other.on_dependency_failure is DependencyPolicy.FAIL else CANCELLED
                    reason = f"a task it depends on did not complete: {min(causes)}"
                    self.change(other.id, status=end, completed_at=self.clock.now, error_message=reason)
                    ended.append(other.id)
            dead = ended

    def free(self, done: str) -> None:
        """Lets go on what waited for nothing but this task any more."""
        for other in list(self.tasks.values()):
            needs = self.needs[other.id]
            if other.status is BLOCKED and done in needs:
                self.tasks[other.id] = structs.replace(other, unmet=self.unmet(needs))
                if not self.unmet(needs):
                    later = other.run_at is not None and other.run_at > self.clock.now
                    self.change(other.id, status=SCHEDULED if later else PENDING)

    def complete(self, id: str, result: Any) -> Task:
        task = self.change(id, status=COMPLETED, result=result, completed_at=self.clock.now, lease_expires_at=None)
        self.free(id)
        return task

    def end_attempt(self, id: str, reason: str, *, retry: bool, delay: int) -> Task:
        task, now = self.tasks[id], self.clock.now
        self.failures.append(TaskFailure(id, task.fence, task.agent_id, reason, now))
        if retry and task.retry_count < task.max_retries:
            return self.change(
                id,
                status=SCHEDULED if delay else PENDING,
                run_at=now + delay if delay else task.run_at,
                retry_count=task.retry_count + 1,
                error_message=reason,
                agent_id=None,
                lease_expires_at=None,
            )
        task = self.change(id, status=FAILED, completed_at=now, lease_expires_at=None, error_message=reason)
        self.settle([id])
        return task

    def cancel(self, ids: list[str]) -> None:
        for id in ids:
            self.change(id, status=CANCELLED, completed_at=self.clock.now, lease_expires_at=None)
        self.settle(ids)

    def tree(self, id: str) -> list[str]:
        found = [id]
        for parent in found:
            found += [task.id for task in self.tasks.values() if task.parent_task_id == parent]
        return found


class TaskMachine(RuleBasedStateMachine):
    def __init__(self, database: Any) -> None:
        super().__init__()
        self.clock = Clock()
        self.store: Store = database.open(clock=self.clock)
        self.model = Queue(self.clock)
        self.leases: list[Task] = []

    @initialize()
    def agents(self) -> None:
        self.workers = [self.store.agents.register("worker").id for _ in range(2)]

    def pick(self, data: st.DataObject, what: list[Any]) -> Any:
        return data.draw(st.sampled_from(what))

    def pick_lease(self, data: st.DataObject) -> Task:
        """One of those ever taken, mostly one that holds."""
        held = [lease for lease in self.leases if self.model.refusal(lease, HELD) is None]
        return self.pick(data, held if held and data.draw(st.integers(0, 3)) else self.leases)

    def seldom(self, data: st.DataObject) -> bool:
        return data.draw(st.integers(0, 3)) == 3

    @rule(data=st.data(), count=st.integers(1, 3))
    def enqueue(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            self.enqueue_one(data)

    def enqueue_one(self, data: st.DataObject) -> None:
        known = list(self.model.tasks)
        now = self.clock.now
        draw = data.draw
        # Mostly on what is still open, so that several dependencies end one after the other.
        recent = [task.id for task in self.model.tasks.values() if task.status not in FINAL][-4:] or known
        needs = set()
        if known and draw(st.booleans()):
            needs = set(draw(st.lists(st.sampled_from(known if self.seldom(data) else recent), max_size=3)))
        parent = draw(st.none() | st.sampled_from(known)) if known else None
        run_at = draw(st.sampled_from([now - 1, now, now + 1, now + 100])) if self.seldom(data) else None
        key = draw(st.sampled_from("kl")) if self.seldom(data) else None
        policy = draw(st.sampled_from(DependencyPolicy))
        options: dict[str, Any] = {
            "priority": draw(st.sampled_from([0, 5, 5, 100])), "max_retries": draw(st.integers(0, 2)), "parent": parent, "run_at": run_at,
            "depends_on": sorted(needs), "unique_key": key, "on_dependency_failure": policy,
        }  # fmt: skip
        type_, payload = draw(st.sampled_from("ab")), draw(st.integers(0, 9))
        task = self.store.tasks.enqueue(type_, payload, **options)
        live = [t for t in self.model.tasks.values() if key is not None and t.unique_key == key and t.status not in FINAL]
        if live:
            assert task == live[0]
            return
        assert task.id not in self.model.tasks
        status = self.model.initial_status(needs, run_at, policy)
        expected = Task(
            task.id, type_, payload, now, options["priority"], status=status, parent_task_id=parent, run_at=run_at,
            max_retries=options["max_retries"], unique_key=key, on_dependency_failure=policy, position=task.position,
            unmet=self.model.unmet(needs),
        )  # fmt: skip
        if status in FINAL:
            dead = min(id for id in needs if self.model.tasks[id].status in (FAILED, CANCELLED))
            expected = structs.replace(
                expected, completed_at=now, version=2, error_message=f"a task it depends on did not complete: {dead}"
            )
        assert task == expected
        assert task.position > max((t.position for t in self.model.tasks.values()), default=0)
        self.model.add(expected, needs)

    @precondition(lambda self: any(task.status in (PENDING, SCHEDULED) for task in self.model.tasks.values()))
    @rule(
        data=st.data(),
        batch=st.booleans(),
        types=st.sampled_from([None, None, None, ["a"], ["b"], ["a", "b"], ["c"]]),
        lease=st.sampled_from([5_000, 5_000, 50, 1]),
    )
    def claim(self, data: st.DataObject, batch: bool, types: list[str] | None, lease: int) -> None:
        agent = self.pick(data, self.workers)
        if batch:
            limit = data.draw(st.integers(1, 3))
            claimed = self.store.tasks.claim_many(agent, limit, types=types, lease=lease / 1000)
            assert claimed == self.model.claim(agent, limit, types, lease)
        else:
            task = self.store.tasks.claim(agent, types=types, lease=lease / 1000)
            claimed = [] if task is None else [task]
            assert claimed == self.model.claim(agent, 1, types, lease)
        self.leases += claimed

    def attempt(self, verb: Any, expected: type[Exception] | None) -> Any:
        if expected is None:
            return verb()
        with pytest.raises(expected) as caught:
            verb()
        assert type(caught.value) is expected
        return None

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        lease = self.pick_lease(data)
        refusal = self.model.refusal(lease, (ASSIGNED,))
        started = self.attempt(lambda: self.store.tasks.start(lease), refusal)
        if refusal is None:
            assert started == self.model.change(lease.id, status=RUNNING, started_at=self.clock.now)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), lease_ms=st.sampled_from([0, 10, 1_000]))
    def heartbeat(self, data: st.DataObject, lease_ms: int) -> None:
        lease = self.pick_lease(data)
        refusal = self.model.refusal(lease, HELD)
        self.attempt(lambda: self.store.tasks.heartbeat(lease, lease=lease_ms / 1000), refusal)
        if refusal is None:
            task = self.model.tasks[lease.id]
            self.model.tasks[lease.id] = structs.replace(task, lease_expires_at=self.clock.now + lease_ms)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), result=st.none() | st.integers(0, 9))
    def complete(self, data: st.DataObject, result: int | None) -> None:
        lease = self.pick_lease(data)
        refusal = self.model.refusal(lease, HELD)
        done = self.attempt(lambda: self.store.tasks.complete(lease, result), refusal)
        if refusal is None:
            assert done == self.model.complete(lease.id, result)

    @precondition(lambda self: len(self.leases) > 1)
    @rule(data=st.data())
    def complete_many(self, data: st.DataObject) -> None:
        leases = data.draw(st.lists(st.sampled_from(self.leases), min_size=1, max_size=3, unique_by=lambda lease: lease.id))
        refusals = [refusal for lease in leases if (refusal := self.model.refusal(lease, HELD))]
        done = self.attempt(lambda: self.store.tasks.complete_many((lease, 0) for lease in leases), refusals[0] if refusals else None)
        if not refusals:
            assert done == [self.model.complete(lease.id, 0) for lease in leases]

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), retry=st.booleans(), delay=st.sampled_from([None, 0, 0.02]))
    def fail(self, data: st.DataObject, retry: bool, delay: float | None) -> None:
        lease = self.pick_lease(data)
        refusal = self.model.refusal(lease, HELD)
        failed = self.attempt(lambda: self.store.tasks.fail(lease, "no", retry=retry, delay=delay, backoff=BACKOFF), refusal)
        if refusal is None:
            retries = self.model.tasks[lease.id].retry_count
            wait = round(min(50 * 3**retries, 1_000) if delay is None else delay * 1000)
            assert failed == self.model.end_attempt(lease.id, "no", retry=retry, delay=wait)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), delay=st.sampled_from([0, 0.02]))
    def release(self, data: st.DataObject, delay: float) -> None:
        lease = self.pick_lease(data)
        refusal = self.model.refusal(lease, HELD)
        released = self.attempt(lambda: self.store.tasks.release(lease, delay=delay), refusal)
        if refusal is None:
            changes: dict[str, Any] = {"status": PENDING} if not delay else {"status": SCHEDULED, "run_at": self.clock.now + 20}
            assert released == self.model.change(lease.id, agent_id=None, lease_expires_at=None, **changes)

    @precondition(lambda self: len(self.model.tasks) > 3)
    @rule(data=st.data(), which=st.integers(0, 3))
    def trouble(self, data: st.DataObject, which: int) -> None:
        """What undoes work; one rule, so that work gets done in between."""
        match which:
            case 0 | 1:
                self.cancel(data, tree=which == 1)
            case 2:
                self.terminate(data)
            case _:
                self.clock.now += 5_000

    def cancel(self, data: st.DataObject, *, tree: bool) -> None:
        id = self.pick(data, list(self.model.tasks))
        ids = [one for one in (self.model.tree(id) if tree else [id]) if self.model.tasks[one].status not in FINAL]
        cancelled = self.attempt(lambda: self.store.tasks.cancel(id, tree=tree), None if ids or tree else InvalidTransition)
        self.model.cancel(ids)
        if cancelled is not None:
            assert cancelled == sorted((self.model.tasks[one] for one in ids), key=lambda task: task.position)

    def terminate(self, data: st.DataObject) -> None:
        agent = self.pick(data, self.workers)
        self.store.agents.terminate(agent)
        for task in list(self.model.tasks.values()):
            if task.status in HELD and task.agent_id == agent:
                self.model.end_attempt(task.id, "its agent was terminated", retry=True, delay=0)
        self.store.agents.register("worker", id=agent)

    @precondition(lambda self: self.leases)
    @rule(ms=st.sampled_from([0, 1, 2, 49]), rescue=st.booleans())
    def let_time_pass(self, ms: int, rescue: bool) -> None:
        self.clock.now += ms
        if rescue:
            expired = [t for t in self.model.tasks.values() if t.status in HELD and t.lease_expires_at <= self.clock.now]
            rescued = self.store.tasks.rescue()
            for task in expired:
                self.model.end_attempt(task.id, "the lease expired", retry=True, delay=0)
            assert {task.id: task for task in rescued} == {task.id: self.model.tasks[task.id] for task in expired}

    @invariant()
    def agrees(self) -> None:
        assert self.store.tasks.find_all() == list(self.model.tasks.values())

    def teardown(self) -> None:
        for id in self.model.tasks:
            mine = sorted((f for f in self.model.failures if f.task_id == id), key=lambda failure: failure.fence)
            assert self.store.tasks.failures(id) == mine
        counts: dict[str, dict[TaskStatus, int]] = {}
        for task in self.model.tasks.values():
            by_status = counts.setdefault(task.type, {})
            by_status[task.status] = by_status.get(task.status, 0) + 1
        assert self.store.tasks.stats().counts == counts
        assert self.store.check() == []
        self.store.close()


class Undo(Exception):
    pass


class World:
    """What is beside the tasks in a swarm, in plain Python."""

    def __init__(self) -> None:
        self.settings: dict[str, int] = {}
        self.streams: dict[str, list[int]] = {}
        self.log: list[tuple[str, int]] = []
        self.members: dict[str, str | None] = {}
        self.inboxes: dict[str, list[int]] = {}
        self.published = 0


class SwarmMachine(TaskMachine):
    """Every noun, on every engine at once: by itself and in units of work, some of which are rolled back."""

    def __init__(self, database: Any) -> None:
        super().__init__(database)
        self.world = World()

    @initialize()
    def agents(self) -> None:
        super().agents()
        self.team = self.store.groups.create("team").id
        self.world.inboxes = {worker: [] for worker in self.workers}

    @rule(data=st.data(), key=st.sampled_from("pq"), value=st.integers(0, 9), wrong=st.booleans())
    def configure(self, data: st.DataObject, key: str, value: int, wrong: bool) -> None:
        settings, config = self.world.settings, self.store.config
        match data.draw(st.integers(0, 3)):
            case 0:
                assert config.delete(key) == (key in settings)
                settings.pop(key, None)
                return
            case 1:
                entry = config.entry(key)
                assert (entry and entry.value) == settings.get(key)
                version = entry.version if entry else 0
                if wrong:
                    self.attempt(lambda: config.compare_and_set(key, value, expected=version + 1), Conflict)
                    return
                assert config.compare_and_set(key, value, expected=version).value == value
            case _:
                assert config.set(key, value).value == value
        settings[key] = value

    @rule(stream=st.sampled_from("st"), count=st.integers(1, 3), seen=st.sampled_from([-1, -1, 0, 1]))
    def happen(self, stream: str, count: int, seen: int) -> None:
        """Appends events: to whatever there is, or to the version seen, which may be a wrong one."""
        known = self.world.streams.setdefault(stream, [])
        events = [NewEvent("t", len(known) + n) for n in range(count)]
        expected = ANY if seen == -1 else len(known) + seen
        version = self.attempt(
            lambda: self.store.events.append(stream, events, type="x", expected_version=expected), Conflict if seen == 1 else None
        )
        if seen < 1:
            known += [event.data for event in events]
            self.world.log += [(stream, len(known) - count + n) for n in range(1, count + 1)]
            assert version == len(known)

    @rule(data=st.data(), role=st.sampled_from([None, "lead"]))
    def gather(self, data: st.DataObject, role: str | None) -> None:
        agent, members = self.pick(data, self.workers), self.world.members
        if data.draw(st.booleans()):
            members[agent] = members.get(agent) if role is None else role
            assert self.store.groups.join(self.team, agent, role=role).role == members[agent]
        else:
            assert self.store.groups.leave(self.team, agent) == (agent in members)
            members.pop(agent, None)

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        to = data.draw(st.none() | st.sampled_from(self.workers))
        assert self.store.messages.publish("x", self.world.published, to=to).content == self.world.published
        for agent, inbox in self.world.inboxes.items():
            if to in (None, agent):
                inbox.append(self.world.published)
        self.world.published += 1

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        agent = self.pick(data, self.workers)
        inbox = self.world.inboxes[agent]
        received = self.store.messages.receive(agent, visibility=0)
        assert [message.content for message in received] == inbox
        if received:
            message = self.pick(data, received[:2])
            self.store.messages.acknowledge(message, agent)
            inbox.remove(message.content)

    @rule(data=st.data(), ends=st.sampled_from(["commit", "commit", "roll back"]), size=st.integers(1, 5))
    def together(self, data: st.DataObject, ends: str, size: int) -> None:
        """Several steps in one unit of work, some in a savepoint."""
        with self.undone():
            outside = self.store
            try:
                with outside.transaction() as self.store:  # type: ignore[assignment]
                    for _ in range(size):
                        self.step(data)
                    if data.draw(st.booleans()):
                        self.nested(data, data.draw(st.booleans()))
                    self.step(data)
                    if ends == "roll back":
                        raise Undo
            finally:
                self.store = outside

    def nested(self, data: st.DataObject, fails: bool) -> None:
        with self.undone():
            outside = self.store
            try:
                with outside.transaction() as self.store:  # type: ignore[assignment]
                    self.step(data)
                    self.step(data)
                    if fails:
                        raise Undo
            finally:
                self.store = outside

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Puts the model back to where it was when `Undo` leaves the block."""
        kept = copy.deepcopy((self.model, self.world, self.leases), {id(self.clock): self.clock})
        try:
            yield
        except Undo:
            self.model, self.world, self.leases = kept

    def step(self, data: st.DataObject) -> None:
        steps: list[Callable[[], object]] = [
            lambda: self.enqueue_one(data),
            lambda: self.claim(data, batch=data.draw(st.booleans()), types=None, lease=5_000),
            lambda: self.configure(data, "p", 1, wrong=data.draw(st.booleans())),
            lambda: self.happen("s", 2, data.draw(st.sampled_from([ANY, 0, 1]))),
            lambda: self.gather(data, "in"),
            lambda: self.write(data),
            lambda: self.read(data),
        ]
        if self.leases:
            steps += [
                lambda: self.start(data),
                lambda: self.complete(data, 1),
                lambda: self.fail(data, retry=data.draw(st.booleans()), delay=0),
            ]
        data.draw(st.sampled_from(steps))()

    @invariant()
    def agrees(self) -> None:
        super().agrees()
        world = self.world
        assert self.store.config.prefix("") == world.settings
        assert [(event.aggregate_id, event.sequence_number) for event in self.store.events.read_all()] == world.log
        for stream, wanted in world.streams.items():
            assert [event.event_data for event in self.store.events.read(stream)] == wanted
        assert {member.agent_id: member.role for member in self.store.groups.members(self.team)} == world.members
        for agent, inbox in world.inboxes.items():
            assert self.store.messages.unread(agent) == len(inbox)


@pytest.mark.long
@pytest.mark.parametrize(("machine", "examples", "steps"), [(TaskMachine, 25, 50), (SwarmMachine, 14, 40)])
def test_random_verbs_agree_with_the_model_on_every_engine_at_once(new_chorus, machine, examples, steps):
    scale = settings().max_examples / 60  # more of them in the deep profile
    run_state_machine_as_test(
        lambda: machine(new_chorus()), settings=settings(max_examples=round(examples * scale), stateful_step_count=steps)
    )


@pytest.mark.parametrize(
    "alone",
    [
        lambda store: store.config.set("k", 1),
        lambda store: store.tasks.enqueue("t", id="other"),
        lambda store: store.tasks.cancel("b"),
        lambda store: store.events.append("s", [NewEvent("t")], type="x"),
    ],
    ids=["config", "enqueue", "cancel", "append"],
)
def test_an_engine_that_answers_otherwise_would_be_noticed(new_chorus, alone):
    store = new_chorus().open(clock=Clock())

    def ask() -> None:
        assert [task.id for task in store.tasks.find_all()] == ["a", "b"]
        store.config.prefix("")
        store.events.append("s", [NewEvent("t")], type="x", expected_version=0)

    store.tasks.enqueue_many([NewTask("t", id="a"), NewTask("t", id="b")])
    try:
        alone(list(store._singers.values())[-1])
        with pytest.raises(AssertionError, match="does not answer as"):
            ask()
    finally:
        store.close()


def test_two_stores_given_the_same_verbs_hold_the_same(new_database):
    """Ids and back-off aside, nothing in a store is left to chance."""

    def story(store: Store, clock: Clock) -> list[Any]:
        rng = random.Random(3)
        agents = [store.agents.register("worker", id=f"agent-{n}") for n in range(3)]
        held: list[Task] = []
        for number in range(200):
            match rng.randrange(5):
                case 0 | 1:
                    store.tasks.enqueue("t", number, id=f"task-{number}", priority=rng.randrange(5), max_retries=1)
                case 2:
                    held += store.tasks.claim_many(rng.choice(agents), rng.randrange(1, 4), lease=0.02)
                case 3 if held:
                    task = held.pop(rng.randrange(len(held)))
                    try:
                        store.tasks.complete(task) if rng.random() < 0.5 else store.tasks.fail(task, "no", backoff=BACKOFF)
                    except (LeaseLost, InvalidTransition):
                        pass
                case _:
                    clock.now += rng.randrange(20)
                    store.tasks.rescue()
        return store.tasks.find_all()

    stories = []
    for _ in range(2):
        clock = Clock()
        stories.append(story(new_database().open(clock=clock), clock))
    assert stories[0] == stories[1]
