"""A read-through cache over a noun: rows by their key, kept in memory for as long as nobody has changed them.

Why it is never wrong for longer than it promises:

- What this store commits: its executors note what they change (`engines.changes`). The thread that commits hands that to the caches
  (`Caches.tell`) before it does anything else, so before its verb returns and before hooks run. Rolled back, it is forgotten. Inside
  a transaction of its own a thread reads past the cache, so what is not committed is neither shown nor kept.
- What others commit: a read that finds the last look at the database older than `probe` looks again first (`Caches.look`). If others
  may have committed, everything goes. The look counts as made when it began, so a read that begins `probe` after a commit finds a
  look that began after it. This store's own commits do not show in that look, or are known by their number there.
- A slow reader: before reading, a miss puts a blank entry under its key, and fills it afterwards only if that very entry is still
  there and blank. Whatever invalidates the key, in whichever of the two ways, takes the blank away: what was read before a commit is
  not kept after it. An absent row is kept only if nothing was added under an unknown key since, either (`_additions`).
- Entries change under a lock. A hit takes none: it gets the entry in one step, and an entry's value does not change once it has one.
- A child process begins with an empty cache, new locks and a new first look, and whatever else fails, an entry ends with its `ttl`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import duration
from ruv_swarm_store.engines import Changes, Engine, Scope
from ruv_swarm_store.errors import CorruptRow, InvalidValue, NotFound, Unsupported
from ruv_swarm_store.query import Mapping

E = TypeVar("E", bound=msgspec.Struct)

_BLANK = float("-inf")
"""When an entry expires that is not filled yet."""


class CacheStats(msgspec.Struct, frozen=True):
    """What a cache has been good for since it was made."""

    hits: int
    """Reads answered from memory. A few of them may go uncounted where many threads read at once."""
    misses: int
    """Reads answered by the database."""
    evictions: int
    """Rows that had to go for others: the cache was full."""
    invalidations: int
    """Rows that had to go because they were changed, or may have been."""
    size: int
    """Rows it holds now, known to be absent or not."""


class Source(Protocol[E]):
    """The repository behind a cache."""

    mapping: Mapping[Any]

    def find_by_id(self, id: Any) -> E | None:
        """The row with that key, or None."""
        ...

    def find_many(self, ids: Iterable[E | str | int]) -> list[E]:
        """The rows with those keys."""
        ...

    def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
        ...


class _Entry:
    __slots__ = ("additions", "expires", "until", "value")

    def __init__(self, additions: int) -> None:
        self.value: Any = None
        """None for a row that is absent."""
        self.expires = _BLANK
        self.until: int | None = None
        """When the row itself expires, in the store's time."""
        self.additions = additions


class _Closed:
    """The type of no key."""


class CachedRepository(Generic[E]):
    """A noun's rows by key, from memory where that is as good; see `Repository.cached`.

    Close it when it is not needed any more, or drop it; it ends with its store. From then on each read is the store's own.
    """

    def __init__(self, source: Source[E], scope: Scope, *, ttl: float, size: int, probe: float, expiring: bool = False) -> None:
        """`expiring` rows have an `expires_at`, from which on they are absent."""
        if not isinstance(scope, Engine):
            raise Unsupported("a unit of work has no cache: it reads what is committed only when it ends", hint="Use the store's")
        if not duration(ttl, "ttl"):
            raise InvalidValue(f"ttl is {ttl!r}", hint="Give more than a millisecond, or read without a cache")
        duration(probe, "probe")
        self.name = source.mapping.table.name
        self._source = source
        self._engine = scope
        self._caches = scope.caches
        self._ttl = ttl
        self._most = codec.integer(size, "size", 1)
        self.probe = probe
        self._expiring = expiring
        self._kind: type[Any] = int if isinstance(source.mapping.key.type, schema.Int64) else str
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._lock = threading.RLock()  # a finaliser may read in the middle of anything
        self._additions = 0
        self._hits = self._misses = self._evictions = self._invalidations = 0
        self._caches.add(self)

    # Reading

    def find_by_id(self, id: Any) -> E | None:
        """The row with that key, or None; see `Repository.find_by_id`."""
        if type(id) is not self._kind or self._engine.within:
            return self._pass_by(id)
        now = monotonic()
        if now - self._caches.looked > self.probe:
            self._caches.look(self.probe)
        entry = self._entries.get(id)
        if entry is None or not self._is_good(entry, now):
            return self._load(id)
        try:
            self._entries.move_to_end(id)
        except KeyError:  # gone just now
            return self._load(id)
        self._hits += 1
        return entry.value  # type: ignore[no-any-return]

    def peek(self, id: Any, default: Any = None) -> Any:
        """The row with that key, or None, if it can be told without reading or waiting, as a hit is; `default` if not."""
        now = monotonic()
        if type(id) is self._kind and now - self._caches.looked <= self.probe and not self._engine.within:
            entry = self._entries.get(id)
            if entry is not None and self._is_good(entry, now):
                self._hits += 1
                with suppress(KeyError):  # gone just now
                    self._entries.move_to_end(id)
                return entry.value
        return default

    def get(self, id: Any) -> E:
        """The row with that key. Raises `NotFound` when there is none."""
        found = self.find_by_id(id)
        if found is None:
            key = self._source.mapping.identity(id)
            raise NotFound(f"no row {key!r} in {self.name}", id=key)
        return found

    def exists(self, id: Any) -> bool:
        """Whether there is a row with that key."""
        try:
            return self.find_by_id(id) is not None
        except CorruptRow:
            return True

    def find_many(self, ids: Iterable[E | str | int]) -> list[E]:
        """The rows with those keys, in no particular order; absent ones are left out."""
        keys = [self._source.mapping.identity(id) for id in codec.listed(ids, "ids")]
        if self._engine.within or any(type(key) is not self._kind for key in keys):
            return self._source.find_many(keys)
        keys = list(dict.fromkeys(keys))
        now = monotonic()
        if now - self._caches.looked > self.probe:
            self._caches.look(self.probe)
        found: list[E] = []
        missing: dict[Any, _Entry] = {}
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or not self._is_good(entry, now):
                missing[key] = self._begin(key)
                continue
            with suppress(KeyError):
                self._entries.move_to_end(key)
            if entry.value is not None:
                found.append(entry.value)
        self._hits += len(keys) - len(missing)
        return found + self._load_many(missing) if missing else found

    def _is_good(self, entry: _Entry, now: float) -> bool:
        if now >= entry.expires:
            return False
        if entry.value is None:
            return entry.additions == self._additions
        return entry.until is None or self._engine.clock() < entry.until

    def _pass_by(self, id: Any) -> E | None:
        if isinstance(id, msgspec.Struct) and type(key := self._source.mapping.identity(id)) is self._kind:
            return self.find_by_id(key)
        return self._source.find_by_id(id)

    def _load(self, key: Any) -> E | None:
        started = monotonic()
        entry = self._begin(key)
        try:
            found = self._source.find_by_id(key)
            self._fill(key, entry, found, started)
            return found
        except BaseException:
            self._give_up(key, entry)
            raise

    def _load_many(self, missing: dict[Any, _Entry]) -> list[E]:
        started = monotonic()
        try:
            found = self._source.find_many(missing)
            rows = {self._source.mapping.identity(row): row for row in found}
            for key, entry in missing.items():
                self._fill(key, entry, rows.get(key), started)
            return found
        except BaseException:
            for key, entry in missing.items():
                self._give_up(key, entry)
            raise

    def _begin(self, key: Any) -> _Entry:
        """The blank entry that a reader of this key is to fill: its own, or that of one who is reading already."""
        with self._lock:
            self._misses += 1
            entry = self._entries.get(key)
            if entry is None or entry.expires != _BLANK:
                self._entries[key] = entry = _Entry(self._additions)
                if len(self._entries) > self._most:
                    self._entries.popitem(last=False)
                    self._evictions += 1
            self._entries.move_to_end(key)
            return entry

    def _fill(self, key: Any, entry: _Entry, found: E | None, started: float) -> None:
        with self._lock:
            if self._entries.get(key) is entry and entry.expires == _BLANK:
                entry.value = found
                entry.until = getattr(found, "expires_at", None) if self._expiring else None
                entry.expires = started + self._ttl

    def _give_up(self, key: Any, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry and entry.expires == _BLANK:
                del self._entries[key]

    # Letting go

    def invalidate(self, id: Any) -> None:
        """Lets go of one row: the next read of it is the store's own. Commits do that by themselves."""
        self._drop((self._source.mapping.identity(id),))

    def clear(self) -> None:
        """Lets go of every row."""
        with self._lock:
            self._invalidations += len(self._entries)
            self._entries.clear()

    def forget(self, changes: Changes) -> None:
        """Lets go of what was changed. The engine calls it for every commit of this store's."""
        if changes.everything or self.name in changes.tables:
            self.clear()
            return
        if self.name in changes.added:
            with self._lock:
                self._additions += 1
        if keys := changes.keys.get(self.name):
            self._drop(keys)

    def _drop(self, keys: Iterable[Any]) -> None:
        with self._lock:
            for key in keys:
                if self._entries.pop(key, None) is not None:
                    self._invalidations += 1

    def close(self) -> None:
        """Lets go of everything for good. Harmless when repeated."""
        self._kind = _Closed
        self._caches.remove(self)
        self.clear()

    def forked(self) -> None:
        """Begins anew in a child process, where others' locks are held for ever."""
        self._lock = threading.RLock()
        self._entries = OrderedDict()

    def stats(self) -> CacheStats:
        """What it has been good for so far."""
        return CacheStats(self._hits, self._misses, self._evictions, self._invalidations, len(self._entries))

    def __enter__(self) -> CachedRepository[E]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name}, {len(self._entries)} of {self._most}>"
