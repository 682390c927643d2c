"""Which file of the engine a connection opens, told by the name it was asked for."""

import os
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from sqljs_dbapi.errors import NotSupportedError

if TYPE_CHECKING:
    from sqljs_dbapi._engine import Engine

Name = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_shared: dict[str, str] = {}  # databases in memory that several connections share, by name


def locate(engine: "Engine", database: Name, uri: bool, options: dict[str, Any]) -> tuple[str, bool]:
    """What to open, and whether it is kept by `sqljs_dbapi.storage`.

    `:memory:` and an empty name are a connection's own. `file:NAME?mode=memory&cache=shared` (with `uri`) is shared, and gone with
    its last connection. Any other name is a kept database, opened with `options` if it is not open yet.
    """
    name = os.fsdecode(database)
    if uri and name.startswith("file:"):
        parts = urlsplit(name)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        name = unquote(parts.path)
        if query.pop("cache", "private") == "shared" and (name == ":memory:" or query.get("mode") == "memory"):
            return _share(engine, name), False
        if query.get("mode") == "memory":
            name = ":memory:"
        elif query.get("mode", "rwc") not in {"rwc", "rw"}:
            raise NotSupportedError("sql.js opens every database for reading and writing; `PRAGMA query_only` refuses writes")
    if name in {"", ":memory:"}:
        return name, False
    from sqljs_dbapi import storage

    return storage.open_for_connect(name, **options), True


def _share(engine: "Engine", name: str) -> str:
    if name not in _shared:
        _shared[name] = engine.js.createFile(None)
    return _shared[name]


def release(engine: "Engine", path: str) -> None:
    """Remove a shared database whose last connection was closed."""
    for name, known in _shared.items():
        if known == path and engine.js.connectionCount(path) == 0:
            engine.js.removeFile(path)
            del _shared[name]
            return
