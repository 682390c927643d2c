"""Configuration: JSON values by key, versioned, with an optional expiry."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, literal_column, or_, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, duration, milliseconds
from ruv_swarm_store.engines import Executor, parameter, upsert
from ruv_swarm_store.entities import Agent, ConfigEntry
from ruv_swarm_store.errors import Conflict, InvalidValue
from ruv_swarm_store.query import Mapping, OnCorrupt, Query
from ruv_swarm_store.repository import Repository

CONFIG = Mapping(schema.swarm_config, ConfigEntry, key="key")

_c = schema.swarm_config.c
_key = _c.key == parameter("key_")
_now: Any = parameter("now", schema.Int64)
_live: ColumnElement[bool] = or_(_c.expires_at.is_(None), _c.expires_at > _now)
_VALUES: dict[str, Any] = {
    "value": parameter("value_", schema.Json()),
    "updated_at": _now,
    "updated_by": parameter("by"),
    "expires_at": parameter("until"),
}
_GET = select(*CONFIG.columns).where(_key, _live)
# An expired entry is as good as absent, but its version goes on: whoever saw it live must not take the next one for it.
_SET = upsert(
    schema.swarm_config,
    {"key": parameter("key_"), "version": literal_column("1"), **_VALUES},
    on=["key"],
    update={**_VALUES, "version": _c.version + 1},
    returning=CONFIG.columns,
)
_CREATE = upsert(
    schema.swarm_config,
    {"key": parameter("key_"), "version": literal_column("1"), **_VALUES},
    on=["key"],
    update={**_VALUES, "version": _c.version + 1},
    where=and_(_c.expires_at.is_not(None), _c.expires_at <= _now),
    returning=CONFIG.columns,
)
_SWAP = (
    update(schema.swarm_config)
    .where(_key, _live, _c.version == parameter("expected"))
    .values({**_VALUES, "version": _c.version + 1})
    .returning(*CONFIG.columns)
)
_DELETE = delete(schema.swarm_config).where(_key, _live)
_PREFIX = select(*CONFIG.columns).where(_c.key >= parameter("prefix"), _live).order_by(_c.key)
_RANGE = select(*CONFIG.columns).where(_c.key >= parameter("prefix"), _c.key < parameter("beyond"), _live).order_by(_c.key)
_CHANGED = select(*CONFIG.columns).where(_c.updated_at > parameter("since"), _live).order_by(_c.updated_at, _c.key)
_EXPIRE = delete(schema.swarm_config).where(_c.expires_at <= _now)


class Config(Repository[ConfigEntry]):
    """The swarm's settings. Keys are free text; a dotted path and `prefix` make a tree of them."""

    mapping = CONFIG
    managed = ()

    def get(self, id: ConfigEntry | str, default: Any = None) -> Any:
        """The value of a key, or `default` when it is not set or has expired. `entry` tells a stored None from a missing key."""
        found = self.entry(id)
        return default if found is None else found.value

    def entry(self, key: ConfigEntry | str) -> ConfigEntry | None:
        """The whole entry of a key: value, version, who and when; None when it is not set or has expired."""
        with self._scope.read() as run:
            row = run.one(_GET, {"key_": CONFIG.identity(key), "now": run.now})
        return None if row is None else CONFIG.load(row)

    # The plain verbs of reading leave out what has expired, too.

    def query(self) -> Query[ConfigEntry]:
        """All entries that have not expired by now, as a query to narrow down."""
        with self._scope.read() as run:
            return super().query().where(or_(_c.expires_at.is_(None), _c.expires_at > run.now))

    def find_by_id(self, id: ConfigEntry | str) -> ConfigEntry | None:
        """See `entry`."""
        return self.entry(id)

    def find_many(self, ids: Iterable[ConfigEntry | str]) -> list[ConfigEntry]:
        """The entries of those keys, in no particular order; those not set are left out."""
        return self.where(_c.key.in_([CONFIG.identity(id) for id in ids])).all()

    def find_all(self, *, on_corrupt: OnCorrupt = "raise") -> list[ConfigEntry]:
        """Every entry, by key."""
        return self.query().order_by(_c.key.asc()).all(on_corrupt=on_corrupt)

    def count(self) -> int:
        """How many keys are set."""
        return self.query().count()

    def exists(self, id: ConfigEntry | str) -> bool:
        """Whether a key is set."""
        with self._scope.read() as run:
            return run.one(_GET, {"key_": CONFIG.identity(id), "now": run.now}) is not None

    def set(
        self, key: str, value: Any, *, by: Agent | str | None = None, ttl: float | None = None, expires_at: Moment | None = None
    ) -> ConfigEntry:
        """Stores a value whatever was there; `ttl` seconds or until the instant `expires_at`. Returns the entry."""
        params = self._params_of(key, value, by, ttl, expires_at)
        with self._scope.write() as run:
            row = run.one(_SET, _timed(params, run))
        assert row is not None
        return CONFIG.load(row)

    def compare_and_set(
        self,
        key: str,
        value: Any,
        *,
        expected: int,
        by: Agent | str | None = None,
        ttl: float | None = None,
        expires_at: Moment | None = None,
    ) -> ConfigEntry:
        """Stores a value if the entry is at version `expected`; 0 means the key must not be set.

        Raises `Conflict` carrying the `actual` version otherwise.
        """
        codec.integer(expected, "expected version", 0)
        params = self._params_of(key, value, by, ttl, expires_at)
        with self._scope.transaction() as run:
            timed = _timed(params, run)
            row = run.one(_SWAP, {**timed, "expected": expected}) if expected else run.one(_CREATE, timed)
            if row is None:
                found = run.one(_GET, {"key_": params["key_"], "now": run.now})
                actual = 0 if found is None else CONFIG.load(found).version
                raise Conflict(
                    f"config {key!r} is at version {actual}, not {expected}",
                    hint="Somebody set it: read the entry again",
                    expected=expected,
                    actual=actual,
                )
        return CONFIG.load(row)

    def delete(self, id: ConfigEntry | str | int) -> bool:
        """Removes a key; whether it was set."""
        with self._scope.write() as run:
            return run.run(_DELETE, {"key_": CONFIG.identity(id), "now": run.now}) > 0

    def prefix(self, prefix: str) -> dict[str, Any]:
        """Every key that starts with `prefix`, with its value, in order of the keys' code points."""
        codec.text(prefix, "prefix")
        beyond = _beyond(prefix)
        with self._scope.read() as run:
            rows = run.all(_PREFIX if beyond is None else _RANGE, {"prefix": prefix, "beyond": beyond, "now": run.now})
        return {entry.key: entry.value for entry in CONFIG.load_all(rows)}

    def changed_since(self, since: Moment) -> list[ConfigEntry]:
        """Entries set after an instant, oldest change first."""
        with self._scope.read() as run:
            return CONFIG.load_all(run.all(_CHANGED, {"since": milliseconds(since, "since"), "now": run.now}))

    def expire(self) -> int:
        """Removes expired entries for good; how many there were. Reading never shows them, removed or not."""
        with self._scope.write() as run:
            return run.run(_EXPIRE, {"now": run.now})

    def _params_of(self, key: str, value: Any, by: Agent | str | None, ttl: float | None, expires_at: Moment | None) -> dict[str, Any]:
        if ttl is not None and expires_at is not None:
            raise InvalidValue("both ttl and expires_at are given", hint="Give one of them")
        return {
            "key_": codec.text(key, "config key"),
            "value_": codec.seal(value, "value")[1],
            "by": None if by is None else codec.text(by.id if isinstance(by, Agent) else by, "by"),
            "ttl": None if ttl is None else duration(ttl, "ttl"),
            "until": None if expires_at is None else milliseconds(expires_at, "expires_at"),
        }


def _timed(params: dict[str, Any], run: Executor) -> dict[str, Any]:
    until = params["until"] if params["ttl"] is None else run.now + params["ttl"]
    return {**params, "now": run.now, "until": until}


def _beyond(prefix: str) -> str | None:
    """The least text greater than every text that starts with `prefix`; None when there is none."""
    for end in range(len(prefix), 0, -1):
        if (last := ord(prefix[end - 1])) < 0x10FFFF:
            following = 0xE000 if last + 1 == 0xD800 else last + 1
            return prefix[: end - 1] + chr(following)
    return None
