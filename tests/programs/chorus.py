"""Several stores as one: every verb is sung by all of them, and all must answer the same.

What may differ is left out of the comparison: positions, of which only the order counts. Ids that a store gives are made the
same by giving each store the same random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from msgspec import Struct, structs

from ruv_swarm_store import Store, clock

NUMBERS = {"position": None, "message_position": "Message", "joined_position": "Message"}
"""Fields that hold a position: of the entity they belong to, or of which other."""


class Voice:
    """One of the stores, and what its positions are called in the first one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.first: dict[tuple[str, int], int] = {}
        self.own: dict[tuple[str, int], int] = {}

    def learn(self, answer: Any, firsts: Any) -> None:
        """Notes which positions mean the same, from two answers to one question."""
        if isinstance(answer, Struct) and isinstance(firsts, Struct) and type(answer) is type(firsts):
            if isinstance(position := getattr(answer, "position", None), int):
                kind = type(answer).__name__
                self.first[kind, position] = firsts.position  # type: ignore[attr-defined]
                self.own[kind, firsts.position] = position  # type: ignore[attr-defined]
        elif isinstance(answer, (list, tuple)) and isinstance(firsts, (list, tuple)):
            for one, other in zip(answer, firsts, strict=False):
                self.learn(one, other)

    def translated(self, value: Any, names: Mapping[tuple[str, int], int]) -> Any:
        """A value with its positions renamed."""
        if isinstance(value, Struct):
            changes = {
                field: names[kind or type(value).__name__, getattr(value, field)]
                for field, kind in NUMBERS.items()
                if (kind or type(value).__name__, getattr(value, field, None)) in names
            }
            return structs.replace(value, **changes) if changes else value
        if isinstance(value, (list, tuple)):
            return type(value)(self.translated(item, names) for item in value)
        if isinstance(value, dict):
            return {key: self.translated(item, names) for key, item in value.items()}
        return value


class Chorus:
    """Looks like a store, or like a unit of work on it."""

    def __init__(self, singers: Mapping[str, Any], voices: Mapping[str, Voice] | None = None) -> None:
        self._singers = singers
        self._voices = voices or {name: Voice(name) for name in singers}

    def __getattr__(self, name: str) -> Any:
        if callable(getattr(next(iter(self._singers.values())), name)):
            return lambda *args, **kwargs: self._sing(lambda singer: getattr(singer, name), args, kwargs)
        return _Part(self, name)

    @contextmanager
    def transaction(self) -> Iterator[Chorus]:
        with ExitStack() as opened:
            yield Chorus({name: opened.enter_context(singer.transaction()) for name, singer in self._singers.items()}, self._voices)

    def close(self) -> None:
        for singer in self._singers.values():
            singer.close()

    def _sing(self, verb: Callable[[Any], Callable[..., Any]], args: Any, kwargs: Any) -> Any:
        args = [list(arg) if isinstance(arg, Iterator) else arg for arg in args]
        answers = {}
        state = clock._random.getstate()
        for name, singer in self._singers.items():
            voice = self._voices[name]
            clock._random.setstate(state)
            clock._series = clock._new_series(-1)
            try:
                answer = verb(singer)(*voice.translated(args, voice.own), **voice.translated(kwargs, voice.own))
            except Exception as error:
                answer = error
            answers[name] = answer
        first, *others = answers
        for other in others:
            self._compare(first, answers[first], other, answers[other])
        if isinstance(answers[first], Exception):
            raise answers[first]
        return answers[first]

    def _compare(self, first: str, wanted: Any, other: str, answer: Any) -> None:
        voice = self._voices[other]
        if isinstance(wanted, Exception) or isinstance(answer, Exception):
            assert (type(answer), str(answer)) == (type(wanted), str(wanted)), f"{other} does not answer as {first} does"
            return
        voice.learn(answer, wanted)
        assert voice.translated(answer, voice.first) == wanted, f"{other} does not answer as {first} does"


class _Part:
    """One repository of every store."""

    def __init__(self, chorus: Chorus, name: str) -> None:
        self._chorus = chorus
        self._name = name

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._chorus._sing(lambda singer: getattr(getattr(singer, self._name), verb), args, kwargs)


class Databases:
    """Looks like an empty database: one of each engine, opened as one store."""

    def __init__(self, databases: Mapping[str, Any]) -> None:
        self._databases = databases

    def open(self, **options: Any) -> Chorus:
        stores: dict[str, Store] = {name: database.open(**options) for name, database in self._databases.items()}
        return Chorus(stores)

    def close(self) -> None:
        for database in self._databases.values():
            database.close()
