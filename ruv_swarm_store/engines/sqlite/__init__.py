"""SQLite through the standard library's driver: a file shared by threads and processes, or a database in memory.

`connections` run statements, `engine` opens them and lends them out, `watch` tells of commits, `codes` of errors.
"""

from ruv_swarm_store.engines.sqlite.engine import MemoryEngine, SQLiteEngine

__all__ = ["MemoryEngine", "SQLiteEngine"]
