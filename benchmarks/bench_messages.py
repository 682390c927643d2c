"""Messages to one agent beside the plain driver; and publishing to many beside publishing to one: it writes one row either way."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from floor import AGENT, NOW, Floor
from places import Place

from ruv_swarm_store import Agent, Store
from ruv_swarm_store.clock import new_ids

CONTENT = {"found": "https://example.com/a/page", "score": 0.75}
Compare = Callable[..., float]
Row = tuple[str, str, str]


def letters(count: int) -> list[Row]:
    """What the floor publishes, made ahead of time."""
    return [(id, json.dumps(CONTENT), AGENT) for id in new_ids(NOW, count)]


@pytest.mark.durable
def bench_publish_to_an_agent(place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rounds: int) -> None:
    batches = [letters(place.round) for _ in range(rounds + 1)]

    def ours() -> None:
        publish = store.messages.publish
        for _ in range(place.round):
            publish("found", CONTENT, sender=worker, to=worker)

    compare(ours, lambda: floor.publish(batches.pop()), operations=place.round, floor_is="INSERT in autocommit, rows and JSON made before")


@pytest.mark.durable
def bench_receive_and_acknowledge_10(place: Place, store: Store, floor: Floor, worker: Agent, compare: Compare, rounds: int) -> None:
    times = max(1, place.round // 10)
    enough = times * 10 * (rounds + 1)
    with store.transaction() as work:
        for _ in range(enough):
            work.messages.publish("found", CONTENT, sender=worker, to=worker)
    floor.execute("INSERT INTO message_cursors VALUES ('worker', '', 0)")
    floor.within(lambda: floor.publish(letters(enough)))
    place.settle()

    def ours() -> None:
        for _ in range(times):
            received = store.messages.receive(worker, limit=10)
            assert store.messages.acknowledge_many(received, worker) == 10

    compare(
        ours,
        lambda: floor.receive_and_acknowledge(AGENT, times),
        operations=times * 10,
        floor_is="SELECT, INSERT and UPDATE in one transaction, json.loads; an UPDATE in another",
    )


@pytest.mark.durable
@pytest.mark.parametrize("audience", ["broadcast", "group"])
def bench_publish_to_50_beside_1(place: Place, compare: Compare, audience: str) -> None:
    with place.store() as many, place.store() as one:
        jobs = []
        for store, recipients in ((many, 50), (one, 1)):
            sender = store.agents.register("sender")
            group = store.groups.create("readers")
            for _ in range(recipients):
                reader = store.agents.register("reader")
                store.groups.join(group, reader)
            to = group if audience == "group" else None

            def publish(store=store, sender=sender, to=to) -> None:  # type: ignore[no-untyped-def]
                for _ in range(place.round):
                    store.messages.publish("found", CONTENT, sender=sender, to_group=to)

            # All of them have read what there was: their inboxes are in use.
            publish()
            for agent in store.agents.find_all():
                while received := store.messages.receive(agent, limit=1_000):
                    store.messages.acknowledge_many(received, agent)
            jobs.append(publish)
        compare(*jobs, operations=place.round, floor_is="the same verb with one recipient: 0.5 would be twice the cost")
