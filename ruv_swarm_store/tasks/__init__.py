"""Tasks: a durable queue with leases, fencing, retries, dependencies, trees, limits and schedules."""

from ruv_swarm_store.tasks.backoff import DEFAULT_BACKOFF, Backoff
from ruv_swarm_store.tasks.claims import PROMOTION_BATCH
from ruv_swarm_store.tasks.endings import take_from
from ruv_swarm_store.tasks.queue import LONGEST_PAUSE, Tasks
from ruv_swarm_store.tasks.rows import FAILURES, PAUSES, SCHEDULES, TASKS

__all__ = [
    "DEFAULT_BACKOFF",
    "FAILURES",
    "LONGEST_PAUSE",
    "PAUSES",
    "PROMOTION_BATCH",
    "SCHEDULES",
    "TASKS",
    "Backoff",
    "Tasks",
    "take_from",
]
