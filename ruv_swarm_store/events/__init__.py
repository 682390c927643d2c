"""Events: append-only streams, one for each aggregate, and one global order over all of them."""

from __future__ import annotations

from ruv_swarm_store.events.advancing import Begin
from ruv_swarm_store.events.appending import ANY, EXISTS, NONE, Append
from ruv_swarm_store.events.groups import Claim, ConsumerGroup, Parked
from ruv_swarm_store.events.projections import Projection, Projector
from ruv_swarm_store.events.repository import Events
from ruv_swarm_store.events.seals import Audit, Fault
from ruv_swarm_store.events.snapshots import Snapshots
from ruv_swarm_store.events.subscriptions import Subscription
from ruv_swarm_store.events.upcasting import Upcasters

__all__ = [
    "ANY",
    "EXISTS",
    "NONE",
    "Append",
    "Audit",
    "Begin",
    "Claim",
    "ConsumerGroup",
    "Events",
    "Fault",
    "Parked",
    "Projection",
    "Projector",
    "Snapshots",
    "Subscription",
    "Upcasters",
]
