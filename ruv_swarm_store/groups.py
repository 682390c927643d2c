"""Groups: named sets of agents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Text, delete, func, select

from ruv_swarm_store import codec, inboxes, schema
from ruv_swarm_store.clock import new_id
from ruv_swarm_store.engines import Executor, parameter, upsert
from ruv_swarm_store.entities import Agent, Group, Member
from ruv_swarm_store.errors import Conflict, NotFound
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import Repository, repeatable

GROUPS = Mapping(schema.agent_groups, Group)
MEMBERS = Mapping(schema.agent_group_members, Member, key="agent_id")

_m = schema.agent_group_members.c
_group: Any = parameter("group", Text)
_agent: Any = parameter("agent", Text)

_JOIN = upsert(
    schema.agent_group_members,
    {
        "group_id": _group,
        "agent_id": _agent,
        "role": parameter("role_"),
        "joined_at": parameter("now"),
        "joined_position": inboxes.NEWEST,
    },
    on=["group_id", "agent_id"],
    update={"role": func.coalesce(parameter("role_", Text), _m.role)},
    returning=MEMBERS.columns,
)
_LEAVE = delete(schema.agent_group_members).where(_m.group_id == _group, _m.agent_id == _agent)
_MEMBERS = select(*MEMBERS.columns).where(_m.group_id == _group).order_by(_m.joined_at, _m.agent_id)
_GROUPS_OF = (
    select(*GROUPS.columns)
    .join_from(schema.agent_groups, schema.agent_group_members, _m.group_id == schema.agent_groups.c.id)
    .where(_m.agent_id == _agent)
    .order_by(schema.agent_groups.c.name)
)


class Groups(Repository[Group]):
    """Named sets of agents, each agent with a role or none."""

    mapping = GROUPS
    managed = ("created_at",)

    def create(self, name: str, *, type: str = "", configuration: dict[str, Any] | None = None, id: str | None = None) -> Group:
        """Adds a group. Raises `Conflict` when the name is taken."""
        sealed = GROUPS.seal(Group("" if id is None else codec.name(id, "group id"), name, type, 0, configuration or {}))
        row = GROUPS.dump(sealed)

        def add(run: Executor) -> None:
            row[0] = sealed.id or new_id(run.now)
            row[GROUPS.fields.index("created_at")] = run.now
            run.insert(GROUPS.insertion, row)

        try:
            self._scope.write(add)
        except Conflict as error:
            raise Conflict(f"a group is named {name!r} already", hint="Choose another name", kind="unique", name=name) from error
        return GROUPS.load(row)

    def join(self, group: Group | str, agent: Agent | str, *, role: str | None = None) -> Member:
        """Makes an agent a member, or gives a member another role. Raises `NotFound` for an unknown group or agent.

        From now on it receives what is published to the group. Without a `role` a member keeps the one it has: to have none again
        it leaves, and joins.
        """
        params = {"group": GROUPS.identity(group), "agent": _agent_id(agent), "role_": None if role is None else codec.text(role, "role")}
        try:
            row = self._scope.write(lambda run: run.one(_JOIN, {**params, "now": run.now}))
        except Conflict as error:
            raise NotFound(f"the group {params['group']!r} or the agent {params['agent']!r} does not exist") from error
        assert row is not None
        return MEMBERS.load(row)

    @repeatable
    def leave(self, group: Group | str, agent: Agent | str) -> bool:
        """Ends a membership; whether there was one. What was published to the group until now still reaches the agent."""
        params = {"group": GROUPS.identity(group), "agent": _agent_id(agent)}
        with self._scope.transaction() as run:
            inboxes.keep(run, params["group"], params["agent"])
            return run.run(_LEAVE, params) > 0

    def delete(self, id: Group | str | int) -> bool:
        """Removes a group; whether there was one. Its messages stay, and still reach those who were members."""
        return self.delete_many([id]) > 0

    @repeatable
    def delete_many(self, ids: Iterable[Group | str | int]) -> int:
        """Removes groups, all or none; see `delete`."""
        keys = sorted({GROUPS.identity(id) for id in codec.listed(ids, "ids")})
        with self._scope.transaction() as run:
            for key in keys:
                inboxes.keep(run, key)
            return super().delete_many(keys)

    def members(self, group: Group | str) -> list[Member]:
        """Who is in a group, in order of joining."""
        key = GROUPS.identity(group)
        with self._scope.read() as run:
            return MEMBERS.load_all(run.all(_MEMBERS, {"group": key}))

    def groups_of(self, agent: Agent | str) -> list[Group]:
        """The groups an agent is in, by name."""
        who = _agent_id(agent)
        with self._scope.read() as run:
            return GROUPS.load_all(run.all(_GROUPS_OF, {"agent": who}))


def _agent_id(agent: Agent | str) -> str:
    return agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")
