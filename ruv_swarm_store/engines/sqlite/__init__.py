"""SQLite: a file shared by threads and processes or a database in memory, and the same in a browser.

`connections` run statements, `engine` opens them and lends them out, `watch` tells of commits, `driver` is what they are made with and
tells what its errors mean. `sqljs` and its `bell` are what differs in a browser.
"""

from ruv_swarm_store.engines.sqlite.engine import MemoryEngine, SQLiteEngine

__all__ = ["MemoryEngine", "SQLiteEngine"]
