"""`AsyncStore`: a store whose verbs are awaited."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from importlib import import_module
from inspect import signature
from types import TracebackType
from typing import Any, NoReturn, Self, cast

from sqlalchemy import Executable, Row, SelectBase

import ruv_swarm_store.aio.nouns  # noqa: F401 - makes them
from ruv_swarm_store.aio.crew import Crew, Inline, Refusal
from ruv_swarm_store.aio.deriving import Recipe, derive
from ruv_swarm_store.engines import IN_BROWSER
from ruv_swarm_store.errors import Closed
from ruv_swarm_store.store import Store

_TOOLS = "ruv_swarm_store.aio.tools"
"""What makes backups and the monitor, when they are first asked for."""
_Verbs = derive(
    Recipe(
        of=Store,
        reads=("storing",),
        errands=("check",),
        plain=("backup_to",),
        without=("open", "open_async", "close", "close_async"),
    )
)


class AsyncStore(_Verbs):  # type: ignore[misc,valid-type]
    """A swarm's state, in a database, for coroutines: the nouns and verbs of `Store`, each to be awaited.

        async with AsyncStore.open("swarm.db") as store:
            scout = await store.agents.register("scout")
            await store.tasks.enqueue("crawl", {"url": "https://example.com"})
            task = await store.tasks.wait(scout)

    The work is done in threads, one of which writes. Whoever is cancelled has done nothing if his turn had not come; what had begun is done
    to its end, and a task or message it took for him is given back. Any number of event loops may share one.
    """

    def __init__(self, crew: Crew | Inline, store: Store) -> None:
        super().__init__(crew, store)
        self._closed = False

    @classmethod
    def open(cls, address: str | os.PathLike[str] | None = None, **options: Any) -> Opening:
        """Opens a store: `async with AsyncStore.open(…) as store`, or `store = await AsyncStore.open(…)`. See `Store.open`."""
        return Opening(address, options)

    async def execute(self, statement: Executable, params: Mapping[str, Any] | None = None) -> Sequence[Row[*tuple[Any, ...]]]:
        """Runs any SQLAlchemy statement and returns its rows; see `Store.execute`."""
        lane = self._crew.reading if isinstance(statement, SelectBase) else self._crew.writing
        rows: Sequence[Row[*tuple[Any, ...]]] = await lane.do(lambda: self._of.execute(statement, params))
        return rows

    @property
    def backups(self) -> Any:
        """The store's backups, where they are kept unless you say otherwise; see `Store.backups`."""
        import_module(_TOOLS)
        return super().backups

    def backup_to(self, *args: Any, **kwargs: Any) -> Any:
        """The store's backups in a directory, at a URL, or in any `BackupStorage`; see `Store.backup_to`."""
        import_module(_TOOLS)
        return super().backup_to(*args, **kwargs)

    @property
    def monitor(self) -> Any:
        """What this store's verbs and statements take; see `Store.monitor`."""
        import_module(_TOOLS)
        return super().monitor

    async def close(self) -> None:
        """Ends every connection once all that was asked for before is done; what is asked for later raises `Closed`.

        Harmless when repeated. Who is cancelled here does not wait for it; it ends all the same.
        """
        self._closed = True
        if isinstance(self._crew, Inline):
            self._crew.finish_all()
            await self._of.close_async()
        else:
            await self._crew.end(self._refusal(), self._of.close)

    def _refusal(self) -> Refusal:
        return partial(Closed, f"the store at {self._of.address} is closed", hint="Open it again with AsyncStore.open")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    def __del__(self, _warn: Callable[..., None] = warnings.warn, _exiting: Callable[[], bool] = sys.is_finalizing) -> None:
        if getattr(self, "_closed", True):
            return
        _warn(f"{self!r} was never closed", ResourceWarning, source=self, stacklevel=2)
        self._of._closed = True  # which would warn, too
        if _exiting():
            return  # its threads are gone, and what they held is held for ever
        if isinstance(self._crew, Crew):
            self._crew.drop(self._refusal(), self._of.close)
        else:
            self._of._engine.drop()

    def __repr__(self) -> str:
        return f"<AsyncStore {self._of.address}{' closed' if self._closed else ''}>"


# What `help` and editors that ask the running program show.
cast("Any", AsyncStore.open).__func__.__signature__ = signature(cast("Any", Store.open).__func__).replace(return_annotation="Opening")


class Opening:
    """A store that is being opened: await it, or let `async with` open it and close it in the end."""

    def __init__(self, address: str | os.PathLike[str] | None, options: dict[str, Any]) -> None:
        self._address = address
        self._options = options
        self._store: AsyncStore | None = None

    async def _open(self) -> AsyncStore:
        if IN_BROWSER:
            store = await Store.open_async(self._address, **self._options)
            return AsyncStore(Inline(store.flush if self._options.get("durability") == "full" else None), store)
        crew = Crew()
        try:
            store = await crew.writing.take(lambda: Store.open(self._address, **self._options), Store.close)
        except BaseException:
            crew.drop(partial(Closed, "the store was not opened"), lambda: None)
            raise
        crew.equip(store.capabilities, store._engine.wait_async)
        return AsyncStore(crew, store)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"there is no {name!r} before the store is open: store = await AsyncStore.open(…), or async with AsyncStore.open(…) as store",
            name=name,
            obj=self,
        )

    def __await__(self) -> Generator[Any, None, AsyncStore]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncStore:
        self._store = await self._open()
        return self._store

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        assert self._store is not None
        await self._store.close()
