"""Agents: who works in the swarm, and who has gone silent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from msgspec import structs
from sqlalchemy import ColumnElement, Executable, Text, case, null, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import duration, new_id
from ruv_swarm_store.engines import Executor, constant, parameter, text_items
from ruv_swarm_store.entities import Agent, AgentStatus
from ruv_swarm_store.errors import Conflict, InvalidTransition, InvalidValue
from ruv_swarm_store.messages import open_inbox
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository
from ruv_swarm_store.tasks import take_from

AGENTS = Mapping(schema.agents, Agent)

_c = schema.agents.c


_alive = _c.status != AgentStatus.TERMINATED
_SILENT = _c.status.in_((AgentStatus.IDLE, AgentStatus.BUSY))
_HEARTBEAT = (
    update(schema.agents)
    .where(_c.id == parameter("agent"), _alive)
    .values(
        last_heartbeat=parameter("now"),
        status=case((_c.status == AgentStatus.FAILED, constant(_c.status, AgentStatus.IDLE)), else_=_c.status),
    )
)


def _changed(*where: ColumnElement[bool], **values: Any) -> Executable:
    return update(schema.agents).where(*where).values(version=_c.version + 1, **values).returning(*AGENTS.columns)


_SET_STATUS = _changed(_c.id == parameter("agent"), _alive, status=parameter("status", Text))
_REVIVE = _changed(
    _c.id == parameter("agent"),
    type=parameter("type_"),
    name=parameter("name_"),
    capabilities=parameter("capabilities_", schema.Json()),
    configuration=parameter("configuration_", schema.Json()),
    status=constant(_c.status, AgentStatus.IDLE),
    last_heartbeat=parameter("now"),
    terminated_at=null(),
)
_STALE = select(*AGENTS.columns).where(_SILENT, _c.last_heartbeat < parameter("before")).order_by(_c.last_heartbeat)
_FAIL = _changed(_c.id.in_(text_items("ids")), status=constant(_c.status, AgentStatus.FAILED))
_TERMINATE = _changed(
    _c.id == parameter("agent"), _alive, status=constant(_c.status, AgentStatus.TERMINATED), terminated_at=parameter("now")
)


class Agents(Repository[Agent]):
    """The swarm's workers. `status` follows `register`, `set_status`, `heartbeat`, `reap` and `terminate`."""

    mapping = AGENTS
    managed = ("created_at", "last_heartbeat", "status", "terminated_at")

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

        `name` is unique among agents that are not terminated: `Conflict` otherwise.
        """
        sealed = AGENTS.seal(Agent(id or "", type, 0, 0, name=name, capabilities=list(capabilities), configuration=configuration or {}))
        try:
            with self._scope.transaction() as run:
                if id is not None:
                    params = {
                        "agent": sealed.id,
                        "type_": sealed.type,
                        "name_": sealed.name,
                        "capabilities_": codec.encode(sealed.capabilities),
                        "configuration_": codec.encode(sealed.configuration),
                        "now": run.now,
                    }
                    if (row := run.one(_REVIVE, params)) is not None:
                        return AGENTS.load(row)
                agent = structs.replace(sealed, id=sealed.id or new_id(run.now), created_at=run.now, last_heartbeat=run.now)
                return self._insert(run, [agent])[0]
        except Conflict as error:
            if error.data.get("kind") == "unique" and name is not None:
                raise Conflict(
                    f"a live agent is named {name!r} already", hint="Choose another name, or terminate that one", kind="unique", name=name
                ) from error
            raise

    def _insert(self, run: Executor, entities: Sequence[Agent]) -> list[Agent]:
        added = super()._insert(run, entities)
        open_inbox(run, [agent.id for agent in added])
        return added

    def upsert(self, entity: Agent) -> Agent:
        """Adds an agent, or stores the copy over the one with the same id whatever its version."""
        with self._scope.transaction() as run:
            found = run.one(self.statements.find, {"key": AGENTS.identity(entity)})
            return self._insert(run, [AGENTS.seal(entity)])[0] if found is None else super().upsert(entity)

    def heartbeat(self, agent: Agent | str) -> None:
        """Says the agent is alive; a failed one is idle again. Touches one row, no index, and no version.

        Raises `NotFound` for an unknown agent and `InvalidTransition` for a terminated one.
        """
        id = AGENTS.identity(agent)
        with self._scope.write() as run:
            if run.run(_HEARTBEAT, {"agent": id, "now": run.now}):
                return
        self._explain(id, "send a heartbeat")

    def heartbeat_many(self, agents: Iterable[Agent | str]) -> int:
        """A heartbeat of each agent in one transaction; how many of them are known and not terminated."""
        ids = [AGENTS.identity(agent) for agent in agents]
        with self._scope.transaction() as run:
            return sum(run.run(_HEARTBEAT, {"agent": id, "now": run.now}) for id in ids)

    def set_status(self, agent: Agent | str, status: AgentStatus | str) -> Agent:
        """Says what the agent is doing: idle, busy or failed. To end it, `terminate` it."""
        id = AGENTS.identity(agent)
        try:
            wanted = AgentStatus(status)
        except ValueError:
            raise InvalidValue(f"{status!r} is no status of an agent", hint=f"Use one of {', '.join(AgentStatus)}") from None
        if wanted is AgentStatus.TERMINATED:
            return self.terminate(id)
        with self._scope.write() as run:
            row = run.one(_SET_STATUS, {"agent": id, "status": wanted.value})
        if row is None:
            self._explain(id, f"become {wanted}")
        return AGENTS.load(row)

    def stale(self, older_than: float) -> list[Agent]:
        """Idle and busy agents not heard of for more than `older_than` seconds, the longest silent first."""
        span = duration(older_than, "older_than")
        with self._scope.read() as run:
            return AGENTS.load_all(run.all(_STALE, {"before": run.now - span}))

    def reap(self, older_than: float) -> list[Agent]:
        """Marks stale agents failed and takes their tasks back, in one transaction; a lost task counts as a retry."""
        if not self.stale(older_than):
            return []
        span = duration(older_than, "older_than")
        with self._scope.transaction() as run:
            ids = [agent.id for agent in AGENTS.load_all(run.all(_STALE, {"before": run.now - span}))]
            reaped = AGENTS.load_all(run.all(_FAIL, {"ids": codec.encode(ids)}))
            take_from(run, ids, "its agent fell silent")
        return sorted(reaped, key=lambda agent: agent.last_heartbeat)

    def terminate(self, agent: Agent | str) -> Agent:
        """Ends an agent and returns its tasks to the queue; what it did stays on record. Harmless when repeated."""
        id = AGENTS.identity(agent)
        with self._scope.transaction() as run:
            row = run.one(_TERMINATE, {"agent": id, "now": run.now})
            if row is None:
                found = run.one(self.statements.find, {"key": id})
                if found is None:
                    raise self._missing(id)
                return AGENTS.load(found)
            take_from(run, [id], "its agent was terminated")
            return AGENTS.load(row)

    def delete(self, id: Agent | str | int) -> bool:
        """Removes an agent's row; its tasks return to the queue, its messages, metrics and events stay without its name."""
        return self.delete_many([id]) > 0

    def delete_many(self, ids: Iterable[Agent | str | int]) -> int:
        """Removes agents, all or none; see `delete`."""
        keys = [AGENTS.identity(id) for id in ids]
        with self._scope.transaction() as run:
            take_from(run, keys, "its agent was deleted")
            return sum(run.run(self.statements.delete, {"key": key}) for key in keys)

    def _explain(self, id: str, verb: str) -> NoReturn:
        agent = self.get(id)
        raise InvalidTransition(f"agent {agent.id!r} is {agent.status} and cannot {verb}", hint="Register it again first", id=agent.id)
