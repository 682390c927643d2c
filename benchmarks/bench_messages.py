"""Publishing to many beside publishing to one: it writes one row either way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from places import Place

CONTENT = {"found": "https://example.com/a/page", "score": 0.75}
Compare = Callable[..., float]


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
