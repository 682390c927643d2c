"""Anything that a store lets one do to a swarm's state, at random: by its verbs and past them, alone and in units of work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs
from sqlalchemy import delete, update

from ruv_swarm_store import NewTask, Store, StoreError, Task, schema
from ruv_swarm_store.entities import Agent, ConfigEntry, DependencyPolicy, Group

AWKWARD = 'it\'s "quoted"; DROP TABLE tasks; --\n\t\\ 🐝 \u200d \x01\x1f\x7f ½'
JSON: list[Any] = [
    None,
    True,
    0,
    1,
    1.0,
    -0.0,
    "",
    "null",
    AWKWARD,
    [],
    {},
    [[], {}, [None], {"": None}],
    {"b": 1, "a": {"z": [1, 1.0, 1e16, 1e-7, 1e23, 5e-324, 1.7976931348623157e308], AWKWARD: AWKWARD}},
    [2**63 - 1, -(2**63), 2**64, 10**30, 12345678901234567, 0.1, 1 / 3],
]


class Undo(Exception):
    pass


class Unruly:
    """Somebody who does one thing after another, drawn from `random`; what a store refuses is let be."""

    def __init__(self, store: Any, clock: Any, random: Any) -> None:
        self.store: Store = store
        self.clock = clock
        self.random = random
        self.leases: list[Task] = []
        self.done = 0
        self._tasks: list[str] = []
        self._number = 0

    def step(self) -> None:
        """One verb, or several together."""
        if self.random.randrange(8):
            self._one()
        else:
            self._together(2)

    def _one(self) -> None:
        self.done += 1
        try:
            self.random.choice(self._verbs)()
        except StoreError:
            pass

    def _together(self, deeper: int) -> None:
        """A unit of work, or a savepoint in one, of which some are rolled back."""
        outside = self.store
        try:
            with outside.transaction() as self.store:  # type: ignore[assignment]
                for _ in range(self.random.randrange(1, 4)):
                    self._one()
                if deeper and not self.random.randrange(3):
                    self._together(deeper - 1)
                    self._one()
                if not self.random.randrange(3):
                    raise Undo
        except (Undo, StoreError):
            pass
        finally:
            self.store = outside

    # What there is to choose from

    def _agent(self) -> str:
        return f"a-{self.random.randrange(6)}"

    def _group(self) -> str:
        return f"g-{self.random.randrange(3)}"

    def _key(self) -> str:
        return self.random.choice(["k", "k/1", "k/2", AWKWARD, "[1]"])

    def _json(self) -> Any:
        return self.random.choice(JSON)

    def _lease(self) -> Task | str:
        return self.leases.pop(self.random.randrange(len(self.leases))) if self.leases else "nothing"

    def _held(self) -> Task | str:
        return self.random.choice(self.leases) if self.leases else "nothing"

    def _task(self) -> str:
        return self.random.choice(self._tasks[-30:]) if self._tasks else "nothing"

    def _some(self, one: Callable[[], Any]) -> list[Any]:
        return sorted({one() for _ in range(self.random.randrange(1, 4))})

    def _text(self) -> str | None:
        return self.random.choice([None, "x", AWKWARD])

    # Agents

    def register(self) -> None:
        name = self.random.choice([None, None, "n", "m", AWKWARD])
        self.store.agents.register(self.random.choice(["w", AWKWARD]), id=self._agent(), name=name, configuration={"c": self._json()})

    def agent_verbs(self) -> None:
        agents = self.store.agents
        agent = self._agent()
        match self.random.randrange(11):
            case 0:
                agents.heartbeat(agent)
            case 1:
                agents.heartbeat_many(self._some(self._agent))
            case 2:
                agents.set_status(agent, self.random.choice(["idle", "busy", "failed"]))
            case 3:
                agents.terminate(agent)
            case 4:
                agents.reap(3_600.0)
            case 5:
                agents.delete(agent)
            case 6:
                agents.delete_many(self._some(self._agent))
            case 7:
                agents.insert_many([Agent(agent, "inserted", self.clock.now, self.clock.now, capabilities=[self._json()])])
            case 8:
                agents.upsert(Agent(agent, "upserted", 1, 2, name=self._text()))
            case 9:
                agents.update(structs.replace(agents.get(agent), configuration={"u": self._json()}))
            case _:
                agents.replace(structs.replace(agents.get(agent), type="replaced"))

    # Tasks

    def _new(self) -> NewTask:
        draw = self.random.randrange
        self._number += 1
        id = f"t-{self._number}"
        known = self._tasks[-8:]
        return NewTask(
            self.random.choice("ab"), self._json(), priority=draw(101), id=id,
            parent=self.random.choice(known) if known and not draw(4) else None,
            depends_on=sorted({self.random.choice(known) for _ in range(draw(3))}) if known and not draw(3) else [],
            delay=self.random.choice([None, None, 1.0]),
            unique_key=self.random.choice([None, None, None, "u", AWKWARD]),
            idempotency_key=self.random.choice([None, None, None, f"i-{draw(50)}"]),
            concurrency_key=self.random.choice([None, None, "c", "d"]),
            max_retries=draw(3),
            on_dependency_failure=self.random.choice(list(DependencyPolicy)),
        )  # fmt: skip

    def enqueue(self) -> None:
        new = self._new()
        options = {name: getattr(new, name) for name in new.__struct_fields__ if name not in ("type", "payload", "run_at")}
        self._tasks.append(self.store.tasks.enqueue(new.type, new.payload, **options).id)

    def enqueue_many(self) -> None:
        self._tasks += [task.id for task in self.store.tasks.enqueue_many([self._new() for _ in range(self.random.randrange(1, 4))])]

    def claim(self) -> None:
        task = self.store.tasks.claim(self._agent(), lease=self.random.choice([30.0, 0.001]))
        self.leases += [] if task is None else [task]

    def claim_many(self) -> None:
        self.leases += self.store.tasks.claim_many(self._agent(), self.random.randrange(1, 5))

    def held_verbs(self) -> None:
        tasks = self.store.tasks
        match self.random.randrange(12):
            case 0:
                tasks.start(self._held())
            case 1:
                tasks.heartbeat(self._held())
            case 2 | 3 | 4:
                tasks.complete(self._lease(), self._json())
            case 5:
                tasks.complete_many([(self._lease(), self._json())])
            case 6 | 7:
                tasks.fail(self._lease(), AWKWARD, retry=self.random.choice([True, False]), delay=self.random.choice([0, 1.0]))
            case 8:
                tasks.fail_many([(self._lease(), "no")], delay=0.5)
            case 9:
                tasks.release(self._lease())
            case 10:
                tasks.release_many([self._lease()], delay=1.0)
            case _:
                tasks.snooze(self._lease(), 1.0)

    def task_verbs(self) -> None:
        tasks = self.store.tasks
        match self.random.randrange(11):
            case 0:
                tasks.cancel(self._task(), tree=self.random.choice([True, False]))
            case 1:
                tasks.cancel(self._task(), cooperative=True)
            case 2:
                tasks.rescue()
            case 3:
                tasks.requeue(self._task())
            case 4:
                tasks.requeue_many(self._some(self._task))
            case 5:
                tasks.prune(self.random.choice([60.0, 3_600.0]))
            case 6:
                tasks.delete(self._task())
            case 7:
                tasks.pause(self.random.choice("ab"), by=self._agent())
            case 8:
                tasks.resume("a")
                tasks.resume("b")
            case 9:
                tasks.limit(self.random.choice("cd"), self.random.choice([None, 1, 2]))
            case _:
                tasks.update(structs.replace(tasks.get(self._task()), payload=self._json()))

    def schedule_verbs(self) -> None:
        tasks = self.store.tasks
        name = self.random.choice(["s", AWKWARD])
        match self.random.randrange(5):
            case 0 | 1:
                tasks.schedule(name, self.random.choice(["* * * * *", "0 3 * * *"]), "a", self._json())
            case 2:
                tasks.pause_schedule(name)
            case 3:
                tasks.resume_schedule(name)
            case _:
                tasks.unschedule(name)

    # Groups and configuration

    def group_verbs(self) -> None:
        groups = self.store.groups
        match self.random.randrange(8):
            case 0 | 1:
                groups.create(self.random.choice(["x", "y", AWKWARD]), id=self._group(), configuration={"g": self._json()})
            case 2 | 3 | 4:
                groups.join(self._group(), self._agent(), role=self._text())
            case 5:
                groups.leave(self._group(), self._agent())
            case 6:
                groups.upsert(Group(self._group(), self.random.choice(["x", "z"]), "t", self.clock.now))
            case _:
                groups.delete_many(self._some(self._group))

    def config_verbs(self) -> None:
        config = self.store.config
        key = self._key()
        match self.random.randrange(8):
            case 0 | 1:
                config.set(key, self._json(), by=self._agent())
            case 2:
                config.set(key, self._json(), ttl=self.random.choice([0.001, 100.0]))
            case 3:
                entry = config.entry(key)
                config.compare_and_set(key, self._json(), expected=0 if entry is None else entry.version)
            case 4:
                config.delete(key)
            case 5:
                config.delete_many(self._some(self._key))
            case 6:
                config.expire(kept=1.0)
            case _:
                config.insert(ConfigEntry(key, self._json(), self.clock.now))

    # Past the verbs

    def statements(self) -> None:
        tasks, agents, config = schema.tasks, schema.agents, schema.swarm_config
        match self.random.randrange(5):
            case 0:
                self.store.execute(update(tasks).values(result=self._json()).where(tasks.c.id == self._task()))
            case 1:
                self.store.execute(update(agents).values(name=agents.c.name))  # which changes nothing
            case 2:
                self.store.execute(update(config).values(key="other").where(config.c.key == self._key()))
            case 3:
                self.store.execute(delete(agents).where(agents.c.id == self._agent()))
            case _:
                self.store.execute(delete(config))

    def time(self) -> None:
        self.clock.advance(self.random.choice([0.002, 0.002, 1.0, 50.0]))

    @property
    def _verbs(self) -> list[Callable[[], None]]:
        return [
            self.register, self.register, self.agent_verbs, self.enqueue, self.enqueue, self.enqueue_many, self.claim, self.claim,
            self.claim_many, self.held_verbs, self.held_verbs, self.held_verbs, self.held_verbs, self.task_verbs, self.task_verbs,
            self.schedule_verbs, self.group_verbs, self.group_verbs, self.config_verbs, self.config_verbs, self.statements, self.time,
        ]  # fmt: skip
