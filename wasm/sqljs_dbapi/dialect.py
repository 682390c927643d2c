"""SQLAlchemy's dialect `sqlite+sqljs`: its SQLite dialect over this driver.

create_engine("sqlite+sqljs://")                                        # in memory
create_engine("sqlite+sqljs:///name?durability=commit&sync_interval=0.5") # kept; the options are those of `sqljs_dbapi.open`
"""

from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import exc, util
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ConnectArgsType, DBAPIModule
    from sqlalchemy.engine.url import URL


class SQLiteDialect_sqljs(SQLiteDialect_pysqlite):  # noqa: N801 - named as SQLAlchemy names dialects
    """SQLite by sql.js."""

    driver = "sqljs"
    supports_statement_cache = True

    OPTIONS: tuple[tuple[str, type], ...] = (
        ("durability", str),
        ("sync_interval", float),
        ("strict", bool),
        ("mode", str),
        ("timeout", float),
        ("key", str),
        ("isolation_level", str),
        ("detect_types", int),
        ("cached_statements", int),
    )
    """What a URL may say after its question mark."""

    @classmethod
    def import_dbapi(cls) -> "DBAPIModule":
        """The driver."""
        import sqljs_dbapi

        return cast("DBAPIModule", sqljs_dbapi)

    def create_connect_args(self, url: "URL") -> "ConnectArgsType":
        """What `sqljs_dbapi.connect` is called with."""
        if util.asbool(url.query.get("uri", False)):
            return super().create_connect_args(url)
        if url.username or url.password or url.host or url.port:
            raise exc.ArgumentError(f"Invalid URL: {url}\nIt is sqlite+sqljs:// (in memory) or sqlite+sqljs:///name")
        if unknown := sorted(set(url.query) - {name for name, _ in self.OPTIONS}):
            raise exc.ArgumentError(f"Unknown in {url}: {', '.join(unknown)}. Known: {', '.join(name for name, _ in self.OPTIONS)}")
        options: dict[str, Any] = dict(url.query)
        for name, kind in self.OPTIONS:
            util.coerce_kw_type(options, name, kind)
        return [url.database or ":memory:"], options


dialect = SQLiteDialect_sqljs
