"""Query plans: the statements the verbs really run read along the indexes made for them."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ruv_swarm_store import Append, NewEvent, NewTask, Sample, Snapshots, Store, schema
from ruv_swarm_store.schema import tasks

pytestmark = pytest.mark.long


class Plans:
    """What SQLite would do for the statements a verb really runs."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self.store = Store.open(path, trace=lambda sql, seconds: self.heard.append(sql))
        self.raw = sqlite3.connect(path)

    def of(self, verb: Callable[[Store], object]) -> list[str]:
        self.heard.clear()
        verb(self.store)
        steps = []
        for sql in self.heard:
            if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
                statement = sql.split(" -- ")[0]
                rows = self.raw.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?"))
                steps += [row[3] for row in rows]
        return steps


@pytest.fixture
def plans(path: Path, request: pytest.FixtureRequest) -> Iterator[Plans]:
    """A store with a long history and a short queue; statistics of it must not mislead the planner."""
    plans = Plans(path)
    store = plans.store
    agents = [store.agents.register("worker", id=f"agent-{n}") for n in range(5)]
    store.groups.join(store.groups.create("team", id="team"), agents[0])
    with store.transaction() as work:
        work.tasks.enqueue_many([("a", n) for n in range(1_500)])
        work.tasks.complete_many((task, None) for task in work.tasks.claim_many(agents[0], 1_500))
        work.tasks.enqueue_many(NewTask("ab"[n % 2], n, delay=1_000 if n % 5 == 0 else None) for n in range(60))
        work.tasks.enqueue(
            "after", depends_on=[work.tasks.find_all()[-1]], id="blocked", unique_key="key", parent=work.tasks.find_all()[-2]
        )
        work.tasks.enqueue("after", depends_on=[work.tasks.enqueue("waited for")])
        done = [task.id for task in work.tasks.find_all()[:400]]
        work.tasks.enqueue_many(NewTask("late", depends_on=done[n : n + 3], run_at=2**60) for n in range(300))
        for n in range(300):
            work.messages.publish("t", n, to=agents[n % 5], sender=agents[0])
        for n in range(300):
            work.messages.publish("t", n, to_group="team" if n % 2 else None)
        work.metrics.record_many(Sample(f"m-{n % 50}", n, at=n) for n in range(1_000))
        for n in range(300):
            work.events.append(f"s-{n % 20}", [NewEvent(f"t-{n % 7}")], type="x")
            work.config.set(f"k-{n}", n)
        work.agents.insert_many(
            type(agents[0])(id=f"gone-{n}", type="worker", created_at=0, last_heartbeat=0, status="terminated") for n in range(500)
        )
    if getattr(request, "param", "") == "analysed":
        store.execute(text("ANALYZE"))
        store.close()
        plans.raw.close()
        plans = Plans(path)
    yield plans
    plans.raw.close()
    plans.store.close()


TABLES = "|".join(schema.metadata.tables)
HOT: dict[str, tuple[Callable[[Store], object], list[str]]] = {
    "claim": (lambda s: s.tasks.claim("agent-1"), ["ix_tasks_ready", "ix_tasks_due"]),
    "claim a type": (lambda s: s.tasks.claim("agent-1", types=["b"]), ["ix_tasks_ready_by_type", "ix_tasks_due"]),
    "claim several types": (lambda s: s.tasks.claim("agent-1", types=["a", "b"]), ["ix_tasks_ready_by_type", "ix_tasks_due"]),
    "claim many": (lambda s: s.tasks.claim_many("agent-1", 5), ["ix_tasks_ready", "ix_tasks_due"]),
    "wait": (
        lambda s: s.tasks.wait("agent-1", types=["none"], timeout=0.001),
        ["ix_tasks_ready_by_type", "ix_tasks_due", "ix_tasks_leased"],
    ),
    "rescue": (lambda s: s.tasks.rescue(), ["ix_tasks_leased"]),
    "terminate": (lambda s: s.agents.terminate("agent-4"), ["ix_tasks_leased"]),
    "complete": (lambda s: s.tasks.complete(s.tasks.claim("agent-1")), ["sqlite_autoindex_tasks"]),
    "complete what others wait for": (
        lambda s: s.tasks.complete(s.tasks.claim("agent-1", types=["waited for"])),
        ["sqlite_autoindex_tasks", "ix_task_dependencies_depends_on_id"],
    ),
    "fail what others wait for": (
        lambda s: s.tasks.fail(s.tasks.claim("agent-1", types=["waited for"]), "no", retry=False),
        ["ix_task_dependencies_depends_on_id"],
    ),
    "claim beside a pause": (lambda s: (s.tasks.pause("none"), s.tasks.claim("agent-1")), ["ix_tasks_ready_by_type"]),
    "limit": (
        lambda s: (
            s.tasks.limit("k", 1),
            s.tasks.enqueue_many(NewTask("limited", n, concurrency_key="k") for n in range(3)),
            s.tasks.complete(s.tasks.claim("agent-1", types=["limited"])),
        ),
        ["ix_tasks_admitted", "ix_tasks_throttled"],
    ),
    "prune": (lambda s: s.tasks.prune(0), ["ix_tasks_finished", "ix_tasks_parent", "ix_task_dependencies_depends_on_id"]),
    "requeue": (lambda s: s.tasks.requeue(s.tasks.cancel("blocked")[0]), ["sqlite_autoindex_task_dependencies"]),
    "heartbeat": (lambda s: s.tasks.heartbeat(s.tasks.claim("agent-1")), ["sqlite_autoindex_tasks"]),
    "unique key": (lambda s: s.tasks.enqueue("t", unique_key="key"), ["uq_tasks_live_key"]),
    "stats": (
        lambda s: s.tasks.stats(),
        ["ix_tasks_ready_by_type", "ix_tasks_due", "ix_tasks_blocked", "ix_tasks_leased", "ix_tasks_finished"],
    ),
    "dead": (lambda s: s.tasks.dead(), ["ix_tasks_failed"]),
    "children": (lambda s: s.tasks.children("blocked"), ["ix_tasks_parent"]),
    "cancel a tree": (lambda s: s.tasks.cancel("blocked", tree=True), ["ix_tasks_parent"]),
    "failures": (lambda s: s.tasks.failures("blocked"), ["sqlite_autoindex_task_failures"]),
    "get": (lambda s: s.tasks.get("blocked"), ["sqlite_autoindex_tasks"]),
    "find many": (lambda s: s.tasks.find_many(["blocked", "other"]), ["sqlite_autoindex_tasks"]),
    "stale": (lambda s: s.agents.stale(60), ["ix_agents_status"]),
    "agent heartbeat": (lambda s: s.agents.heartbeat("agent-1"), ["sqlite_autoindex_agents"]),
    "receive": (
        lambda s: s.messages.receive("agent-0", limit=5),
        ["ix_messages_inbox", "ix_messages_group", "ix_messages_broadcast", "message_deliveries"],
    ),
    "receive a topic": (
        lambda s: s.messages.receive("agent-0", "t", limit=5),
        ["ix_messages_inbox", "ix_messages_group", "ix_messages_topic_position"],
    ),
    "receive a pattern": (
        lambda s: s.messages.receive("agent-0", "*", limit=5),
        ["ix_messages_inbox", "ix_messages_group", "ix_messages_broadcast"],
    ),
    "receive since": (lambda s: s.messages.receive("agent-0", since=5), ["ix_messages_timestamp", "ix_messages_broadcast"]),
    "replay": (lambda s: s.messages.replay("agent-0", after=5), ["ix_messages_inbox", "ix_messages_group", "ix_messages_broadcast"]),
    "request": (lambda s: s.messages.request("t", sender="agent-0", timeout=0), ["ix_messages_correlation"]),
    "acknowledge many": (lambda s: s.messages.acknowledge_many(["a", "b"], "agent-0"), ["sqlite_autoindex_messages"]),
    "deliveries": (lambda s: s.messages.deliveries(s.messages.replay("agent-0")[0]), ["ix_message_deliveries_message_position"]),
    "leave": (lambda s: s.groups.leave("team", "agent-0"), ["ix_messages_group", "message_cursors"]),
    "revive": (
        lambda s: (s.agents.terminate("agent-3"), s.agents.register("worker", id="agent-3")),
        ["ix_messages_inbox", "ix_messages_group", "ix_messages_broadcast"],
    ),
    "reap": (lambda s: s.agents.reap(0), ["ix_agents_status"]),
    "heartbeats": (lambda s: s.agents.heartbeat_many(["agent-0", "agent-1"]), ["sqlite_autoindex_agents"]),
    "unread": (lambda s: s.messages.unread("agent-0"), ["ix_messages_inbox", "ix_messages_broadcast", "message_deliveries"]),
    "conversation": (lambda s: s.messages.conversation("agent-0", "agent-1").all(), ["ix_messages_"]),
    "members": (lambda s: s.groups.members("team"), ["sqlite_autoindex_agent_group_members"]),
    "groups of": (lambda s: s.groups.groups_of("agent-0"), ["ix_agent_group_members_agent_id"]),
    "append": (lambda s: s.events.append("s-1", [NewEvent("t")], type="x", expected_version=15), ["sqlite_autoindex_events"]),
    "append two": (lambda s: s.events.append("s-2", [NewEvent("t")] * 2, type="x"), ["sqlite_autoindex_events"]),
    "append by id": (lambda s: s.events.append("s-3", [NewEvent("t", id="id")], type="x"), ["sqlite_autoindex_events"]),
    "read": (lambda s: s.events.read("s-1", after=3), ["sqlite_autoindex_events"]),
    "append to several": (
        lambda s: s.events.append_many(Append(f"s-{n}", [NewEvent("t")], "x") for n in (1, 2)),
        ["sqlite_autoindex_events"],
    ),
    "read backward": (lambda s: s.events.read("s-1", type="x", backward=True, limit=2), ["sqlite_autoindex_events"]),
    "walk a stream": (lambda s: list(s.events.walk_stream("s-1", after=2)), ["sqlite_autoindex_events"]),
    "read a type": (lambda s: s.events.read_all(types=["t-1"], after=10), ["ix_events_event_type_position"]),
    "read types": (
        lambda s: s.events.read_all(types=["t-1", "t-2"], after=10),
        ["COVERING INDEX ix_events_event_type_position (event_type=? AND position>?", "events USING INTEGER PRIMARY KEY (rowid=?)"],
    ),
    "read many types": (lambda s: s.events.read_all(types=[f"t-{n}" for n in range(20)]), ["INTEGER PRIMARY KEY (rowid>?"]),
    "read all": (lambda s: s.events.read_all(after=10), ["INTEGER PRIMARY KEY"]),
    "handle events": (
        lambda s: s.events.subscribe("s").handle(lambda work, event: None, limit=5),
        ["sqlite_autoindex_event_consumers", "INTEGER PRIMARY KEY (rowid>?"],
    ),
    "handle events of types": (
        lambda s: s.events.subscribe("t", types=["t-1", "t-2"]).handle(lambda work, event: None, limit=5),
        ["INTEGER PRIMARY KEY (rowid>?", "ix_events_event_type_position (event_type=? AND position>? AND position<?"],
    ),
    "claim events": (
        lambda s: (s.events.group("g").claim("one", 9, lease=0), s.events.group("g").claim("two", 3)),
        ["ix_event_handouts_visible (consumer=? AND visible_at<?", "events USING INTEGER PRIMARY KEY (rowid=?"],
    ),
    "acknowledge events": (
        lambda s: s.events.group("g").acknowledge(s.events.group("g").claim("one", 3)),
        ["sqlite_autoindex_event_handouts_1 (consumer=? AND position=?)"],
    ),
    "parked events": (
        lambda s: (s.events.group("g").parked(after=3), s.events.group("g").unpark([3])),
        ["ix_event_handouts_parked (consumer=? AND position>?)", "ix_event_handouts_parked (consumer=? AND position=?)"],
    ),
    "read all backward": (lambda s: s.events.read_all(backward=True, limit=3), ["INTEGER PRIMARY KEY"]),
    "read a correlation": (
        lambda s: s.events.read_all(correlation="c", types=["t-1"], since=5),
        ["ix_events_correlation (correlation_id=? AND"],
    ),
    "read a causation": (lambda s: s.events.read_all(causation="c", backward=True), ["ix_events_causation (causation_id=? AND position"]),
    "read a time": (
        lambda s: s.events.read_all(since=5, until=2**60),
        ["COVERING INDEX ix_events_timestamp", "INTEGER PRIMARY KEY (rowid>?"],
    ),
    "fold with snapshots": (
        lambda s: [s.events.fold("s-1", 0, lambda n, _: n + 1, type="x", snapshot=Snapshots("n", every=1)) for _ in "12"],
        ["sqlite_autoindex_event_snapshots", "sqlite_autoindex_events"],
    ),
    "seal": (lambda s: s.events.seal(block=7), ["event_seals USING INTEGER PRIMARY KEY", "events USING INTEGER PRIMARY KEY"]),
    "verify": (
        lambda s: (s.events.seal(), s.events.verify()),
        ["event_seals USING INTEGER PRIMARY KEY", "events USING INTEGER PRIMARY KEY"],
    ),
    "aggregate": (lambda s: s.metrics.aggregate("m-1", since=5, bucket=10), ["ix_metrics_metric_name_timestamp"]),
    "aggregate from rollups": (
        lambda s: (s.metrics.rollup(), s.metrics.aggregate("m-1")),
        ["sqlite_autoindex_metric_rollups_1 (metric_name=? AND resolution=? AND bucket>?", "metrics USING INTEGER PRIMARY KEY (rowid>?"],
    ),
    "prune metrics": (lambda s: (s.metrics.rollup(), s.metrics.prune(0, batch=300)), ["ix_metrics_timestamp"]),
    "prune rollups": (
        lambda s: (s.metrics.rollup(), s.metrics.prune(0, resolution=60_000, batch=3)),
        ["sqlite_autoindex_metric_rollups_1 (metric_name=? AND resolution=? AND bucket<?"],
    ),
    "config": (lambda s: s.config.get("k-1"), ["sqlite_autoindex_swarm_config"]),
    "prefix": (lambda s: s.config.prefix("k-1"), ["sqlite_autoindex_swarm_config"]),
    "changed since": (lambda s: s.config.changed_since(5), ["ix_swarm_config_updated_at"]),
    "changes since": (lambda s: s.config.changes_since(5), ["ix_swarm_config_updated_at", "ix_swarm_config_expires_at"]),
    "expire": (lambda s: s.config.expire(), ["ix_swarm_config_expires_at"]),
    "delete keys": (lambda s: s.config.delete_many(["k-1", "k-2"]), ["sqlite_autoindex_swarm_config"]),
}


QUEUE = [
    "claim", "claim a type", "claim several types", "claim many", "wait", "rescue", "terminate", "complete",
    "complete what others wait for", "fail what others wait for", "claim beside a pause", "limit", "prune",
    "requeue", "heartbeat", "unique key", "stats", "dead",
    "children", "get",
]  # fmt: skip
CASES = [pytest.param("unanalysed", verb, id=verb) for verb in HOT] + [
    pytest.param("analysed", verb, id=f"{verb}, analysed") for verb in QUEUE
]


@pytest.mark.parametrize(("plans", "verb"), CASES, indirect=["plans"])
def test_a_hot_verb_reads_along_its_index(plans: Plans, verb: str) -> None:
    run, indexes = HOT[verb]
    steps = plans.of(run)
    assert steps
    for index in indexes:
        assert any(index in step for step in steps), "\n".join(steps)
    assert [step for step in steps if re.match(rf"SCAN ({TABLES})\b(?!.* USING )", step)] == []


def test_a_scan_would_be_noticed(plans: Plans) -> None:
    steps = plans.of(lambda store: store.tasks.where(tasks.c.created_at > 5).all())
    assert [step for step in steps if re.match(rf"SCAN ({TABLES})\b(?!.* USING )", step)] != []


def test_pruning_reads_no_message_that_stays(plans: Plans) -> None:
    steps = plans.of(lambda store: store.messages.prune(1_000))
    for index in ("ix_messages_timestamp", "ix_messages_expires_at"):
        assert any(index in step for step in steps), "\n".join(steps)
    assert [step for step in steps if step.startswith("SCAN messages")] == []


def test_no_hot_verb_sorts_the_queue(plans: Plans) -> None:
    for verb in (
        "claim", "claim a type", "claim many", "read", "read backward", "walk a stream", "read a type", "read all", "read all backward",
        "read a correlation", "read a causation", "read a time", "append",
    ):  # fmt: skip
        steps = plans.of(HOT[verb][0])
        assert [step for step in steps if "TEMP B-TREE FOR ORDER BY" in step] == [], verb


def test_every_reference_has_an_index_to_follow_it_back() -> None:
    for table in schema.metadata.tables.values():
        leading = {next(iter(index.columns)).name for index in table.indexes} | {next(iter(table.primary_key)).name}
        for key in table.foreign_keys:
            assert key.parent.name in leading, f"{table.name}.{key.parent.name}"
