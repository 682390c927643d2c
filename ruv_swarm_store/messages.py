"""Messages: direct, group and broadcast, delivered and acknowledged once per recipient.

Publishing writes one row however many recipients there are; `inboxes` tells who has still to receive it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Executable, Text, and_, delete, func, literal_column, null, or_, select, union_all, update

from ruv_swarm_store import codec, inboxes, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds, new_id
from ruv_swarm_store.engines import (
    Executor,
    Pause,
    Steps,
    block,
    cooperate,
    insert_into,
    number_items,
    parameter,
    text_items,
    upsert,
    upsert_from,
)
from ruv_swarm_store.entities import Agent, Audience, Delivery, Group, Message
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound, Unsupported
from ruv_swarm_store.listening import Listener
from ruv_swarm_store.query import Mapping, Query
from ruv_swarm_store.repository import Repository, repeatable

log = logging.getLogger(__name__)

MESSAGES = Mapping(schema.messages, Message)
DELIVERIES = Mapping(schema.message_deliveries, Delivery, key="agent_id")

LONGEST_PAUSE = 1.0
"""Seconds after which whoever waits looks around anyway: for a clock that was set."""
PAGE = 1_000
"""Messages looked through at a time where a pattern's topics are picked out of all."""
BATCH = 200
"""Most messages removed in one transaction."""

_c = schema.messages.c
_d = schema.message_deliveries.c
_m = schema.agent_group_members.c
_agent: Any = parameter("agent", Text)
_topic: Any = parameter("topic", Text)
_now: Any = parameter("now", schema.Int64)
_after: Any = parameter("after", schema.Int64)
_since: Any = parameter("since", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)

_ADD = insert_into(
    schema.messages,
    *(_c.id, _c.topic, _c.content, _c.timestamp, _c.audience, _c.from_agent, _c.to_agent, _c.to_group, _c.correlation_id, _c.expires_at),
    version=1,
)
_RECIPIENT = select(_c.to_agent).where(_c.id == parameter("id"))
_THESE = select(*MESSAGES.columns).where(_c.position.in_(number_items("positions"))).order_by(_c.position)
_ANSWER = (
    select(*MESSAGES.columns)
    .where(
        _c.correlation_id == parameter("id"),
        _c.to_agent.concat(literal_column("''", Text)) == _agent,  # found by its correlation
        _c.position > _after,
        inboxes.live,
    )
    .order_by(_c.position)
    .limit(1)
)

# By its id: in another store, or since a backup was restored, another message may have the position.
_at: Any = select(_c.position).where(_c.id == parameter("id")).scalar_subquery()
_mine = or_(_c.audience != Audience.DIRECT, _c.to_agent == _agent)
_ACKNOWLEDGED = {"acknowledged_at": func.coalesce(_d.acknowledged_at, _now)}
# Where there is no such message the position is NULL, which the column refuses; an INSERT of what a SELECT finds takes SQLite longer.
_ACKNOWLEDGE = upsert(
    schema.message_deliveries,
    {
        "agent_id": _agent,
        "message_position": select(_c.position).where(_c.id == parameter("id"), _mine).scalar_subquery(),
        "delivered_at": _now,
        "deliveries": literal_column("1"),
        "visible_at": _now,
        "acknowledged_at": _now,
    },
    on=["agent_id", "message_position"],
    update=_ACKNOWLEDGED,
    returning=[_d.acknowledged_at],
)
_ACKNOWLEDGE_MANY = upsert_from(
    schema.message_deliveries,
    ("agent_id", "message_position", "delivered_at", "deliveries", "visible_at", "acknowledged_at"),
    select(_agent, _c.position, _now, literal_column("1"), _now, _now)
    .where(_c.id.in_(text_items("ids")), _mine)
    .order_by(_c.position)
    .with_for_update(read=True, key_share=True),
    on=["agent_id", "message_position"],
    update=_ACKNOWLEDGED,
)
_RELEASE = (
    update(schema.message_deliveries)
    .where(_d.agent_id == _agent, _d.message_position == _at, _d.acknowledged_at.is_(None))
    .values(visible_at=parameter("expires"))
)
_REOPEN = (
    update(schema.message_deliveries)
    .where(_d.agent_id == _agent, _d.message_position == _at)
    .values(acknowledged_at=null(), visible_at=_now)
)
_DELIVERIES = select(*DELIVERIES.columns).where(_d.message_position == _at).order_by(_d.delivered_at, _d.agent_id)
_DELIVERY = select(*DELIVERIES.columns).where(_d.message_position == _at, _d.agent_id == _agent)


def _ever(topic: ColumnElement[bool] | None = None) -> Executable:
    """What has ever reached an agent, read or not, and what would have, had it been there already."""
    on_topic = [] if topic is None else [topic]
    said = [_c.position > _after, _c.timestamp >= _since, inboxes.live, *on_topic]
    columns = (_c.position, _c.topic)
    kept = (  # by a group it has left
        select(*columns)
        .join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
        .where(
            _d.agent_id == _agent,
            _d.message_position > _after,
            _c.audience == Audience.GROUP,
            or_(_c.to_group.is_(None), _c.to_group.not_in(select(_m.group_id).where(_m.agent_id == _agent))),
            *said,
        )
    )
    parts = [*inboxes.ways(said, said, said, columns), kept]
    found = union_all(*(select(part.order_by(_c.position).limit(_limit).subquery()) for part in parts)).subquery()
    return select(found.c.position, found.c.topic).order_by(found.c.position).limit(_limit)


_EVER = _ever()
_EVER_ON_TOPIC = _ever(_c.topic == _topic)


def _prune(*which: ColumnElement[bool], order: ColumnElement[Any]) -> Executable:
    # Several may prune at once: each takes what the others have not.
    picked = (
        select(_c.position)
        .where(*which)
        .order_by(order, _c.position)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
        .cte("picked")
        .prefix_with("MATERIALIZED")
    )
    return delete(schema.messages).where(_c.position.in_(select(picked.c.position))).returning(_c.position)


_PRUNE_OLD = _prune(_c.timestamp < parameter("before", schema.Int64), order=_c.timestamp)
_PRUNE_EXPIRED = _prune(_c.expires_at <= _now, order=_c.expires_at)


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
        """Sends to one agent, to those who are members of a group now, or with neither to every agent registered at this moment.

        `ttl` is seconds from now, `expires_at` an instant; an expired message is no longer delivered. What is sent to an agent
        that is terminated lies there until it is registered again. Raises `NotFound` for an unknown sender, recipient or group.
        """
        if to is not None and to_group is not None:
            raise InvalidValue("both to and to_group are given", hint="Publish once for each")
        if ttl is not None and expires_at is not None:
            raise InvalidValue("both ttl and expires_at are given", hint="Give one of them")
        copy, text = codec.seal(content, "messages.content")
        codec.name(topic, "topic")
        audience = Audience.DIRECT if to is not None else Audience.GROUP if to_group is not None else Audience.BROADCAST
        people = _id(sender, "from_agent"), _id(to, "to_agent"), _id(to_group, "to_group")
        about = None if correlation_id is None else codec.text(correlation_id, "messages.correlation_id")
        expires = None if expires_at is None else milliseconds(expires_at, "expires_at")
        span = None if ttl is None else duration(ttl, "ttl")

        def add(run: Executor) -> Message:
            now = run.now
            id, until = new_id(now), expires if span is None else now + span
            position = run.insert(_ADD, (id, topic, text, now, audience.value, *people, about, until))
            return Message(id, topic, copy, now, audience, *people, about, until, position=position)

        try:
            return self._scope.write(add)
        except Conflict as error:
            raise NotFound("the sender, the recipient or the group does not exist", hint="Register agents before they write") from error

    def reply(self, message: Message | str, content: Any = None, *, sender: Agent | str | None = None) -> Message:
        """Answers the sender of `message`, on its topic, under its correlation id (its own id where it has none).

        Raises `NotFound` for the id of a message that is not there, and `InvalidValue` for one without a sender.
        """
        if not isinstance(message, Message):
            message = self.get(_named(message))
        if message.from_agent is None:
            raise InvalidValue(f"message {message.id!r} has no sender to reply to", hint="Publish with sender=…")
        return self.publish(
            message.topic,
            content,
            sender=message.to_agent if sender is None else sender,
            to=message.from_agent,
            correlation_id=message.correlation_id or message.id,
        )

    def request(
        self,
        topic: str,
        content: Any = None,
        *,
        sender: Agent | str,
        to: Agent | str | None = None,
        to_group: Group | str | None = None,
        timeout: float | None = 30.0,
        ttl: float | None = None,
    ) -> Message | None:
        """Publishes a message and blocks until somebody replies to it; the first `reply`, acknowledged, or None after `timeout` seconds.

        A request nobody waits for any more expires: it lives as long as `timeout`, if `ttl` says nothing else. Raises `NotFound` for
        an unknown sender, recipient or group, and `Unsupported` inside a transaction: nobody could see the request there.
        """
        return block(self._scope, self._requesting(topic, content, sender, to, to_group, timeout, ttl))

    async def request_async(
        self,
        topic: str,
        content: Any = None,
        *,
        sender: Agent | str,
        to: Agent | str | None = None,
        to_group: Group | str | None = None,
        timeout: float | None = 30.0,
        ttl: float | None = None,
    ) -> Message | None:
        """`request`, while the event loop goes on."""
        return await cooperate(self._scope, self._requesting(topic, content, sender, to, to_group, timeout, ttl))

    def _requesting(
        self,
        topic: str,
        content: Any,
        sender: Agent | str,
        to: Agent | str | None,
        to_group: Group | str | None,
        timeout: float | None,
        ttl: float | None,
    ) -> Steps[Message | None]:
        self._refuse_to_wait()
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout") / 1000
        if not isinstance(sender, Agent):
            codec.text(sender, "sender")
        asked = self.publish(topic, content, sender=sender, to=to, to_group=to_group, ttl=timeout if ttl is None else ttl)
        who = asked.from_agent
        assert who is not None
        while True:
            seen = self._scope.changes()
            with self._scope.read() as run:
                newest = inboxes.newest(run)
                row = run.one(_ANSWER, {"id": asked.id, "agent": who, "after": asked.position, "now": run.now})
            if row is not None:
                answer = MESSAGES.load(row)
                self.acknowledge(answer, who)
                return answer
            if (pause := _pause(deadline)) <= 0:
                return None
            yield Pause(seen, pause, Listener(self._scope, who, inboxes.EVERYTHING, newest, deadline))

    @repeatable
    def receive(
        self,
        agent: Agent | str,
        topic: str | None = None,
        *,
        limit: int = 100,
        visibility: float = 30.0,
        since: Moment | None = None,
    ) -> list[Message]:
        """What this agent has not acknowledged, oldest first, now marked delivered to it.

        A message it has been given comes again when `visibility` seconds pass without its acknowledgement. In `topic`, dots
        separate segments: `*` stands for any one of them, `**` at the end for any rest. With `since`, an instant, it is what was
        published from then on, before the agent was registered or joined a group, too. Raises `NotFound` for an unknown agent.
        """
        who, about = _who(agent), inboxes.about(topic)
        codec.integer(limit, "limit", 1)
        span = duration(visibility, "visibility")
        start = inboxes.ALWAYS if since is None else milliseconds(since, "since")
        # Looking first keeps those who look in vain away from the write lock.
        with self._scope.read() as run:
            look = inboxes.look(run, who, about, start)
            if look.passed < inboxes.PASSED and not look.pending(run):
                return []
        with self._scope.transaction() as run:
            taken = inboxes.look(run, who, about, start, held=True).take(run, limit, span)
            return self._load(run, taken)

    def wait(
        self,
        agent: Agent | str,
        topic: str | None = None,
        *,
        limit: int = 100,
        visibility: float = 30.0,
        timeout: float | None = None,
    ) -> list[Message]:
        """Receives, and while there is nothing blocks until there is; nothing after `timeout` seconds. See `receive`.

        Woken by commits of this and other processes, and by messages that come again. Raises `Unsupported` inside a transaction.
        """
        return block(self._scope, self._waiting(agent, topic, limit, visibility, timeout))

    async def wait_async(
        self,
        agent: Agent | str,
        topic: str | None = None,
        *,
        limit: int = 100,
        visibility: float = 30.0,
        timeout: float | None = None,
    ) -> list[Message]:
        """`wait`, while the event loop goes on. Cancelled, it has received nothing."""
        return await cooperate(self._scope, self._waiting(agent, topic, limit, visibility, timeout))

    def _waiting(self, agent: Agent | str, topic: str | None, limit: int, visibility: float, timeout: float | None) -> Steps[list[Message]]:
        self._refuse_to_wait()
        who, about = _who(agent), inboxes.about(topic)
        deadline = None if timeout is None else time.monotonic() + duration(timeout, "timeout") / 1000
        while True:
            seen = self._scope.changes()
            with self._scope.read() as run:
                newest = inboxes.newest(run)
            if received := self.receive(who, topic, limit=limit, visibility=visibility):
                return received
            if (pause := _pause(deadline)) <= 0:
                return []
            with self._scope.read() as run:
                visible, now = inboxes.next_visible(run, who), run.now
            if visible is not None:
                pause = min(pause, max(visible - now, 1) / 1000)
            yield Pause(seen, pause, Listener(self._scope, who, about, newest, deadline))

    def _refuse_to_wait(self) -> None:
        if self._scope.within:
            raise Unsupported("waiting for messages inside a transaction would keep them from coming", hint="Wait outside the with block")

    def _load(self, run: Executor, positions: Iterable[int]) -> list[Message]:
        wanted = codec.encode(list(positions))
        # A row damaged from outside must not withhold the others.
        return MESSAGES.load_all(run.all(_THESE, {"positions": wanted}), lambda error: log.error("%s", error))

    def acknowledge(self, message: Message | str, agent: Agent | str) -> None:
        """Says this agent is done with a message; it is not delivered to it again. Harmless when repeated.

        Raises `NotFound` for an unknown message or agent, and `InvalidValue` for an agent that a direct message was not sent to.
        """
        who, id = _who(agent), _named(message)
        try:
            self._scope.write(lambda run: run.one(_ACKNOWLEDGE, {"agent": who, "id": id, "now": run.now}))
        except Conflict as error:
            raise NotFound(f"the agent {who!r} or the message {id!r} does not exist", id=who) from error
        except InvalidValue as error:
            raise InvalidValue(
                f"message {id!r} was sent to {self._recipient(id)!r} alone", hint=f"It is not for {who!r} to acknowledge", id=id
            ) from error

    @repeatable
    def acknowledge_many(self, messages: Iterable[Message | str], agent: Agent | str) -> int:
        """Says this agent is done with messages, all at once; how many there are. Raises `NotFound` for an unknown agent.

        Those that are not there, or were sent to another agent alone, are left out.
        """
        who = _who(agent)
        ids = [
            message.id if isinstance(message, Message) else codec.text(message, "message id")
            for message in codec.listed(messages, "messages")
        ]
        if not ids:
            return 0
        wanted = codec.encode(ids)
        try:
            return self._scope.write(lambda run: run.run(_ACKNOWLEDGE_MANY, {"agent": who, "ids": wanted, "now": run.now}))
        except Conflict as error:
            raise NotFound(f"no agent {who!r}", id=who) from error

    def release(self, message: Message | str, agent: Agent | str, *, delay: float = 0.0) -> bool:
        """Gives a received message back: it comes to this agent again after `delay` seconds; whether it will.

        It will not when it was acknowledged, or not received yet. Raises `NotFound` for an unknown message.
        """
        who, id = _who(agent), _named(message)
        span = duration(delay, "delay")
        if self._scope.write(lambda run: run.run(_RELEASE, {"agent": who, "id": id, "expires": run.now + span})):
            return True
        self._recipient(id)
        return False

    def _reopen(self, message: Message, agent: str) -> None:
        """Takes an acknowledgement back: the message comes to this agent again."""
        self._scope.write(lambda run: run.run(_REOPEN, {"agent": agent, "id": message.id, "now": run.now}))

    def deliveries(self, message: Message | str) -> list[Delivery]:
        """How a message stands with each agent it has been delivered to, in order of the last delivery. Raises `NotFound`."""
        id = _named(message)
        with self._scope.read() as run:
            rows = run.all(_DELIVERIES, {"id": id})
        if not rows:
            self._recipient(id)
        return DELIVERIES.load_all(rows)

    def delivery(self, message: Message | str, agent: Agent | str) -> Delivery | None:
        """How a message stands with one agent: how often it was delivered, when it comes again; None when it never was.

        Raises `NotFound` for an unknown message.
        """
        who, id = _who(agent), _named(message)
        with self._scope.read() as run:
            row = run.one(_DELIVERY, {"id": id, "agent": who})
        if row is None:
            self._recipient(id)
            return None
        return DELIVERIES.load(row)

    def unread(self, agent: Agent | str, topic: str | None = None) -> int:
        """How many messages this agent has not acknowledged, delivered to it or not; on a topic, or those a pattern stands for."""
        who, about = _who(agent), inboxes.about(topic)
        with self._scope.read() as run:
            return inboxes.unread(run, who, about)

    def unread_by_topic(self, agent: Agent | str, topic: str | None = None) -> dict[str, int]:
        """What `unread` counts, for each topic there are any of."""
        who, about = _who(agent), inboxes.about(topic)
        with self._scope.read() as run:
            return inboxes.unread_by_topic(run, who, about)

    def replay(
        self, agent: Agent | str, topic: str | None = None, *, after: int = 0, since: Moment | None = None, limit: int = 100
    ) -> list[Message]:
        """What has ever been sent to this agent, its groups and everybody, oldest first, read or not; at most `limit`.

        Nothing is marked by it. It goes on from the `position` of the last one as `after`; `since` leaves out what was published
        before an instant. What has expired is gone.
        """
        who, about = _who(agent), inboxes.about(topic)
        codec.integer(limit, "limit", 1)
        params: dict[str, Any] = {
            "agent": who,
            "topic": about,
            "after": codec.integer(after, "after", 0),
            "since": inboxes.ALWAYS if since is None else milliseconds(since, "since"),
        }
        with self._scope.read() as run:
            params["now"] = run.now
            if not inboxes.is_pattern(about):
                statement = _EVER_ON_TOPIC if about else _EVER
                return self._load(run, (position for position, _ in run.all(statement, {**params, "limit": limit})))
            found: list[int] = []
            while len(found) < limit:
                page = run.all(_EVER, {**params, "limit": PAGE})
                found += [position for position, topic in page if inboxes.matches(about, topic)]
                if len(page) < PAGE:
                    break
                params["after"] = page[-1][0]
            return self._load(run, found[:limit])

    def conversation(self, a: Agent | str, b: Agent | str) -> Query[Message]:
        """What two agents wrote each other directly, in order."""
        one, other = _who(a), _who(b)
        return self.where(or_(and_(_c.from_agent == one, _c.to_agent == other), and_(_c.from_agent == other, _c.to_agent == one))).order_by(
            _c.position.asc()
        )

    def prune(self, older_than: float) -> int:
        """Removes messages published more than `older_than` seconds ago, read or not, and those that have expired; how many.

        Their deliveries go with them. In small transactions of its own, so that nobody waits for it long.
        """
        span = duration(older_than, "older_than")
        removed = 0
        for statement in (_PRUNE_OLD, _PRUNE_EXPIRED):
            while batch := self._scope.write(partial(_batch, statement, span)):
                removed += batch
        self._scope.write(inboxes.forget_stale_cursors)
        return removed

    def _recipient(self, id: str) -> str | None:
        """The one agent that a message was sent to, if it was sent to one. Raises `NotFound` where there is no such message."""
        with self._scope.read() as run:
            row = run.one(_RECIPIENT, {"id": id})
        if row is None:
            raise self._missing(id)
        found: str | None = row[0]
        return found


def _batch(statement: Executable, span: int, run: Executor) -> int:
    """Removes some messages of more than `span` milliseconds ago; how many."""
    return len(run.all(statement, {"before": run.now - span, "now": run.now}))


def _pause(deadline: float | None) -> float:
    """How many seconds to wait before looking again."""
    return LONGEST_PAUSE if deadline is None else min(LONGEST_PAUSE, deadline - time.monotonic())


def _named(message: Message | str) -> str:
    return message.id if isinstance(message, Message) else codec.text(message, "message id")


def _who(agent: Agent | str) -> str:
    return agent.id if isinstance(agent, Agent) else codec.text(agent, "agent id")


def _id(entity: Agent | Group | str | None, column: str) -> str | None:
    if entity is None:
        return None
    return entity.id if isinstance(entity, (Agent, Group)) else codec.text(entity, f"messages.{column}")
