"""The queue's hot paths beside raw sqlite3 on the same schema."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from floor import NOW, Floor
from sqlalchemy import Select, select, text

from ruv_swarm_store import Agent, NewTask, Store
from ruv_swarm_store.clock import new_ids
from ruv_swarm_store.schema import tasks

PAYLOAD = {"url": "https://example.com/a/page", "depth": 3, "tags": ["a", "b"]}
Compare = Callable[..., float]
ROUND = 1_000
"""Operations in one timed round."""


def fill(store: Store, floor: Floor, count: int) -> None:
    """The same backlog on both sides, of ten priorities."""
    for start in range(0, count, 50_000):
        size = min(50_000, count - start)
        store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, index % 10) for index in range(size))
        floor.raw.execute("BEGIN IMMEDIATE")
        floor.enqueue(floor.rows([PAYLOAD] * size))
        floor.raw.execute("COMMIT")


def finish(store: Store, floor: Floor, count: int) -> None:
    """Turns the first `count` tasks of both sides into finished ones, as a long history leaves them."""
    script = "UPDATE tasks SET status = 'completed', agent_id = 'worker', completed_at = created_at WHERE position <= :count"
    floor.raw.execute(script, {"count": count})
    store.execute(text(script), {"count": count})


def bench_enqueue_one(store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)
    ready: Iterator[list[tuple[object, ...]]] = iter(lambda: floor.rows([PAYLOAD] * ROUND), None)
    batches = list(itertools.islice(ready, 40))

    def ours() -> None:
        enqueue = store.tasks.enqueue
        for _ in range(ROUND):
            enqueue("crawl", PAYLOAD)

    compare(ours, lambda: floor.enqueue(batches.pop()), operations=ROUND, floor_is="INSERT in autocommit, rows and JSON made before")


def bench_enqueue_10k_at_once(store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)
    payloads = [{**PAYLOAD, "n": number} for number in range(10_000)]
    batches = [new_ids(NOW + number, len(payloads)) for number in range(40)]
    pairs = [("crawl", payload) for payload in payloads]
    compare(
        lambda: store.tasks.enqueue_many(pairs),
        lambda: floor.enqueue_bulk(batches.pop(), payloads),
        operations=len(payloads),
        floor_is="executemany + json.dumps in one transaction, ids made before",
    )


@pytest.mark.parametrize(
    ("pending", "finished", "future"),
    [(10_000, 0, 0), (100_000, 0, 0), (1_000_000, 0, 0), (100_000, 1_000_000, 0), (100_000, 0, 100_000)],
    ids=["10k pending", "100k pending", "1M pending", "100k pending 1M finished", "100k pending 100k future"],
)
def bench_claim(store: Store, floor: Floor, worker: Agent, compare: Compare, pending: int, finished: int, future: int) -> None:
    fill(store, floor, pending + finished)
    if finished:
        finish(store, floor, finished)
    if future:
        store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, delay=86_400) for _ in range(future))
        later = "UPDATE tasks SET status = 'scheduled', run_at = 4102444800000 WHERE position > ?"
        floor.raw.execute("BEGIN IMMEDIATE")
        floor.enqueue(floor.rows([PAYLOAD] * future))
        floor.raw.execute(later, (pending,))
        floor.raw.execute("COMMIT")
    count = min(ROUND, pending // 40)

    def ours() -> None:
        claim = store.tasks.claim
        for _ in range(count):
            assert claim(worker) is not None

    compare(ours, lambda: floor.claim(count), operations=count, floor_is="UPDATE … RETURNING in autocommit, tuples")


def bench_claim_at_1m_pending_beside_10k(tmp_path: Path, compare: Compare) -> None:
    """How the claim grows: one store with a hundred times the backlog of the other, in turn."""
    with Store.open(tmp_path / "large.db") as large, Store.open(tmp_path / "small.db") as small:
        jobs = []
        for store, pending in ((large, 1_000_000), (small, 10_000)):
            worker = store.agents.register("bench")
            for _ in range(0, pending, 10_000):
                store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, index % 10) for index in range(10_000))
            jobs.append(lambda store=store, worker=worker: [store.tasks.claim(worker) for _ in range(250)])
        compare(*jobs, operations=250, floor_is="the same verb, 10k pending: 0.5 would be twice as slow")


def bench_claim_32_at_once(store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)

    def ours() -> None:
        for _ in range(32):
            assert len(store.tasks.claim_many(worker, 32)) == 32

    def below() -> None:
        many = floor_claim_many
        for _ in range(32):
            assert len(floor.raw.execute(many, (floor.agent, NOW, NOW + 30_000)).fetchall()) == 32

    floor_claim_many = """
UPDATE tasks SET status = 'assigned', agent_id = ?, assigned_at = ?, lease_expires_at = ?, fence = fence + 1, version = version + 1
WHERE position IN (SELECT position FROM tasks WHERE status = 'pending' ORDER BY priority DESC, position LIMIT 32) RETURNING *"""
    compare(ours, below, operations=32 * 32, floor_is="UPDATE … RETURNING of 32 in autocommit, tuples")


def bench_claim_and_complete(store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)

    def ours() -> None:
        for _ in range(ROUND):
            task = store.tasks.claim(worker)
            assert task is not None
            store.tasks.complete(task, {"ok": True})

    compare(ours, lambda: floor.claim_and_complete(ROUND), operations=ROUND, floor_is="two UPDATE … RETURNING in autocommit")


def bench_get_by_id(store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(store, floor, rows)
    mine = [row[0] for row in store.execute(_ids())]
    theirs = [id for (id,) in floor.raw.execute("SELECT id FROM tasks ORDER BY position LIMIT 20000")]

    def ours() -> None:
        get = store.tasks.get
        for id in mine:
            get(id)

    compare(ours, lambda: floor.get(theirs), operations=len(mine), floor_is="SELECT by id, a tuple without decoding")


def _ids() -> Select[str]:
    return select(tasks.c.id).order_by(tasks.c.position).limit(20_000)
