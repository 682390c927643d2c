"""Projections: what the events add up to, kept in tables of one's own, rebuilt beside what readers see and then switched to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Text, delete, select, update

from ruv_swarm_store import codec, schema
from ruv_swarm_store.engines import Executor, Scope, Steps, block, constant, cooperate, give_way, insert_into, parameter
from ruv_swarm_store.entities import Build, BuildState, ConsumerKind, Event
from ruv_swarm_store.errors import Conflict, InvalidValue, NotFound
from ruv_swarm_store.events.advancing import Advance, Begin, Superseded, call
from ruv_swarm_store.events.cursors import CURSOR, Cursor, Stretch, checked_types, lag, stretch
from ruv_swarm_store.events.following import LONGEST_PAUSE, Stop, arrival
from ruv_swarm_store.query import Mapping
from ruv_swarm_store.repository import repeatable

if TYPE_CHECKING:
    from ruv_swarm_store.store import UnitOfWork

BUILDS = Mapping(schema.event_projections, Build, key="name")
SLOTS: Final = ("a", "b")
"""The two places a projection has: readers look at one while the other is being built."""
BATCH = 500
"""Events applied in a transaction while a projection is being built."""
ATTEMPTS = 10
"""How often to look for the live slot when it changes meanwhile."""

Progress = Callable[[int, int], object]
"""Called with the position reached and that of the newest event."""

_b = schema.event_projections.c
_of = _b.name == parameter("name", Text)
_slot = _b.slot == parameter("slot", Text)


def _state(state: BuildState) -> Any:
    return constant(_b.state, state)


_BUILDS = select(*BUILDS.columns).where(_of).order_by(_b.slot)
_LIVE = select(_b.slot).where(_of, _b.state == BuildState.LIVE)
_LIVE_AND_HOLD = _LIVE.with_for_update(read=True)
_ADD = insert_into(schema.event_projections)
_REMOVE = delete(schema.event_projections).where(_of, _slot)
_RETIRE = (
    update(schema.event_projections)
    .where(_of, _b.state == BuildState.LIVE)
    .values(state=_state(BuildState.RETIRED), changed_at=parameter("now", schema.Int64))
)
_GO_LIVE = (
    update(schema.event_projections).where(_of, _slot).values(state=_state(BuildState.LIVE), changed_at=parameter("now", schema.Int64))
)


class Projection(Protocol):
    """What you write: how events change your own tables, each of which you have once for each slot.

    Everything goes through `work`, so that it commits together with how far the projection has come. Another `version` says that
    the tables, or what `apply` does, are not what they were: what is there has to be built again.
    """

    @property
    def name(self) -> str:
        """Tells it from other projections."""
        ...

    @property
    def version(self) -> int:
        """A number that grows with every change of what the projection makes of the events."""
        ...

    def apply(self, work: UnitOfWork, event: Event, slot: str) -> object:
        """Changes a slot by one event. They come in order, each exactly once."""
        ...

    def clear(self, work: UnitOfWork, slot: str) -> object:
        """Empties a slot, whichever version has filled it, and however far that had come; makes its tables where there are none."""
        ...


def _live_of(builds: Iterable[Build]) -> Build | None:
    return next((build for build in builds if build.state is BuildState.LIVE), None)


def live_slot(scope: Scope, name: str) -> str | None:
    """The slot of a projection to read; None before it was built for the first time."""
    params = {"name": codec.text(name, "name")}
    with scope.read() as run:
        found = run.one(_LIVE, params)
        if run.holding:
            # One that a switch has held is not live any more once it can be held here: then it is the other.
            while found is not None and (held := run.one(_LIVE_AND_HOLD, params)) != found:
                found = held or run.one(_LIVE, params)
    return None if found is None else str(found[0])


class Projector:
    """Keeps a projection: builds it, keeps it up with the events, and builds it again beside what readers see.

    Any number of threads and processes may do this for one projection: they take turns, and what was done when one of them dies is
    done once.
    """

    def __init__(self, scope: Scope, begin: Begin, mapping: Mapping[Event], projection: Projection, types: Iterable[str] | None) -> None:
        if absent := [part for part in ("name", "version", "apply", "clear") if not hasattr(projection, part)]:
            raise InvalidValue(f"{projection!r} is no projection: it has no {absent[0]}", hint="Give what `Projection` describes")
        self.projection = projection
        self.name = codec.text(projection.name, "name")
        self.version = codec.integer(projection.version, "version", 1)
        self._scope = scope
        self._begin = begin
        self._mapping = mapping
        self._types = checked_types(types)

    # What there is

    @property
    def live(self) -> str | None:
        """The slot to read; None before the first build is done.

        In a unit of work it stays the one to read until that ends; outside, a switch may come between asking and reading.
        """
        return live_slot(self._scope, self.name)

    def builds(self) -> Sequence[Build]:
        """What the slots hold, by slot."""
        with self._scope.read() as run:
            return self._builds(run)

    @property
    def due(self) -> bool:
        """Whether a build is due: there is none for readers, or that was made by an older version of the projection."""
        live = self._live()
        return live is None or live.version < self.version

    def lag(self) -> int:
        """How many events the live slot has still to take in. Raises `NotFound` when there is none."""
        live = self._live()
        if live is None:
            raise NotFound(f"projection {self.name!r} was not built yet", hint="Build it: rebuild(), or run()", name=self.name)
        with self._scope.read() as run:
            return lag(run, self._cursor(live.slot).ahead(run)[0], self._types)

    # Building

    def rebuild(self, *, progress: Progress | None = None, batch: int = BATCH, stop: Stop | None = None) -> bool:
        """Builds the projection from the first event on in the slot that nobody reads, and switches readers over once it has caught up.

        Until then what readers see is as it was, and may be kept up to date by others. A build that was begun by this version of the
        projection, and given up or killed, goes on where it stopped. The switch is one transaction; then the old slot is cleared.
        `batch` is how many events a transaction takes in. False when `stop()` ended it before. Raises `Conflict` when a build of
        another version takes its place, and what `apply` raises, after undoing that transaction.
        """
        codec.integer(batch, "batch", 1)
        build, before = self._start()
        advance = self._advance(build.slot, BuildState.BUILDING)
        try:
            while stop is None or not stop():
                part = advance.next(batch)
                if part.more:
                    self._apply(advance, part, build.slot)
                elif self._switch(advance, part, build.slot, batch):
                    self._tell(progress, build.slot)
                    self.tidy()
                    return True
                self._tell(progress, build.slot)
        except (NotFound, Superseded) as error:
            if isinstance(error, NotFound) and error.data.get("name") != advance.cursor.name:
                raise
            live = self._live()
            if live is None or live == before or live.version != self.version:
                raise Conflict(
                    f"the build of projection {self.name!r} was superseded by another",
                    hint="Let one version of the projection be built at a time",
                    name=self.name,
                ) from error
            return True  # somebody else who was building it has switched, and others may have built it anew since
        return False

    @repeatable
    def _start(self) -> tuple[Build, Build | None]:
        """The build to go on with, or a new one in a slot that was cleared; and what readers see until it is done."""
        with self._begin() as work:
            with self._scope.transaction() as run:
                builds = self._lock(run)
                live = _live_of(builds)
                for build in builds:
                    if build.state is BuildState.BUILDING and build.version > self.version:
                        raise self._older(build.version)
                    if build.state is BuildState.BUILDING and build.version == self.version:
                        return build, live
                slot = next(slot for slot in SLOTS if live is None or slot != live.slot)
                cursor = self._cursor(slot)
                cursor.remove(run)
                cursor.establish(0)
                run.run(_REMOVE, {"name": self.name, "slot": slot})
                build = Build(self.name, slot, BuildState.BUILDING, self.version, run.now)
                run.insert(_ADD, BUILDS.dump(build))
            self.projection.clear(work, slot)
            return build, live

    @repeatable
    def _switch(self, advance: Advance, part: Stretch, slot: str, batch: int) -> bool:
        """Takes in the rest and lets readers look at the slot, in one transaction; False when there was too much of a rest."""
        try:
            with self._begin() as work:
                with self._scope.transaction() as run:
                    builds = self._lock(run)
                    # Nobody goes on in either slot now, so that readers are not taken back behind what they have seen.
                    names = codec.encode([self._cursor(each).name for each in SLOTS])
                    run.hold(CURSOR, {"names": names})
                    self._expect(builds, slot, BuildState.BUILDING)
                    rest = stretch(run, advance.cursor.consumer().position, advance.types, batch)
                if rest.more:
                    return False
                for event in self._mapping.load_all(rest.rows):
                    call(lambda work, event: self.projection.apply(work, event, slot), work, event)
                with self._scope.transaction() as run:
                    self._cursor(slot).move(run, rest.after, rest.until)
                    for build in builds:
                        if build.state is BuildState.LIVE:
                            self._cursor(build.slot).remove(run)
                    run.run(_RETIRE, {"name": self.name, "now": run.now})
                    run.run(_GO_LIVE, {"name": self.name, "slot": slot, "now": run.now})
            return True
        except Superseded:
            raise
        except Exception as error:
            advance.failed(part, error)
            raise

    @repeatable
    def tidy(self) -> None:
        """Clears a slot that readers were switched away from, where whoever did that has not got to it."""
        if not any(build.state is BuildState.RETIRED for build in self.builds()):
            return
        with self._begin() as work:
            with self._scope.transaction() as run:
                retired = [build.slot for build in self._lock(run) if build.state is BuildState.RETIRED]
                for slot in retired:
                    run.run(_REMOVE, {"name": self.name, "slot": slot})
            for slot in retired:
                self.projection.clear(work, slot)

    @repeatable
    def remove(self) -> None:
        """Clears both slots and forgets the projection."""
        with self._begin() as work:
            with self._scope.transaction() as run:
                self._lock(run)
                for slot in SLOTS:
                    self._cursor(slot).remove(run)
                    run.run(_REMOVE, {"name": self.name, "slot": slot})
            for slot in SLOTS:
                self.projection.clear(work, slot)

    # Keeping up

    def catch_up(self, *, batch: int = BATCH) -> int:
        """Takes in what the live slot has not yet; how many events that was.

        Raises `NotFound` before the first build and `Conflict` when the slot was built by another version of the projection.
        """
        codec.integer(batch, "batch", 1)
        done = 0
        while (found := self._ahead(batch)) is not None:
            done += self._take_in(*found)
        return done

    def run(self, *, progress: Progress | None = None, batch: int = BATCH, timeout: float | None = None, stop: Stop | None = None) -> int:
        """Builds the projection if that is due, then keeps it up with the events as they come; how many it has taken in since then.

        It ends when nothing has come for `timeout` seconds, or soon after `stop()` is true. When the projection is built again by
        others it goes on with what they have built. Raises `Conflict` when that, or what is there, is of a newer version.
        """
        if not self._prepare(progress, batch, stop):
            return 0
        done = 0
        while (found := block(self._scope, self._coming(batch, timeout, stop))) is not None:
            done += self._take_in(*found)
        return done

    async def run_async(
        self, *, progress: Progress | None = None, batch: int = BATCH, timeout: float | None = None, stop: Stop | None = None
    ) -> int:
        """`run`, while the event loop goes on; not while it builds."""
        if not self._prepare(progress, batch, stop):
            return 0
        done = 0
        while (found := await cooperate(self._scope, self._coming(batch, timeout, stop))) is not None:
            done += self._take_in(*found)
            await give_way(self._scope)
        return done

    def _prepare(self, progress: Progress | None, batch: int, stop: Stop | None) -> bool:
        codec.integer(batch, "batch", 1)
        if self.due and not self.rebuild(progress=progress, batch=batch, stop=stop):
            return False
        self.tidy()
        return True

    def _coming(self, batch: int, timeout: float | None, stop: Stop | None) -> Steps[tuple[Advance, Stretch, str] | None]:
        return arrival(self._scope, lambda: (self._ahead(batch), LONGEST_PAUSE), timeout, stop)

    def _ahead(self, batch: int) -> tuple[Advance, Stretch, str] | None:
        """What comes next for the live slot, if anything."""
        for _ in range(ATTEMPTS):
            live = self._live()
            if live is None:
                raise NotFound(f"projection {self.name!r} was not built yet", hint="Build it: rebuild(), or run()", name=self.name)
            if live.version != self.version:
                raise self._older(live.version)
            advance = self._advance(live.slot, BuildState.LIVE)
            try:
                part = advance.next(batch)
            except (NotFound, Superseded):
                continue  # readers were switched to the other slot meanwhile
            return None if part.empty else (advance, part, live.slot)
        return None

    def _take_in(self, advance: Advance, part: Stretch, slot: str) -> int:
        try:
            return self._apply(advance, part, slot)
        except Superseded:
            return 0

    def _apply(self, advance: Advance, part: Stretch, slot: str) -> int:
        """Takes in what was read; how many events that was, none when others have."""
        return advance.handle(part, lambda work, event: self.projection.apply(work, event, slot)) or 0

    # Inside

    def _cursor(self, slot: str) -> Cursor:
        return Cursor(self._scope, f"projection:{self.name}:{slot}", ConsumerKind.PROJECTION)

    def _advance(self, slot: str, state: BuildState) -> Advance:
        """What reads the events for a slot, as long as that is in this state."""

        def guard(run: Executor) -> None:
            self._expect(self._builds(run), slot, state)

        return Advance(self._scope, self._begin, self._mapping, self._cursor(slot), self._types, guard)

    def _expect(self, builds: Sequence[Build], slot: str, state: BuildState) -> None:
        if not any(build.slot == slot and build.state is state and build.version == self.version for build in builds):
            raise Superseded

    def _builds(self, run: Executor) -> Sequence[Build]:
        return BUILDS.load_all(run.all(_BUILDS, {"name": self.name}))

    def _live(self) -> Build | None:
        return _live_of(self.builds())

    def _lock(self, run: Executor) -> Sequence[Build]:
        """What the slots hold, which nobody else changes until the transaction ends."""
        run.lock(f"projection:{self.name}")
        return self._builds(run)

    def _older(self, actual: int) -> Conflict:
        return Conflict(
            f"projection {self.name!r} is in the hands of its version {actual}, and this is {self.version}",
            hint="Run the newer code" if actual > self.version else "Build it again: rebuild(), or run()",
            expected=self.version,
            actual=actual,
        )

    def _tell(self, progress: Progress | None, slot: str) -> None:
        if progress is not None:
            with self._scope.read() as run:
                progress(*self._cursor(slot).ahead(run))

    def __repr__(self) -> str:
        return f"<Projector {self.name!r} version {self.version}>"
