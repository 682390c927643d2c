"""Configuration: JSON values by key, versioned, with an optional expiry.

A deleted key leaves a row behind that expired long ago: its version goes on, and who asks for changes learns of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import ColumnElement, Text, and_, delete, literal_column, or_, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.cache import CachedRepository
from ruv_swarm_store.clock import Moment, duration, milliseconds
from ruv_swarm_store.engines import Executor, parameter, text_items, upsert
from ruv_swarm_store.entities import Agent, ConfigEntry
from ruv_swarm_store.errors import Conflict, InvalidValue
from ruv_swarm_store.query import Mapping, Query
from ruv_swarm_store.repository import Repository, repeatable

CONFIG = Mapping(schema.swarm_config, ConfigEntry, key="key")

KEPT = 86_400.0
"""Seconds for which `expire` leaves what has expired, or was deleted."""
OVERLAP = 10.0
"""Seconds by which `changes_since` looks back again: a transaction's changes carry the time it began, and show when it ends."""

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
_GONE: dict[str, Any] = {
    "value": parameter("nothing", schema.Json()),
    "updated_at": _now,
    "updated_by": parameter("by", Text),
    "expires_at": literal_column("0"),  # not now: who reads at this moment may have looked at the clock before
    "version": _c.version + 1,
}
_these = _c.key.in_(text_items("keys"))
_DELETE = update(schema.swarm_config).where(_key, _live).values(_GONE)
_DELETE_MANY = update(schema.swarm_config).where(_these, _live).values(_GONE)
_ABSENT = select(_c.key).where(_these, _c.expires_at <= _now).order_by(_c.key)
_BACK = (
    update(schema.swarm_config)
    .where(_key, _c.expires_at <= _now)
    .values(
        value=parameter("value_", schema.Json()),
        updated_at=parameter("at"),
        updated_by=parameter("by"),
        expires_at=parameter("until"),
        version=_c.version + 1,
    )
    .returning(*CONFIG.columns)
)
_PREFIX = select(*CONFIG.columns).where(_c.key >= parameter("prefix"), _live).order_by(_c.key)
_RANGE = select(*CONFIG.columns).where(_c.key >= parameter("prefix"), _c.key < parameter("beyond"), _live).order_by(_c.key)
_CHANGED = select(*CONFIG.columns).where(_c.updated_at >= parameter("since"), _live).order_by(_c.updated_at, _c.key)
_CHANGES = select(*CONFIG.columns).where(_c.updated_at >= parameter("since")).order_by(_c.updated_at, _c.key)
# What expires by itself was changed long before, maybe.
_EXPIRED = select(_c.key).where(_c.expires_at >= parameter("since"), _c.expires_at <= _now).order_by(_c.key)
_before: Any = parameter("before", schema.Int64)
_EXPIRE = delete(schema.swarm_config).where(_c.expires_at <= _before, _c.updated_at <= _before)


class ConfigChanges(Struct, frozen=True):
    """What has changed in the configuration since an instant."""

    entries: list[ConfigEntry]
    """Entries set, oldest change first."""
    deleted: list[str]
    """Keys that are not set any more, deleted or expired, in order."""
    until: int
    """The instant to ask from next time."""


class Config(Repository[ConfigEntry]):
    """The swarm's settings. Keys are free text; a dotted path and `prefix` make a tree of them."""

    mapping = CONFIG
    there = _live

    def get(self, id: ConfigEntry | str, default: Any = None) -> Any:
        """The value of a key, or `default` when it is not set or has expired. `entry` tells a stored None from a missing key.

        Inside a unit of work nobody else changes it until that ends.
        """
        found = self.find_by_id(id)
        return default if found is None else found.value

    def entry(self, key: ConfigEntry | str) -> ConfigEntry | None:
        """The whole entry of a key: value, version, who and when; None when it is not set or has expired."""
        return self.find_by_id(key)

    def cached(self, ttl: float = 2.0, size: int = 1024, probe: float = 0.01) -> CachedConfig:
        """Entries by key, kept in memory while nobody changes them and until they expire; see `Repository.cached`."""
        return CachedConfig(self, self._scope, ttl=ttl, size=size, probe=probe, expiring=True)

    # The plain verbs see nothing of what has expired or was deleted; adding it again goes on with its version.

    def query(self) -> Query[ConfigEntry]:
        """All entries that have not expired by now, as a query to narrow down."""
        return super().query().where(or_(_c.expires_at.is_(None), _c.expires_at > self._scope.clock()))

    def _insert(self, run: Executor, entities: Sequence[ConfigEntry]) -> list[ConfigEntry]:
        back = {key for (key,) in run.all(_ABSENT, {"keys": codec.encode([entity.key for entity in entities]), "now": run.now})}
        super()._insert(run, [entity for entity in entities if entity.key not in back])
        return [self._set_again(run, entity) if entity.key in back else entity for entity in entities]

    def _set_again(self, run: Executor, entity: ConfigEntry) -> ConfigEntry:
        params = {"key_": entity.key, "value_": codec.encode(entity.value), "at": entity.updated_at, "by": entity.updated_by}
        row = run.one(_BACK, {**params, "until": entity.expires_at, "now": run.now})
        if row is None:
            raise Conflict(f"config {entity.key!r} is set already", hint="Use set, or upsert", kind="unique")
        return CONFIG.load(row)

    def set(
        self, key: str, value: Any, *, by: Agent | str | None = None, ttl: float | None = None, expires_at: Moment | None = None
    ) -> ConfigEntry:
        """Stores a value whatever was there; `ttl` seconds or until the instant `expires_at`. Returns the entry."""
        params = self._params_of(key, value, by, ttl, expires_at)
        row = self._scope.write(lambda run: run.one(_SET, _timed(params, run)))
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
            actual = expected
            for _ in range(_ROUNDS):  # somebody may set it to just that version before it is read again
                row = run.one(_SWAP, {**timed, "expected": expected}) if expected else run.one(_CREATE, timed)
                if row is not None:
                    return CONFIG.load(row)
                found = run.one(self.statements.find, {"key": params["key_"], "now": run.now})
                actual = 0 if found is None else CONFIG.load(found).version
                if actual != expected:
                    break
        raise Conflict(
            f"config {key!r} is at version {actual}, not {expected}",
            hint="Somebody set it: read the entry again",
            expected=expected,
            actual=actual,
        )

    def delete(self, id: ConfigEntry | str | int, *, by: Agent | str | None = None) -> bool:
        """Removes a key; whether it was set. Set again later, it goes on with its version: no entry is mistaken for an older one."""
        params = {"key_": CONFIG.identity(id), "by": _name(by), "nothing": "null"}
        return self._scope.write(lambda run: run.run(_DELETE, {**params, "now": run.now})) > 0

    @repeatable
    def delete_many(self, ids: Iterable[ConfigEntry | str | int]) -> int:
        """Removes keys, all or none; how many were set. See `delete`."""
        params = {"keys": self._keys(ids), "by": None, "nothing": "null"}
        with self._scope.transaction() as run:
            run.hold(self.statements.these, {**params, "now": run.now})
            return run.run(_DELETE_MANY, {**params, "now": run.now})

    def prefix(self, prefix: str) -> dict[str, Any]:
        """Every key that starts with `prefix`, with its value, in order of the keys' code points."""
        codec.text(prefix, "prefix")
        beyond = _beyond(prefix)
        with self._scope.read() as run:
            rows = run.all(_PREFIX if beyond is None else _RANGE, {"prefix": prefix, "beyond": beyond, "now": run.now})
        return {entry.key: entry.value for entry in CONFIG.load_all(rows)}

    def changed_since(self, since: Moment) -> list[ConfigEntry]:
        """Entries set at an instant or after it, oldest change first. To follow changes, use `changes_since`."""
        with self._scope.read() as run:
            return CONFIG.load_all(run.all(_CHANGED, {"since": milliseconds(since, "since"), "now": run.now}))

    def changes_since(self, since: Moment, *, overlap: float = OVERLAP) -> ConfigChanges:
        """What was set, was deleted or has expired at an instant or after it. Ask again from the answer's `until`.

        Who does so misses nothing, as long as `expire` leaves deleted keys for longer than the time between two questions. A
        change shows when its transaction ends and carries the time that began: `until` stays `overlap` seconds behind the present,
        so changes come again for that long; their versions tell.
        """
        start, span = milliseconds(since, "since"), duration(overlap, "overlap")
        with self._scope.read() as run:
            now = run.now
            entries = CONFIG.load_all(run.all(_CHANGES, {"since": start}))
            expired = {key for (key,) in run.all(_EXPIRED, {"since": start, "now": now})}
        live = [entry for entry in entries if entry.expires_at is None or entry.expires_at > now]
        gone = {entry.key for entry in entries} | expired
        return ConfigChanges(live, sorted(gone - {entry.key for entry in live}), max(start, now - span))

    def expire(self, *, kept: float = KEPT) -> int:
        """Removes for good what expired, or was deleted, more than `kept` seconds ago; how many there were.

        Reading never shows it, removed or not. Until it is removed its version goes on when the key is set again, and
        `changes_since` tells of it: `kept` should be longer than anybody holds an entry or goes without asking for changes.
        """
        span = duration(kept, "kept")
        return self._scope.write(lambda run: run.run(_EXPIRE, {"before": run.now - span}))

    def _params_of(self, key: str, value: Any, by: Agent | str | None, ttl: float | None, expires_at: Moment | None) -> dict[str, Any]:
        if ttl is not None and expires_at is not None:
            raise InvalidValue("both ttl and expires_at are given", hint="Give one of them")
        return {
            "key_": codec.text(key, "config key"),
            "value_": codec.seal(value, "value")[1],
            "by": _name(by),
            "ttl": None if ttl is None else duration(ttl, "ttl"),
            "until": None if expires_at is None else milliseconds(expires_at, "expires_at"),
        }


class CachedConfig(CachedRepository[ConfigEntry]):
    """Configuration from memory; see `Config.cached`."""

    def get(self, id: ConfigEntry | str, default: Any = None) -> Any:
        """The value of a key, or `default` when it is not set or has expired."""
        found = self.find_by_id(id)
        return default if found is None else found.value

    def entry(self, key: ConfigEntry | str) -> ConfigEntry | None:
        """The whole entry of a key; None when it is not set or has expired."""
        return self.find_by_id(key)


_ROUNDS = 8
"""How often a swap is tried that fails without the version being another."""


def _name(by: Agent | str | None) -> str | None:
    return None if by is None else codec.text(by.id if isinstance(by, Agent) else by, "by")


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
