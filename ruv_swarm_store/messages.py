"""Messages: direct, group and broadcast, delivered and acknowledged once per recipient.

Publishing writes one row however many recipients there are. Each agent has a cursor over the stream of messages; what it
has received is remembered until it acknowledges, and comes again when it does not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, exists, func, literal_column, not_, or_, select, union_all, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds, new_id
from ruv_swarm_store.engines import Executor, insert_into, number_items, parameter, upsert
from ruv_swarm_store.entities import Agent, Audience, Group, Message
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.query import Mapping, Query
from ruv_swarm_store.repository import Repository

log = logging.getLogger(__name__)

MESSAGES = Mapping(schema.messages, Message)

_c = schema.messages.c
_d = schema.message_deliveries.c
_k = schema.message_cursors.c
_agent: Any = parameter("agent", Text)
_topic: Any = parameter("topic", Text)
_now: Any = parameter("now", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_newest = select(func.coalesce(func.max(_c.position), 0)).scalar_subquery()

_OPEN_INBOX = upsert(schema.message_cursors, {"agent_id": _agent, "topic": "", "position": _newest}, on=["agent_id", "topic"])
_CURSOR = select(_k.position).where(_k.agent_id == _agent, _k.topic.in_([_topic, ""])).order_by(_k.topic.desc()).limit(1)
_MOVE_CURSOR = upsert(
    schema.message_cursors,
    {"agent_id": _agent, "topic": _topic, "position": parameter("position_")},
    on=["agent_id", "topic"],
    update={"position": parameter("position_")},
    returning=[_k.position],
)
_NEWEST = select(_newest)
_DELIVER = insert_into(schema.message_deliveries)
_AGENT_EXISTS = select(exists().where(schema.agents.c.id == _agent))

_live = or_(_c.expires_at.is_(None), _c.expires_at > _now)
_on_topic = or_(_topic == "", _c.topic == _topic)
_seen = exists().where(_d.agent_id == _agent, _d.message_position == _c.position)
_my_groups = select(schema.agent_group_members.c.group_id).where(schema.agent_group_members.c.agent_id == _agent)
_ADDRESSED = (_c.to_agent == _agent, _c.audience == Audience.BROADCAST, _c.to_group.in_(_my_groups))


def _fresh(*columns: ColumnElement[Any]) -> list[Any]:
    """What an agent has not received yet: one SELECT for each way of reaching it, each along its own index."""
    after = parameter("after", schema.Int64)
    return [select(*columns).where(way, _c.position > after, _on_topic, _live, not_(_seen)) for way in _ADDRESSED]


_candidates = union_all(*(select(part.order_by(_c.position).limit(_limit).subquery()) for part in _fresh(_c.position))).subquery()
_FRESH = (
    select(*MESSAGES.columns)
    .where(_c.position.in_(select(_candidates.c.position).order_by(_candidates.c.position).limit(_limit)))
    .order_by(_c.position)
)
_AGAIN = (
    select(*MESSAGES.columns)
    .join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
    .where(_d.agent_id == _agent, _d.acknowledged_at.is_(None), _d.visible_at <= _now, _on_topic, _live)
    .order_by(_d.message_position)
    .limit(_limit)
)
_REDELIVER = (
    update(schema.message_deliveries)
    .where(_d.agent_id == _agent, _d.message_position.in_(number_items("positions")))
    .values(deliveries=_d.deliveries + 1, delivered_at=_now, visible_at=parameter("visible"))
)
_ACKNOWLEDGE = upsert(
    schema.message_deliveries,
    {
        "agent_id": _agent,
        "message_position": parameter("at"),
        "delivered_at": _now,
        "deliveries": literal_column("1"),
        "visible_at": _now,
        "acknowledged_at": _now,
    },
    on=["agent_id", "message_position"],
    update={"acknowledged_at": func.coalesce(_d.acknowledged_at, _now)},
    returning=[_d.acknowledged_at],
)
_UNACKNOWLEDGED: Any = (
    select(literal_column("1").label("one"))
    .join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
    .where(_d.agent_id == _agent, _d.acknowledged_at.is_(None), _on_topic, _live)
)
_UNREAD = select(func.count()).select_from(union_all(_UNACKNOWLEDGED, *_fresh(literal_column("1").label("one"))).subquery())


def open_inbox(run: Executor, agents: Sequence[str]) -> None:
    """Lets newly registered agents receive what is published from now on."""
    for agent in agents:
        run.run(_OPEN_INBOX, {"agent": agent})


class Messages(Repository[Message]):
    """What agents tell each other."""

    mapping = MESSAGES
    managed = ("timestamp", "audience", "from_agent", "to_agent", "to_group")

    def publish(
        self,
        topic: str,
        content: Any = None,
        *,
        sender: Agent | str | None = None,
        to: Agent | str | None = None,
        to_group: Group | str | None = None,
        correlation_id: str | None = None,
        expires_at: Moment | None = None,
        ttl: float | None = None,
    ) -> Message:
        """Sends to one agent, to a group, or with neither to every agent registered at this moment.

        `ttl` is seconds from now, `expires_at` an instant; an expired message is no longer delivered. Raises `NotFound` for an
        unknown sender, recipient or group.
        """
        if to is not None and to_group is not None:
            raise InvalidValue("both to and to_group are given", hint="Publish once for each")
        if ttl is not None and expires_at is not None:
            raise InvalidValue("both ttl and expires_at are given", hint="Give one of them")
        message = MESSAGES.seal(
            Message(
                "",
                topic,
                content,
                0,
                Audience.DIRECT if to is not None else Audience.GROUP if to_group is not None else Audience.BROADCAST,
                from_agent=_id(sender),
                to_agent=_id(to),
                to_group=_id(to_group),
                correlation_id=correlation_id,
                expires_at=None if expires_at is None else milliseconds(expires_at, "expires_at"),
            )
        )
        _about(message.topic)
        span = None if ttl is None else duration(ttl, "ttl")
        with self._scope.write() as run:
            row = MESSAGES.dump(message)
            row[_ID], row[_TIMESTAMP] = new_id(run.now), run.now
            if span is not None:
                row[_EXPIRES] = run.now + span
            try:
                position = run.insert(MESSAGES.insertion, row)
            except Conflict as error:
                raise NotFound("the sender, the recipient or the group does not exist", hint="Register agents before they write") from error
        return MESSAGES.load([*row, position])

    def reply(self, message: Message, content: Any = None, *, sender: Agent | str | None = None) -> Message:
        """Answers the sender of `message`, on its topic, under its correlation id (its own id where it has none)."""
        if message.from_agent is None:
            raise InvalidValue(f"message {message.id!r} has no sender to reply to", hint="Publish with sender=…")
        return self.publish(
            message.topic,
            content,
            sender=message.to_agent if sender is None else sender,
            to=message.from_agent,
            correlation_id=message.correlation_id or message.id,
        )

    def receive(self, agent: Agent | str, topic: str | None = None, *, limit: int = 100, visibility: float = 30.0) -> list[Message]:
        """What this agent has not acknowledged, oldest first, now marked delivered to it.

        A message it has been given comes again when `visibility` seconds pass without its acknowledgement. Raises `NotFound`
        for an unknown agent.
        """
        who = codec.text(_id(agent) or "", "agent id")
        codec.integer(limit, "limit", 1)
        span = duration(visibility, "visibility")
        about = _about(topic)
        with self._scope.read() as run:
            if not self._pending(run, who, about):
                return []
        with self._scope.transaction() as run:
            params = {"agent": who, "topic": about, "now": run.now, "limit": limit}
            again = run.all(_AGAIN, params)
            if again:
                positions = codec.encode([row[_POSITION] for row in again])
                run.run(_REDELIVER, {"agent": who, "positions": positions, "now": run.now, "visible": run.now + span})
            rows = list(again)
            if (room := limit - len(again)) > 0:
                newest = (run.one(_NEWEST) or [0])[0]
                fresh = run.all(_FRESH, {**params, "limit": room, "after": self._cursor(run, who, about)})
                if fresh:
                    run.insert_many(_DELIVER, [(who, row[_POSITION], run.now, 1, run.now + span, None) for row in fresh])
                end = fresh[-1][_POSITION] if len(fresh) == room else newest
                run.run(_MOVE_CURSOR, {"agent": who, "topic": about, "position_": end})
                rows += fresh
        # A row damaged from outside must not withhold the others.
        return sorted(MESSAGES.load_all(rows, lambda error: log.error("%s", error)), key=lambda message: message.position)

    def _cursor(self, run: Executor, agent: str, topic: str) -> int:
        row = run.one(_CURSOR, {"agent": agent, "topic": topic})
        if row is None:
            raise NotFound(f"no agent {agent!r}", hint="Register it before it receives", id=agent)
        return int(row[0])

    def _pending(self, run: Executor, agent: str, topic: str) -> bool:
        params = {"agent": agent, "topic": topic, "now": run.now, "limit": 1, "after": self._cursor(run, agent, topic)}
        return bool(run.all(_AGAIN, params) or run.all(_FRESH, params))

    def acknowledge(self, message: Message | str, agent: Agent | str) -> None:
        """Says this agent is done with a message; it is not delivered to it again. Harmless when repeated."""
        found = message if isinstance(message, Message) else self.get(message)
        who = _id(agent)
        try:
            with self._scope.write() as run:
                run.one(_ACKNOWLEDGE, {"agent": who, "at": found.position, "now": run.now})
        except Conflict as error:
            raise NotFound(f"the agent {who!r} or the message {found.id!r} does not exist", id=who) from error

    def unread(self, agent: Agent | str, topic: str | None = None) -> int:
        """How many messages this agent has not acknowledged, delivered to it or not."""
        who, about = codec.text(_id(agent) or "", "agent id"), _about(topic)
        with self._scope.read() as run:
            params = {"agent": who, "topic": about, "now": run.now, "after": self._cursor(run, who, about)}
            return int((run.one(_UNREAD, params) or [0])[0])

    def conversation(self, a: Agent | str, b: Agent | str) -> Query[Message]:
        """What two agents wrote each other directly, in order."""
        one, other = _id(a), _id(b)
        return self.where(or_(and_(_c.from_agent == one, _c.to_agent == other), and_(_c.from_agent == other, _c.to_agent == one))).order_by(
            _c.position.asc()
        )


_ID, _TIMESTAMP, _EXPIRES, _POSITION = (MESSAGES.fields.index(name) for name in ("id", "timestamp", "expires_at", "position"))


def _about(topic: str | None) -> str:
    """The name of a topic's cursor. The cursor over all topics is named by the empty text, so that no topic can be."""
    if topic == "":
        raise InvalidValue("topic is empty", hint="Give it a name; to receive every topic leave it out")
    return "" if topic is None else codec.text(topic, "topic")


def _id(entity: Agent | Group | str | None) -> str | None:
    return entity.id if isinstance(entity, (Agent, Group)) else entity
