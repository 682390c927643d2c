"""Backups of a live store: full ones and increments, each checked and restorable, in any storage.

`backups` is what a store hands out, `storage` (`remote`, `retrying`) where the files are, `frames`, `encryption` and `manifest` their form,
`catalog` what of them there is. A file for each job: `creating` with `pages` or `rows`, `verification`, `restoring`, `drill`, `retention`,
`schedule`; `continuous` ships what is committed in between, `points` finds the way back to any moment of it.
"""

from ruv_swarm_store.backup.backups import Backups
from ruv_swarm_store.backup.drill import Drill
from ruv_swarm_store.backup.manifest import Backup
from ruv_swarm_store.backup.remote import FsspecStorage
from ruv_swarm_store.backup.restoring import Restoration
from ruv_swarm_store.backup.retention import Pruning, Retention
from ruv_swarm_store.backup.storage import BackupStorage, DirectoryStorage, MemoryStorage
from ruv_swarm_store.backup.verification import Problem, Verification

__all__ = [
    "Backup",
    "BackupStorage",
    "Backups",
    "DirectoryStorage",
    "Drill",
    "FsspecStorage",
    "MemoryStorage",
    "Problem",
    "Pruning",
    "Restoration",
    "Retention",
    "Verification",
]
