"""The queue's hot paths beside the plain driver on the same schema, and beside other queues."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
from floor import NOW, Floor
from peers import PAYLOAD
from places import Place, SQLitePlace
from sqlalchemy import select, text

from ruv_swarm_store import Agent, NewTask, Store
from ruv_swarm_store.clock import new_ids
from ruv_swarm_store.schema import tasks

Compare = Callable[..., float]
Rivals = Callable[..., list[Any]]
SHARE = 4
"""Of our operations in a round, a peer does one in so many."""
BACKLOG = 10_000
"""Tasks pending at a peer before its claims are timed. Most peers can only add them one by one."""


def filling(count: int) -> Callable[[Store], None]:
    """What gives a store a backlog of ten priorities."""

    def fill_store(store: Store) -> None:
        for start in range(0, count, 50_000):
            store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, index % 10) for index in range(min(50_000, count - start)))

    return fill_store


def fill(place: Place, store: Store, floor: Floor, count: int) -> None:
    """The same backlog on both sides."""
    filling(count)(store)
    for start in range(0, count, 50_000):
        floor.add(floor.rows([PAYLOAD] * min(50_000, count - start)))
    place.settle()


def finish(store: Store, floor: Floor, count: int) -> None:
    """Turns the first `count` tasks of both sides into finished ones, as a long history leaves them."""
    script = f"UPDATE tasks SET status = 'completed', agent_id = 'worker', completed_at = created_at WHERE position <= {count}"
    floor.execute(script)
    store.execute(text(script))


def claims(place: Place, pending: int, rounds: int, each: int = 1) -> int:
    """How many claims of `each` a round can have without running out."""
    count = min(place.round // each, pending // (rounds + 2) // each)
    assert count, f"{rounds} rounds are too many for {pending} tasks"
    return count


def backlog(place: Place, rounds: int) -> tuple[int, int]:
    """How many a peer claims in a round, and what it has to begin with: no more than it takes where every commit waits for the disk."""
    count = place.round // SHARE
    enough = count * (rounds + 2)
    return count, max(BACKLOG, enough) if place.durability == "normal" else enough


@pytest.mark.durable
def bench_enqueue_one(place: Place, store: Store, floor: Floor, rivals: Rivals, compare: Compare, rows: int, rounds: int) -> None:
    fill(place, store, floor, rows)
    batches = [floor.rows([PAYLOAD] * place.round) for _ in range(rounds + 1)]

    def ours() -> None:
        enqueue = store.tasks.enqueue
        for _ in range(place.round):
            enqueue("crawl", PAYLOAD)

    compare(
        ours,
        lambda: floor.enqueue(batches.pop()),
        operations=place.round,
        floor_is="INSERT in autocommit, rows and JSON made before",
        rivals=rivals("enqueue", place.round // SHARE, place.round // SHARE, like=filling(rows)),
    )


@pytest.mark.durable
def bench_enqueue_10k_at_once(place: Place, store: Store, floor: Floor, rivals: Rivals, compare: Compare, rows: int, rounds: int) -> None:
    fill(place, store, floor, rows)
    payloads = [{**PAYLOAD, "n": number} for number in range(10_000)]
    batches = [new_ids(NOW + number, len(payloads)) for number in range(1, rounds + 2)]
    pairs = [("crawl", payload) for payload in payloads]
    compare(
        lambda: store.tasks.enqueue_many(pairs),
        lambda: floor.enqueue_bulk(batches.pop(), payloads),
        operations=len(payloads),
        floor_is=floor.bulk_is,
        rivals=rivals("enqueue_many", payloads, len(payloads), like=filling(rows)),
    )


@pytest.mark.sized
@pytest.mark.durable
def bench_claim_at_10k_pending(
    place: Place, store: Store, floor: Floor, worker: Agent, rivals: Rivals, compare: Compare, rows: int, rounds: int
) -> None:
    pending = min(rows, BACKLOG)
    fill(place, store, floor, pending)
    count, before = backlog(place, rounds)
    found = rivals("claim", count, count, pending=before, like=filling(pending))
    _compare_claims(place, store, floor, worker, compare, claims(place, pending, rounds), found)


@pytest.mark.sized
def bench_claim_at_100k_pending(place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int, rounds: int) -> None:
    fill(place, store, floor, rows)
    _compare_claims(place, store, floor, worker, compare, claims(place, rows, rounds))


@pytest.mark.sized
def bench_claim_at_100k_pending_100k_future(
    place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int, rounds: int
) -> None:
    fill(place, store, floor, rows)
    store.tasks.enqueue_many(NewTask("crawl", PAYLOAD, delay=86_400) for _ in range(rows))
    floor.add(floor.rows([PAYLOAD] * rows))
    floor.execute(f"UPDATE tasks SET status = 'scheduled', run_at = 4102444800000 WHERE position > {rows}")
    place.settle()
    _compare_claims(place, store, floor, worker, compare, claims(place, rows, rounds))


# A million rows take a server minutes to fill and to look after.


@pytest.mark.sized
@pytest.mark.only("sqlite")
def bench_claim_at_1m_pending(place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int, rounds: int) -> None:
    fill(place, store, floor, rows * 10)
    _compare_claims(place, store, floor, worker, compare, claims(place, rows * 10, rounds))


@pytest.mark.sized
@pytest.mark.only("sqlite")
def bench_claim_at_100k_pending_1m_finished(
    place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int, rounds: int
) -> None:
    fill(place, store, floor, rows * 11)
    finish(store, floor, rows * 10)
    _compare_claims(place, store, floor, worker, compare, claims(place, rows, rounds))


def _compare_claims(
    place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, count: int, rivals: Sequence[Any] = ()
) -> None:
    def ours() -> None:
        claim = store.tasks.claim
        for _ in range(count):
            assert claim(worker) is not None

    skips = "" if place.engine == "sqlite" else ", SKIP LOCKED"
    floor_is = f"UPDATE … RETURNING in autocommit{skips}, tuples"
    compare(ours, lambda: floor.claim(count), operations=count, floor_is=floor_is, rivals=rivals)


@pytest.mark.sized
def bench_claim_at_100_times_the_backlog(place: Place, compare: Compare, rows: int, rounds: int) -> None:
    """How the claim grows: one store with a hundred times the backlog of the other, in turn."""
    large = rows * 10 if place.engine == "sqlite" else rows
    count = max(1, min(place.round // 4, large // 100 // (rounds + 2)))
    with place.store() as many, place.store() as few:
        jobs = []
        for store, pending in ((many, large), (few, large // 100)):
            worker = store.agents.register("bench")
            filling(pending)(store)
            jobs.append(lambda store=store, worker=worker: [store.tasks.claim(worker) for _ in range(count)])
        place.settle()
        floor_is = f"the same verb, {large // 100:,} pending instead of {large:,}: 0.5 would be twice as slow"
        compare(*jobs, operations=count, floor_is=floor_is)


@pytest.mark.durable
def bench_claim_32_at_once(
    place: Place, store: Store, floor: Floor, worker: Agent, rivals: Rivals, compare: Compare, rows: int, rounds: int
) -> None:
    fill(place, store, floor, rows)
    count = min(32, claims(place, rows, rounds, each=32)) if isinstance(place, SQLitePlace) else max(1, min(8, rows // 32 // (rounds + 2)))
    theirs = max(1, count // SHARE)

    def ours() -> None:
        for _ in range(count):
            assert len(store.tasks.claim_many(worker, 32)) == 32

    compare(
        ours,
        lambda: floor.claim_many(count),
        operations=count * 32,
        floor_is="UPDATE … RETURNING of 32 in autocommit, tuples",
        rivals=rivals("claim_many", theirs, theirs * 32, pending=max(BACKLOG, theirs * 32 * (rounds + 2)), like=filling(rows)),
    )


@pytest.mark.durable
def bench_claim_and_complete(
    place: Place, store: Store, floor: Floor, worker: Agent, rivals: Rivals, compare: Compare, rows: int, rounds: int
) -> None:
    fill(place, store, floor, rows)
    count = claims(place, rows, rounds)
    theirs, before = backlog(place, rounds)

    def ours() -> None:
        for _ in range(count):
            task = store.tasks.claim(worker)
            assert task is not None
            store.tasks.complete(task, {"ok": True})

    compare(
        ours,
        lambda: floor.claim_and_complete(count),
        operations=count,
        floor_is="two UPDATE … RETURNING in autocommit",
        rivals=rivals("claim_and_complete", theirs, theirs, pending=before, like=filling(rows)),
    )


@pytest.mark.durable
def bench_complete_32_at_once(place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rows: int, rounds: int) -> None:
    fill(place, store, floor, rows)
    count = min(32, claims(place, rows, rounds, each=32))
    held = [[store.tasks.claim_many(worker, 32, lease=3_600) for _ in range(count)] for _ in range(rounds + 1)]
    theirs = [floor.hold(count) for _ in range(rounds + 1)]

    def ours() -> None:
        for batch in held.pop():
            assert len(store.tasks.complete_many([(task, {"ok": True}) for task in batch])) == 32

    compare(
        ours,
        lambda: floor.complete_many(theirs.pop()),
        operations=count * 32,
        floor_is="json.dumps of ids, fences and results, UPDATE … FROM … RETURNING in autocommit, tuples",
    )


def bench_walk_all_tasks(place: Place, store: Store, floor: Floor, compare: Compare, rows: int) -> None:
    fill(place, store, floor, rows)

    def ours() -> None:
        assert sum(len(page) for page in store.tasks.query().pages(1_000)) == rows

    def below() -> None:
        assert floor.walk() == rows

    compare(ours, below, operations=rows, floor_is="SELECT of pages of 1000, fetchall and json.loads of the payload")


def bench_get_by_id(place: Place, store: Store, floor: Floor, rivals: Rivals, compare: Compare, rows: int) -> None:
    fill(place, store, floor, rows)
    count = min(rows, place.round * 20)
    share = count // SHARE
    first = select(tasks.c.id).order_by(tasks.c.position).limit(count)
    mine = [row[0] for row in store.execute(first)]
    theirs = [id for (id,) in floor.execute(f"SELECT id FROM tasks ORDER BY position LIMIT {count}").fetchall()]

    def ours() -> None:
        for id in itertools.islice(mine, count):
            store.tasks.get(id)

    compare(
        ours,
        lambda: floor.get(theirs),
        operations=count,
        floor_is="SELECT by id, a tuple without decoding",
        rivals=rivals("get", share, share, like=filling(rows)),
    )


def bench_get_by_id_cached_beside_uncached(place: Place, store: Store, compare: Compare) -> None:
    """Hits only: every task has been read before."""
    filling(1_000)(store)
    place.settle()
    ids = [task.id for task in store.tasks.query().all()]
    with closing(store.tasks.cached(ttl=3_600, size=len(ids))) as cached:
        for id in ids:
            cached.get(id)
        times = place.round // 50

        def ours() -> None:
            get = cached.get
            for _ in range(times):
                for id in ids:
                    get(id)

        def below() -> None:
            get = store.tasks.get
            for _ in range(times):
                for id in ids:
                    get(id)

        compare(ours, below, operations=times * len(ids), floor_is="the same verb without the cache")
