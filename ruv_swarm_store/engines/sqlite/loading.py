"""Puts a database file's bytes into a database in memory."""

from __future__ import annotations

from ruv_swarm_store.engines.executor import Executor
from ruv_swarm_store.engines.sqlite.connections import SQLiteExecutor
from ruv_swarm_store.engines.sqlite.engine import MemoryEngine

_MODE = slice(18, 20)
"""Where a file says which kind of log it has (https://sqlite.org/fileformat.html, 1.3): in memory there is none beside it."""


def load(engine: MemoryEngine, image: bytes) -> None:
    """Replaces what a database in memory holds by what is in a file."""
    data = bytearray(image)
    data[_MODE] = b"\x01\x01"

    def put(run: Executor) -> None:
        assert isinstance(run, SQLiteExecutor)
        run.raw.deserialize(bytes(data))

    engine.write(put)
    engine.caches.clear()
