"""A state store for multi-agent systems: agents, tasks, messages, metrics, groups, configuration and events.

The `schema` says what is stored. A `Query` says how to read it. Repositories say how to change it. A `UnitOfWork` says
together or not at all. A `Store` says where: in a SQLite file by default, in whatever its URL names.

    with Store.open("swarm.db") as store:
        scout = store.agents.register("scout")
        store.tasks.enqueue("crawl", {"url": "https://example.com"})
        task = store.tasks.claim(scout)
        store.tasks.complete(task, {"links": 3})
"""

from ruv_swarm_store.aio import AsyncStore
from ruv_swarm_store.cache import CachedRepository
from ruv_swarm_store.entities import (
    Agent,
    AgentStatus,
    ConfigEntry,
    Event,
    Group,
    Message,
    Metric,
    NewEvent,
    NewTask,
    Task,
    TaskStatus,
)
from ruv_swarm_store.errors import Conflict, InvalidTransition, InvalidValue, LeaseLost, NotFound, StoreError
from ruv_swarm_store.events import ANY, EXISTS, NONE, Append, Snapshots, Upcasters
from ruv_swarm_store.metrics import Sample
from ruv_swarm_store.query import Query
from ruv_swarm_store.store import Store, UnitOfWork

__all__ = [
    "ANY",
    "EXISTS",
    "NONE",
    "Agent",
    "AgentStatus",
    "Append",
    "AsyncStore",
    "CachedRepository",
    "ConfigEntry",
    "Conflict",
    "Event",
    "Group",
    "InvalidTransition",
    "InvalidValue",
    "LeaseLost",
    "Message",
    "Metric",
    "NewEvent",
    "NewTask",
    "NotFound",
    "Query",
    "Sample",
    "Snapshots",
    "Store",
    "StoreError",
    "Task",
    "TaskStatus",
    "UnitOfWork",
    "Upcasters",
]
