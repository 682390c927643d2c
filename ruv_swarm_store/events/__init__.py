"""Events: append-only streams, one for each aggregate, and one global order over all of them."""

from __future__ import annotations

from ruv_swarm_store.events.repository import ANY, Events

__all__ = ["ANY", "Events"]
