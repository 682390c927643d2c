"""The only room that knows dialects: opens a database by its URL and hands out executors."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ruv_swarm_store.engines import ddl as ddl
from ruv_swarm_store.engines.changes import Changes
from ruv_swarm_store.engines.constructs import (
    Insertion,
    constant,
    insert_into,
    json_has,
    json_member,
    json_text,
    number_items,
    parameter,
    records,
    text_items,
    text_rows,
    upsert,
    upsert_from,
)
from ruv_swarm_store.engines.engine import Capabilities, Durability, Engine, Options, Storing
from ruv_swarm_store.engines.executor import Executor, Interest, Scope, Trace
from ruv_swarm_store.engines.lending import Lent
from ruv_swarm_store.engines.metering import Footprint, Meter
from ruv_swarm_store.engines.sqlite import MemoryEngine, SQLiteEngine, loading, sqljs
from ruv_swarm_store.engines.sqlite.engine import url_of
from ruv_swarm_store.engines.sqlite.installing import install, vacant
from ruv_swarm_store.engines.waiting import Pause, Steps, block, cooperate, give_way
from ruv_swarm_store.errors import InvalidValue, Unsupported

__all__ = [
    "IN_BROWSER",
    "Capabilities",
    "Changes",
    "Durability",
    "Engine",
    "Executor",
    "Footprint",
    "Insertion",
    "Interest",
    "Lent",
    "Meter",
    "Options",
    "Pause",
    "Scope",
    "Steps",
    "Storing",
    "Trace",
    "block",
    "connect",
    "connect_async",
    "constant",
    "cooperate",
    "file_of",
    "give_way",
    "insert_into",
    "install",
    "json_has",
    "json_member",
    "json_text",
    "load",
    "number_items",
    "parameter",
    "records",
    "text_items",
    "text_rows",
    "upsert",
    "upsert_from",
    "vacant",
]

_SECRET = re.compile(r"(?<=://).*@|(?<=\?).*", re.DOTALL)
"""Where a URL may hold a password, or something that was meant for a part of one."""

IN_BROWSER = sys.platform == "emscripten"
"""Where this runs: there SQLite is another, everything is in one thread, and storing is waited for by the event loop."""


def connect(address: str | os.PathLike[str] | None, options: Options) -> Engine:
    """Opens the database at a path or SQLAlchemy URL; in memory when there is none.

    Raises `InvalidValue` for an address that is neither, `Unsupported` for an engine this release does not have or that cannot be
    opened here, and `Unavailable` or `CorruptDatabase` when the database cannot be opened.
    """
    url = _url(address)
    match url.drivername:
        case "sqlite" | "sqlite+pysqlite":
            return _sqlite(url, options)
        case "sqlite+sqljs":
            return sqljs.open(_in_browser(url), options)
        case "postgresql" | "postgresql+psycopg" | "postgresql+psycopg2":
            return _postgresql(url, options)
    raise Unsupported(f"there is no engine for {url.drivername}", hint="Use a path, sqlite:///path or postgresql://…")


async def connect_async(address: str | os.PathLike[str] | None, options: Options) -> Engine:
    """`connect`, where loading the database must be awaited."""
    url = _url(address)
    if url.drivername == "sqlite+sqljs":
        return await sqljs.load(_in_browser(url), options)
    return connect(address, options)


def file_of(address: str | os.PathLike[str]) -> Path | None:
    """The file that `connect` would open at an address; None where it is in none. Raises `InvalidValue` as that does."""
    url = _url(address)
    in_file = url.drivername in ("sqlite", "sqlite+pysqlite") and url.database not in (None, "", ":memory:")
    return Path(str(url.database)).resolve() if in_file else None


def name_of(address: str | os.PathLike[str]) -> str:
    """The one name of what `connect` would open at an address, without passwords and options. Raises `InvalidValue` as that does."""
    if (file := file_of(address)) is not None:
        return url_of(file).encode(errors="backslashreplace").decode()  # a file's name may be no text, which this has to be
    url = _url(address)
    place = {key: url.query[key] for key in ("host", "port") if key in url.query}
    return url.set(drivername=url.get_backend_name(), query=place).render_as_string(hide_password=True)


def load(engine: Engine, image: bytes) -> None:
    """Replaces what a database in memory holds by a database file's bytes. Raises `Unsupported` for any other database."""
    if not isinstance(engine, MemoryEngine):
        raise Unsupported(f"{engine.name} is not in memory", hint="Restore the file instead")
    loading.load(engine, image)


def _url(address: str | os.PathLike[str] | None) -> URL:
    """An address as a URL: a path is SQLite's, and SQLite's driver is the one there is on this platform."""
    if address is None or address == ":memory:":
        url = URL.create("sqlite")
    elif isinstance(address, os.PathLike) or (isinstance(address, str) and address and "://" not in address):
        url = URL.create("sqlite", database=os.fspath(address))
    elif isinstance(address, str) and address:
        shown = _SECRET.sub("…", address)
        try:
            url = make_url(address)
        except (ArgumentError, ValueError):  # what they say may hold a part of a password
            raise InvalidValue(f"{shown!r} is not a URL", hint="A URL looks like sqlite:///swarm.db") from None
        if url.host is not None and "@" in url.host:
            raise InvalidValue(f"{shown!r} has more than one @ before its host", hint="Write %40 for one in a user's name or a password")
        if url.get_backend_name() == "sqlite" and any(part is not None for part in (url.host, url.port, url.username, url.password)):
            hint = "sqlite:///swarm.db, with three slashes, is a file in this directory; sqlite:// alone is memory"
            raise InvalidValue(f"{shown!r} names a host, where SQLite has none", hint=hint)
    else:
        raise InvalidValue(f"{address!r} is no address of a store", hint="Give a path, a URL like sqlite:///swarm.db, or nothing")
    if url.get_backend_name() == "sqlite" and url.database is not None:
        try:
            os.fsencode(url.database)
        except UnicodeEncodeError as error:
            raise InvalidValue(f"{address!r} is no path", hint="Give text that names of files can be made of") from error
        if "\0" in url.database:
            raise InvalidValue(f"{address!r} is no path: it has a NUL character", hint="Remove it")
    return url.set(drivername="sqlite+sqljs") if IN_BROWSER and url.drivername == "sqlite" else url


def _in_browser(url: URL) -> URL:
    if not IN_BROWSER:
        raise Unsupported(f"{url.drivername} works in a browser only", hint="Use a path, or sqlite:///path")
    return url


def _sqlite(url: URL, options: Options) -> Engine:
    if IN_BROWSER:
        raise Unsupported(f"there are no files for {url.drivername} here", hint="Use a name, or sqlite+sqljs:///name")
    if url.query:
        raise InvalidValue(f"{url} carries options", hint="Give options to Store.open instead")
    if not url.database or url.database == ":memory:":
        return MemoryEngine(options)
    return SQLiteEngine(url.database, options)


def _postgresql(url: URL, options: Options) -> Engine:
    try:
        from ruv_swarm_store.engines.postgresql import PostgreSQLEngine
    except ImportError as error:
        raise Unsupported("the PostgreSQL driver is not installed", hint="pip install 'ruv-swarm-store[postgres]'") from error
    return PostgreSQLEngine(url, options)
