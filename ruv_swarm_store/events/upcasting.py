"""Upcasters bring the data of old events to today's form when it is read; what is stored stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import structs

from ruv_swarm_store import codec, schema
from ruv_swarm_store.entities import Event
from ruv_swarm_store.errors import CorruptRow, InvalidValue, SchemaMismatch
from ruv_swarm_store.query import Mapping

Upcaster = Callable[[Any], Any]
"""Makes of an event's data in one form the data in the next; a pure function."""


class Upcasters:
    """A store's upcasters, one for each step of an event type from schema version k to k + 1.

    Give them to `Store.open(upcasters=…)`. An event of a type that has some is read in its newest form, whatever form it was written
    in, and a new one is taken to be in that. Types without any are read as they are.
    """

    def __init__(self) -> None:
        self._steps: dict[str, dict[int, Upcaster]] = {}

    def __repr__(self) -> str:
        return f"<Upcasters {', '.join(f'{kind} to {self.newest(kind)}' for kind in sorted(self._steps)) or 'of nothing'}>"

    def register(self, event_type: str, version: int) -> Callable[[Upcaster], Upcaster]:
        """A decorator for the function that brings an event type's data from schema version `version` to the one after it.

        Raises `InvalidValue` when there is one for that step.
        """
        steps = self._steps.setdefault(codec.text(event_type, "event type"), {})
        codec.integer(version, "schema version", 1)

        def add(upcaster: Upcaster) -> Upcaster:
            if version in steps:
                raise InvalidValue(
                    f"there is an upcaster for {event_type!r} from version {version} already", hint="Register each step once"
                )
            steps[version] = upcaster
            return upcaster

        return add

    def newest(self, event_type: str) -> int:
        """The schema version in which events of a type are read: the one that the last of its upcasters leads to, 1 without any."""
        return max(self._steps.get(event_type, ()), default=0) + 1

    def upcast(self, event: Event) -> Event:
        """An event in its newest form.

        Raises `SchemaMismatch` when a step is missing or the event is newer than any, `CorruptRow` when an upcaster fails.
        """
        steps = self._steps.get(event.event_type)
        if not steps:
            return event
        version, newest = event.schema_version, max(steps) + 1
        if version == newest:
            return event
        data = event.event_data
        while version < newest and (step := steps.get(version)) is not None:
            try:
                data = step(data)
            except Exception as error:
                raise CorruptRow(
                    f"event {event.id!r} of type {event.event_type!r} cannot be brought from schema version {version} to {version + 1}",
                    hint="Its upcaster failed: let it take whatever was stored in that version",
                    table=schema.events.name,
                    id=event.id,
                    column=schema.events.c.event_data.name,
                ) from error
            version += 1
        if version != newest:
            raise SchemaMismatch(
                f"event {event.id!r} of type {event.event_type!r} is in schema version {event.schema_version}, "
                f"and no upcaster leads from {version} to {newest}",
                hint="Register the missing step" if version < newest else "It was written by newer code: bring its upcasters here",
                type=event.event_type,
                version=version,
            )
        return structs.replace(event, event_data=data, schema_version=version)


class UpcastMapping(Mapping[Event]):
    """Events as rows, read in their newest form: `load` raises what `Upcasters.upcast` raises, too."""

    __slots__ = ()

    def __init__(self, upcasters: Upcasters) -> None:
        super().__init__(schema.events, Event)
        stored = self.load
        self.load = lambda row: upcasters.upcast(stored(row))
