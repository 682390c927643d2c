"""Inboxes: what an agent has still to receive, and what it has received.

A message is one row however many it reaches. Each agent has a cursor over the stream of messages, one for all topics (named by
the empty text) and one for each topic or pattern it has asked for; whatever reaches it above the cursor is fresh. What it
receives gets a delivery row, and so does what it would lose otherwise: by leaving a group, or by having been terminated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Select, Text, and_, delete, exists, func, literal_column, not_, or_, select, union_all

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, number_items, parameter, text_items, upsert, upsert_from
from ruv_swarm_store.entities import Audience
from ruv_swarm_store.errors import InvalidValue, NotFound

EVERYTHING = ""
"""The name of the cursor over all topics."""
CLOSED = "**."
"""The name of the row that notes the newest message when an agent was terminated; no topic and no pattern is asked for by it."""
PASSED = 500
"""How many messages of others a look in vain passes before the cursor is moved: no look reads more of them twice."""
ALWAYS = -(2**63)
"""As `since`: whenever it was said."""

_c = schema.messages.c
_d = schema.message_deliveries.c
_k = schema.message_cursors.c
_m = schema.agent_group_members.c
_agent: Any = parameter("agent", Text)
_group: Any = parameter("group", Text)
_about: Any = parameter("about", Text)
_now: Any = parameter("now", schema.Int64)
_limit: Any = parameter("limit", schema.Int64)
_after: Any = parameter("after", schema.Int64)
_since: Any = parameter("since", schema.Int64)
_newest_one: Any = parameter("newest", schema.Int64)
_until: Any = parameter("until", schema.Int64)
_zero: ColumnElement[Any] = literal_column("0", schema.Int64)
_one: ColumnElement[Any] = literal_column("1", schema.Int64)

NEWEST = select(func.coalesce(func.max(_c.position), _zero)).scalar_subquery()
"""The position of the newest message."""


def _cursor(topic: Any) -> Any:
    other = schema.message_cursors.alias()
    return select(other.c.position).where(other.c.agent_id == _agent, other.c.topic == topic).scalar_subquery()


_PLACES = select(_k.position, _cursor(_about), _cursor(CLOSED), NEWEST).where(_k.agent_id == _agent, _k.topic == EVERYTHING)
_HELD_PLACES = _PLACES.with_for_update(key_share=True)
_FIRST_SINCE = select(func.min(_c.position + _zero)).where(_c.timestamp >= _since)  # by the index on timestamp, not along the positions
_MOVE = upsert(
    schema.message_cursors,
    {"agent_id": _agent, "topic": _about, "position": _after},
    on=["agent_id", "topic"],
    update={"position": _after},
    returning=[_k.position],
)

live: ColumnElement[bool] = or_(_c.expires_at.is_(None), _c.expires_at > _now)
_unseen = not_(exists().where(_d.agent_id == _agent, _d.message_position == _c.position))
# The text and the number that follow are put so that no index serves them: there is a better one for each.
_topic_read = _c.topic.concat(literal_column("''", Text))
_recent = _c.timestamp + _zero >= _since


def ways(
    to_me: Sequence[ColumnElement[bool]],
    to_all: Sequence[ColumnElement[bool]],
    to_group: Sequence[ColumnElement[bool]],
    columns: Sequence[ColumnElement[Any]],
) -> list[Select[*tuple[Any, ...]]]:
    """The ways by which a message reaches an agent, each a SELECT along its own index; no message comes by two of them."""
    return [
        select(*columns).where(_c.to_agent == _agent, *to_me),
        select(*columns).where(_c.audience == Audience.BROADCAST, *to_all),
        select(*columns).join_from(schema.agent_group_members, schema.messages, _c.to_group == _m.group_id).where(
            _m.agent_id == _agent, *to_group
        ),
    ]  # fmt: skip


class _Statements:
    """What is asked of an inbox: about all topics, about one, or about those in a list."""

    def __init__(self, one: ColumnElement[bool] | None = None, read: ColumnElement[bool] | None = None) -> None:
        """`one` is the condition on the topic, for an index; `read` the same for where another index serves better."""
        topic = [] if one is None else [one]
        topic_read = [] if read is None else [read]
        unseen = [_c.position > _after, live, _unseen, _recent]
        joined = or_(_c.position > _m.joined_position, _since > literal_column(str(ALWAYS + 1), schema.Int64))

        def ways_to(*columns: ColumnElement[Any]) -> list[Select[*tuple[Any, ...]]]:
            return ways(
                [_c.position <= _newest_one, *unseen, *topic_read],
                [_c.position <= _until, *unseen, *topic],
                [_c.position <= _until, joined, *unseen, *topic_read],
                columns,
            )

        found = union_all(*(select(way.order_by(_c.position).limit(_limit).subquery()) for way in ways_to(_c.position))).subquery()
        fresh = select(_one.label("fresh"), found.c.position).order_by(found.c.position).limit(_limit).subquery()
        delivered = (_d.agent_id == _agent, _d.acknowledged_at.is_(None), *topic_read, live, _recent)
        again = (
            select(_zero.label("fresh"), _d.message_position)
            .join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
            .where(*delivered, _d.visible_at <= _now)
            .order_by(_d.message_position)
            .limit(_limit)
            .subquery()
        )
        self.due = union_all(select(again), select(fresh))
        """0 and the position of what comes again, 1 and that of what is fresh; up to `limit` of both."""

        def unread(column: ColumnElement[Any]) -> Any:
            open = select(column).join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
            return union_all(open.where(*delivered), *ways_to(column)).subquery()

        self.unread = select(func.count()).select_from(unread(_one.label("one")))
        topics = unread(_c.topic)
        self.by_topic = select(topics.c.topic, func.count()).group_by(topics.c.topic)


_ALL = _Statements()
_ONE = _Statements(_c.topic == _about, _topic_read == _about)
_SOME = _Statements(_c.topic.in_(text_items("topics")), _topic_read.in_(text_items("topics")))

_DELIVERY = ("agent_id", "message_position", "delivered_at", "deliveries", "visible_at")
_DELIVER = upsert_from(
    schema.message_deliveries,
    _DELIVERY,
    # Held, so that none is pruned meanwhile.
    select(_agent, _c.position, _now, _one, parameter("expires", schema.Int64))
    .where(_c.position.in_(number_items("positions")))
    .with_for_update(read=True, key_share=True),
    on=["agent_id", "message_position"],
    returning=[_d.message_position],
)
_REDELIVER = (
    schema.message_deliveries.update()
    .where(_d.agent_id == _agent, _d.message_position.in_(number_items("positions")), _d.acknowledged_at.is_(None))
    .values(deliveries=_d.deliveries + 1, delivered_at=_now, visible_at=parameter("expires", schema.Int64))
    .returning(_d.message_position)
)
_NEXT_VISIBLE = select(func.min(_d.visible_at)).where(_d.agent_id == _agent, _d.acknowledged_at.is_(None), _d.visible_at > _now)

_NEWEST = select(NEWEST)
_NEWS = select(_c.position, _c.topic, _c.audience, _c.to_agent, _c.to_group).where(_c.position > _after).order_by(_c.position).limit(_limit)
_MEMBERS = select(_m.group_id, _m.agent_id).where(_m.group_id.in_(text_items("groups")), _m.agent_id.in_(text_items("agents")))
_COMING = (
    select(_d.agent_id, _c.topic, func.min(_d.visible_at))
    .join_from(schema.message_deliveries, schema.messages, _d.message_position == _c.position)
    .where(_d.agent_id.in_(text_items("agents")), _d.acknowledged_at.is_(None), live)
    .group_by(_d.agent_id, _c.topic)
)
_PRESENT = select(schema.agents.c.id).where(schema.agents.c.id.in_(text_items("agents")))

_OPEN = upsert_from(
    schema.message_cursors,
    ("agent_id", "topic", "position"),
    select(schema.agents.c.id, literal_column("''", Text), NEWEST).where(schema.agents.c.id.in_(text_items("agents"))),
    on=["agent_id", "topic"],
)
_CLOSE = upsert(schema.message_cursors, {"agent_id": _agent, "topic": CLOSED, "position": NEWEST}, on=["agent_id", "topic"])
_FORGET = delete(schema.message_cursors).where(_k.agent_id == _agent, _k.topic != EVERYTHING)
_missed = union_all(
    *ways(
        [_c.position > _after, _c.position <= _newest_one, live, _unseen],
        [_c.position > _after, _c.position <= _until, live, _unseen],
        [_c.position > _after, _c.position <= _until, live, _unseen, _c.position > _m.joined_position],
        [_c.position],
    )
).subquery()
_KEEP = upsert_from(
    schema.message_deliveries,
    _DELIVERY,
    select(_agent, _missed.c.position, _now, _zero, _now).where(_missed.c.position > _after),
    on=["agent_id", "message_position"],
)

_everything = schema.message_cursors.alias("everything")
_closed = schema.message_cursors.alias("closed")
_leaving = and_(_m.group_id == _group, or_(_agent.is_(None), _m.agent_id == _agent))
_LEAVING = select(_k.position).where(_k.topic == EVERYTHING, _k.agent_id.in_(select(_m.agent_id).where(_leaving))).order_by(_k.agent_id)
_KEEP_OF_GROUP = upsert_from(
    schema.message_deliveries,
    _DELIVERY,
    select(_m.agent_id, _c.position, _now, _zero, _now)
    .select_from(
        schema.agent_group_members.join(
            _everything, and_(_everything.c.agent_id == _m.agent_id, _everything.c.topic == EVERYTHING)
        )
        .outerjoin(_closed, and_(_closed.c.agent_id == _m.agent_id, _closed.c.topic == CLOSED))
        .join(schema.messages, _c.to_group == _m.group_id)
    )
    .where(
        _leaving,
        _c.position > _m.joined_position,
        _c.position > _everything.c.position,
        or_(_closed.c.position.is_(None), _c.position <= _closed.c.position),
        live,
        not_(exists().where(_d.agent_id == _m.agent_id, _d.message_position == _c.position)),
    ),
    on=["agent_id", "message_position"],
)  # fmt: skip
_STALE = delete(schema.message_cursors).where(
    _k.topic.not_in([EVERYTHING, CLOSED]),
    _k.position
    <= select(_everything.c.position)
    .where(_everything.c.agent_id == _k.agent_id, _everything.c.topic == EVERYTHING)
    .correlate(schema.message_cursors)
    .scalar_subquery(),
)


# Topics


def about(topic: str | None) -> str:
    """The name of the cursor over a topic or a pattern; None means all topics."""
    if topic is None:
        return EVERYTHING
    name = codec.text(topic, "topic")
    if not name:
        raise InvalidValue("topic is empty", hint="Give it a name; to receive every topic leave it out")
    if "**" in name.split(".")[:-1]:
        raise InvalidValue(f"in the pattern {name!r} ** is not the last segment", hint="Put ** at the end, where it stands for any rest")
    return name


def is_pattern(topic: str) -> bool:
    """Whether a name stands for several topics: one of its segments, between dots, is `*` or `**`."""
    return "*" in topic and any(segment in ("*", "**") for segment in topic.split("."))


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is one of those a pattern stands for: `*` is any one segment, `**` at the end any rest, or none."""
    wanted, found = pattern.split("."), topic.split(".")
    if wanted[-1] == "**":
        wanted = wanted[:-1]
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(one in ("*", other) for one, other in zip(wanted, found, strict=True))


def concerns(name: str, topic: str) -> bool:
    """Whether a topic is one of those that the name of a cursor stands for."""
    return name in (EVERYTHING, topic) or (is_pattern(name) and matches(name, topic))


# Looking, and taking out


class Look(Struct, frozen=True):
    """What there is to receive, as of one moment."""

    statements: Any
    params: dict[str, Any]
    moves: bool
    """Whether the cursor goes on with what is received."""

    @property
    def passed(self) -> int:
        """How many positions there are above the cursor."""
        return int(self.params["newest"] - self.params["after"]) if self.moves else 0

    def pending(self, run: Executor) -> bool:
        """Whether there is anything to receive now."""
        return run.one(self.statements.due, {**self.params, "limit": 1}) is not None

    def take(self, run: Executor, limit: int, span: int) -> list[int]:
        """The positions of up to `limit` messages that are now delivered, and come again in `span` milliseconds."""
        params = {**self.params, "limit": limit, "expires": run.now + span}
        due = sorted((fresh, position) for fresh, position in run.all(self.statements.due, params))
        taken = []
        if again := [position for fresh, position in due if not fresh]:
            taken = [position for (position,) in run.all(_REDELIVER, {**params, "positions": codec.encode(again)})]
        if (room := limit - len(again)) > 0:
            fresh = [position for fresh, position in due if fresh][:room]
            if fresh:
                taken += [position for (position,) in run.all(_DELIVER, {**params, "positions": codec.encode(fresh)})]
            # Full or not, nothing between the old and the new place is left behind: newer ones than `newest` were not looked at.
            end = fresh[-1] if len(fresh) == room else params["newest"]
            if self.moves and (fresh or end - params["after"] >= PASSED):
                run.run(_MOVE, {**params, "after": end})
        return taken


def look(run: Executor, agent: str, name: str, since: int = ALWAYS, *, held: bool = False) -> Look:
    """What an agent has to receive about the topics that `name` stands for; `since` an instant, whenever it joined.

    `held` keeps others from taking anything out of the inbox until the transaction ends.
    """
    everything, mine, closed, newest = _places(run, agent, name, held=held)
    after = max(everything, mine or 0)
    if since > ALWAYS:
        first = (run.one(_FIRST_SINCE, {"since": since}) or [None])[0]
        after = newest if first is None else first - 1
    params = {
        "agent": agent,
        "about": name,
        "now": run.now,
        "after": after,
        "newest": max(newest, after),
        "until": newest if closed is None else min(newest, closed),
        "since": since,
    }
    statements = _ALL if name == EVERYTHING else _ONE
    if is_pattern(name):
        statements = _SOME
        params["topics"] = codec.encode([topic for topic, _ in run.all(_ALL.by_topic, params) if matches(name, topic)])
    return Look(statements, params, since == ALWAYS)


def unread(run: Executor, agent: str, name: str) -> int:
    """How many messages an agent has not acknowledged."""
    if is_pattern(name):
        return sum(unread_by_topic(run, agent, name).values())
    seen = look(run, agent, name)
    return int((run.one(seen.statements.unread, seen.params) or [0])[0])


def unread_by_topic(run: Executor, agent: str, name: str) -> dict[str, int]:
    """How many messages an agent has not acknowledged, for each topic there are any of."""
    counts: dict[str, int] = dict(map(tuple, run.all(_ALL.by_topic, look(run, agent, EVERYTHING).params)))
    return {topic: counts[topic] for topic in sorted(counts) if concerns(name, topic)}


def next_visible(run: Executor, agent: str) -> int | None:
    """When the next message that was delivered, and not acknowledged, comes again."""
    row = run.one(_NEXT_VISIBLE, {"agent": agent, "now": run.now})
    return None if row is None or row[0] is None else int(row[0])


# Listening


def newest(run: Executor) -> int:
    """The position of the newest message; 0 when there is none."""
    return int((run.one(_NEWEST) or [0])[0])


def news(run: Executor, after: int, agents: Sequence[str], limit: int) -> list[tuple[int, str, Sequence[str] | None]]:
    """Up to `limit` messages above a position: their positions, their topics, and which of the agents they may reach; None for all."""
    rows = run.all(_NEWS, {"after": after, "limit": limit})
    members: dict[str, list[str]] = {}
    if groups := {group for *_, group in rows if group is not None}:
        for group, agent in run.all(_MEMBERS, {"groups": codec.encode(sorted(groups)), "agents": codec.encode(list(agents))}):
            members.setdefault(group, []).append(agent)
    found: list[tuple[int, str, Sequence[str] | None]] = []
    for position, topic, audience, agent, group in rows:
        reached = None if audience == Audience.BROADCAST else members.get(group, ()) if agent is None else (agent,)
        found.append((position, topic, reached))
    return found


def coming(run: Executor, agents: Sequence[str]) -> Sequence[Sequence[Any]]:
    """Agents, topics, and when the first message on that topic, delivered and not acknowledged, comes to that agent again."""
    return run.all(_COMING, {"agents": codec.encode(list(agents)), "now": run.now})


def present(run: Executor, agents: Sequence[str]) -> set[str]:
    """Which of these agents there are."""
    return {agent for (agent,) in run.all(_PRESENT, {"agents": codec.encode(list(agents))})}


def _places(run: Executor, agent: str, name: str, *, held: bool = False) -> Sequence[Any]:
    """The positions of an agent's cursors over everything and over what has this name, where it was closed, and of the newest message."""
    row = run.one(_HELD_PLACES if held else _PLACES, {"agent": agent, "about": name})
    if row is None:
        raise NotFound(f"no agent {agent!r}", hint="Register it before it receives", id=agent)
    return row


# Coming and going


def open_inboxes(run: Executor, agents: Sequence[str]) -> None:
    """Lets newly registered agents receive what is published from now on."""
    run.run(_OPEN, {"agents": codec.encode(list(agents))})


def close_inbox(run: Executor, agent: str) -> None:
    """Ends what reaches an agent that is terminated: of what comes after, only what is sent to it alone stays for it."""
    run.run(_CLOSE, {"agent": agent})


def reopen_inbox(run: Executor, agent: str) -> None:
    """Lets an agent that was terminated receive again: what had reached it until then, and what is published from now on."""
    everything, _, closed, newest = _places(run, agent, EVERYTHING, held=True)
    if closed is None:
        return
    params = {"agent": agent, "now": run.now, "after": everything, "newest": newest, "until": min(closed, newest)}
    run.run(_KEEP, params)
    run.run(_FORGET, params)
    run.run(_MOVE, {**params, "about": EVERYTHING, "after": max(newest, everything)})


def keep(run: Executor, group: str, agent: str | None = None) -> None:
    """Before an agent leaves a group, or all of them do: what was published to it meanwhile stays to be received."""
    params = {"group": group, "agent": agent, "now": run.now}
    run.hold(_LEAVING, params)
    run.run(_KEEP_OF_GROUP, params)


def forget_stale_cursors(run: Executor) -> int:
    """Removes the cursors over single topics that the one over all of them has passed."""
    return run.run(_STALE)
