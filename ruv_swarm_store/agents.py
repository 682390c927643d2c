"""Agents: who works in the swarm, and who has gone silent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from sqlalchemy import ColumnElement, Executable, Text, case, literal_column, null, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import duration, new_id
from ruv_swarm_store.engines import Executor, constant, parameter, text_items, upsert
from ruv_swarm_store.entities import Agent, AgentStatus
from ruv_swarm_store.errors import Conflict, InvalidTransition, InvalidValue
from ruv_swarm_store.inboxes import close_inbox, open_inboxes, reopen_inbox
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository, repeatable
from ruv_swarm_store.tasks import take_from

AGENTS = Mapping(schema.agents, Agent)

_c = schema.agents.c
_agent: Any = parameter("agent", Text)
_now: Any = parameter("now", schema.Int64)

_alive = _c.status != AgentStatus.TERMINATED
_SILENT = (_c.status.in_((AgentStatus.IDLE, AgentStatus.BUSY)), _c.last_heartbeat < parameter("before", schema.Int64))
_HEARD = {"last_heartbeat": _now, "status": case((_c.status == AgentStatus.FAILED, constant(_c.status, AgentStatus.IDLE)), else_=_c.status)}
_these = (_c.id.in_(text_items("agents")), _alive)
_HEARTBEAT = update(schema.agents).where(_c.id == _agent, _alive).values(_HEARD)
_THESE = select(_c.id).where(*_these).order_by(_c.id)
_HEARTBEATS = update(schema.agents).where(*_these).values(_HEARD)


def _changed(*where: ColumnElement[bool], **values: Any) -> Executable:
    return update(schema.agents).where(*where).values(version=_c.version + 1, **values).returning(*AGENTS.columns)


_SET_STATUS = _changed(_c.id == _agent, _alive, status=parameter("status", Text))
_IDLE: dict[str, Any] = {
    "type": parameter("type_"),
    "name": parameter("name_"),
    "capabilities": parameter("capabilities_", schema.Json()),
    "configuration": parameter("configuration_", schema.Json()),
    "status": constant(_c.status, AgentStatus.IDLE),
    "last_heartbeat": _now,
    "terminated_at": null(),
}
# Of several that register the same id at once each gets it: the first adds it, the others revive it.
_REGISTER = upsert(
    schema.agents,
    {"id": _agent, "created_at": _now, "version": literal_column("1"), **_IDLE},
    on=["id"],
    update={**_IDLE, "version": _c.version + 1},
    returning=AGENTS.columns,
)
_STALE = select(*AGENTS.columns).where(*_SILENT).order_by(_c.last_heartbeat, _c.id)
# Several may reap at once: each takes those that the others do not hold, and that nobody is just claiming a task for.
_silent = select(_c.id).where(*_SILENT).order_by(_c.id).with_for_update(skip_locked=True).cte("silent").prefix_with("MATERIALIZED")
_REAP = _changed(_c.id.in_(select(_silent.c.id)), *_SILENT, status=constant(_c.status, AgentStatus.FAILED))
# Waits until nobody is claiming a task for these agents any more, and keeps everybody from it.
_KEEP_FROM_TASKS = select(_c.id).where(_c.id.in_(text_items("agents"))).order_by(_c.id).with_for_update()
_TERMINATE = _changed(_c.id == _agent, _alive, status=constant(_c.status, AgentStatus.TERMINATED), terminated_at=_now)


class Agents(Repository[Agent]):
    """The swarm's workers. `status` follows `register`, `set_status`, `heartbeat`, `reap` and `terminate`."""

    mapping = AGENTS
    managed = ("created_at", "last_heartbeat", "status", "terminated_at")

    @repeatable
    def register(
        self,
        type: str,
        *,
        name: str | None = None,
        capabilities: Sequence[Any] = (),
        configuration: dict[str, Any] | None = None,
        id: str | None = None,
    ) -> Agent:
        """Adds an agent, idle and alive now; with the `id` of one that exists, revives that one with what is given here.

        `name` is unique among agents that are not terminated: `Conflict` otherwise. One that was terminated finds in its inbox
        what had reached it until then, and what was sent to it alone since; of the rest, what is published from now on.
        """
        given = list(codec.listed(capabilities, "capabilities"))
        known = "" if id is None else codec.name(id, "agent id")
        sealed = AGENTS.seal(Agent(known, type, 0, 0, name=name, capabilities=given, configuration=configuration or {}))
        try:
            with self._scope.transaction() as run:
                params = {
                    "agent": sealed.id or new_id(run.now),
                    "type_": sealed.type,
                    "name_": sealed.name,
                    "capabilities_": codec.encode(sealed.capabilities),
                    "configuration_": codec.encode(sealed.configuration),
                    "now": run.now,
                }
                row = run.one(_REGISTER, params)
                assert row is not None
                agent = AGENTS.load(row)
                open_inboxes(run, [agent.id])
                if agent.version > 1:
                    reopen_inbox(run, agent.id)
                return agent
        except Conflict as error:
            if error.data.get("kind") == "unique" and name is not None:
                raise Conflict(
                    f"a live agent is named {name!r} already", hint="Choose another name, or terminate that one", kind="unique", name=name
                ) from error
            raise

    def _insert(self, run: Executor, entities: Sequence[Agent]) -> list[Agent]:
        added = super()._insert(run, entities)
        open_inboxes(run, [agent.id for agent in added])
        return added

    @repeatable
    def upsert(self, entity: Agent) -> Agent:
        """Adds an agent, or stores the copy over the one with the same id whatever its version."""
        with self._scope.transaction() as run:
            stored = super().upsert(entity)
            open_inboxes(run, [stored.id])
            return stored

    def heartbeat(self, agent: Agent | str) -> None:
        """Says the agent is alive; a failed one is idle again. Touches one row, no index, and no version.

        Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
        id = AGENTS.identity(agent)
        if not self._scope.write(lambda run: run.run(_HEARTBEAT, {"agent": id, "now": run.now})):
            self._explain(id, "send a heartbeat")

    @repeatable
    def heartbeat_many(self, agents: Iterable[Agent | str]) -> int:
        """A heartbeat of each agent, in one statement; how many of them are known and not terminated."""
        params = {"agents": _ids(agents)}
        with self._scope.transaction() as run:
            run.hold(_THESE, params)
            return run.run(_HEARTBEATS, {**params, "now": run.now})

    def set_status(self, agent: Agent | str, status: AgentStatus | str) -> Agent:
        """Says what the agent is doing: idle, busy or failed. To end it, `terminate` it."""
        id = AGENTS.identity(agent)
        try:
            wanted = AgentStatus(status)
        except ValueError:
            raise InvalidValue(f"{status!r} is no status of an agent", hint=f"Use one of {', '.join(AgentStatus)}") from None
        if wanted is AgentStatus.TERMINATED:
            return self.terminate(id)
        row = self._scope.write(lambda run: run.one(_SET_STATUS, {"agent": id, "status": wanted.value}))
        if row is None:
            self._explain(id, f"become {wanted}")
        return AGENTS.load(row)

    def stale(self, older_than: float) -> list[Agent]:
        """Idle and busy agents not heard of for more than `older_than` seconds, the longest silent first."""
        span = duration(older_than, "older_than")
        with self._scope.read() as run:
            return AGENTS.load_all(run.all(_STALE, {"before": run.now - span}))

    @repeatable
    def reap(self, older_than: float) -> list[Agent]:
        """Marks stale agents failed and takes their tasks back, in one transaction; a lost task counts as a retry.

        Of several that reap at once one gets each agent.
        """
        if not self.stale(older_than):
            return []
        span = duration(older_than, "older_than")
        with self._scope.transaction() as run:
            reaped = AGENTS.load_all(run.all(_REAP, {"before": run.now - span}))
            take_from(run, sorted(agent.id for agent in reaped), "its agent fell silent")
        return sorted(reaped, key=lambda agent: (agent.last_heartbeat, agent.id))

    @repeatable
    def terminate(self, agent: Agent | str) -> Agent:
        """Ends an agent and returns its tasks to the queue; what it did stays on record. Harmless when repeated.

        Its memberships stay. What is sent to it alone lies there until it is registered again.
        """
        id = _id(agent)
        with self._scope.transaction() as run:
            run.all(_KEEP_FROM_TASKS, {"agents": codec.encode([id])})
            row = run.one(_TERMINATE, {"agent": id, "now": run.now})
            if row is None:
                found = run.one(self.statements.find, {"key": id})
                if found is None:
                    raise self._missing(id)
                return AGENTS.load(found)
            close_inbox(run, id)
            take_from(run, [id], "its agent was terminated")
            return AGENTS.load(row)

    def delete(self, id: Agent | str | int) -> bool:
        """Removes an agent's row; its tasks return to the queue, its messages, metrics and events stay without its name."""
        return self.delete_many([id]) > 0

    @repeatable
    def delete_many(self, ids: Iterable[Agent | str | int]) -> int:
        """Removes agents, all or none; see `delete`."""
        keys = sorted({AGENTS.identity(id) for id in codec.listed(ids, "ids")})
        with self._scope.transaction() as run:
            run.all(_KEEP_FROM_TASKS, {"agents": codec.encode(keys)})
            take_from(run, keys, "its agent was deleted")
            return super().delete_many(keys)

    def _explain(self, id: str, verb: str) -> NoReturn:
        agent = self.get(id)
        raise InvalidTransition(f"agent {agent.id!r} is {agent.status} and cannot {verb}", hint="Register it again first", id=agent.id)


def _id(agent: Agent | str) -> str:
    return agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")


def _ids(agents: Iterable[Agent | str]) -> str:
    return codec.encode([_id(agent) for agent in codec.listed(agents, "agents")])
