"""A store's backups and its monitor with verbs to await. Apart from the nouns, for most programs have use for neither."""

from __future__ import annotations

from ruv_swarm_store.aio.deriving import Recipe, derive
from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.continuous import Shipping
from ruv_swarm_store.backup.schedule import Schedule
from ruv_swarm_store.monitor import PerformanceMonitor

AsyncBackups = derive(
    Recipe(of=Backups, lane="errands", plain=("schedule", "continuous"), holds={"now": "Callable[[], int]"}, without=("of",))
)
AsyncSchedule = derive(Recipe(of=Schedule, lane="errands", holds={"made": "int", "failure": "StoreError | None"}))
AsyncShipping = derive(Recipe(of=Shipping, lane="errands", holds={"backups": "AsyncBackups"}))
AsyncPerformanceMonitor = derive(Recipe(of=PerformanceMonitor, lane="errands", plain=("track", "collector")))
