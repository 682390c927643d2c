"""Has the verbs of repositories timed: their class is swapped for one that does what the plain class does, and takes the time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, cached_property, partial, wraps
from time import perf_counter
from types import CodeType, TracebackType
from typing import Any, Generic, TypeVar

from ruv_swarm_store.repository import Repository
from ruv_swarm_store.timings import BATCH, Timings

C = TypeVar("C")
LAZY = ("Iterator", "AsyncIterator", "Query")
"""What returns one of these has not begun when it returns."""
TRANSACTION = "transaction"
"""The name under which whole units of work are timed."""

Span = Callable[[str], AbstractContextManager[object]]
"""Opens what surrounds an operation of that name."""


class Verbs:
    """Times the verbs of repositories under names such as `tasks.claim`."""

    def __init__(self, timings: Callable[[str], Timings], span: Span | None = None) -> None:
        """`timings` finds those of a name; `span` is opened around every operation."""
        self._timings = timings
        self._span = span
        self._kinds: dict[type[Any], type[Any]] = {}

    def put(self, repository: Any, twin: Repository[Any], noun: str) -> None:
        """From now on times the verbs of a repository, which are done by its twin, so that what one calls of the others is part of it."""
        repository._plain = twin  # left there for good: a verb may be on its way when the timing ends
        repository.__class__ = self._kind(type(repository), noun)

    def _kind(self, plain: type[Any], noun: str) -> type[Any]:
        kind = self._kinds.get(plain)
        if kind is None:
            verbs = {name: self._timed(verb, f"{noun}.{name}") for name, verb in timeable(plain).items()}
            kind = self._kinds[plain] = type(plain.__name__, (plain,), {"__module__": plain.__module__, "_of": plain, **verbs})
        return kind

    def executing(self, plain: type[C]) -> type[C]:
        """The kind of store or unit of work whose `execute` is timed."""
        here: Any = plain
        verbs = {"execute": self._timed(here.execute, "execute")}
        kind: Any = type(plain.__name__, (plain,), {"__module__": plain.__module__, "_of": plain, **verbs})
        return kind  # type: ignore[no-any-return]

    def unit(self, plain: type[C], nouns: Iterable[str]) -> type[C]:
        """The kind of unit of work whose verbs, and those of its repositories, are timed."""
        kind: Any = self.executing(plain)
        for noun in nouns:
            timed = cached_property(self._repository(noun, inspect.getattr_static(plain, noun)))
            timed.__set_name__(kind, noun)
            setattr(kind, noun, timed)
        return kind  # type: ignore[no-any-return]

    def begin(self, plain: Callable[[], AbstractContextManager[C]]) -> Callable[[], AbstractContextManager[C]]:
        """Begins units of work as `plain` does, and takes the time until they have ended."""
        timings, span = self._timings(TRANSACTION), self._span
        if span is None:
            return lambda: _Timed(plain(), timings)

        @contextmanager
        def begin() -> Iterator[C]:
            with span(TRANSACTION), _Timed(plain(), timings) as work:
                yield work

        return begin

    def _repository(self, noun: str, made: cached_property[Any]) -> Callable[[Any], Any]:
        kind: Any = None

        def make(work: Any) -> Any:
            nonlocal kind
            plain = made.func(work)
            if kind is None:  # of an object that is timed as long as it lasts, and has all else in common with its twin
                kind = type(
                    type(plain).__name__, (self._kind(type(plain), noun),), {"__module__": type(plain).__module__, "__slots__": "_plain"}
                )
            timed = kind.__new__(kind)
            timed._plain = plain
            timed.__dict__ = plain.__dict__
            return timed

        return make

    def _timed(self, verb: Callable[..., Any], name: str) -> Callable[..., Any]:
        waited_for = inspect.iscoroutinefunction(verb)
        timed = _called(verb, self._timings(name))
        if self._span is None:
            return timed
        return (_awaited_in if waited_for else _called_in)(partial(self._span, name), timed)


class _Timed(Generic[C]):
    """A context manager, and the time from before it is entered until it has ended."""

    __slots__ = ("_plain", "_started", "_timings")

    def __init__(self, plain: AbstractContextManager[C], timings: Timings) -> None:
        self._plain = plain
        self._timings = timings

    def __enter__(self) -> C:
        self._started = perf_counter()
        try:
            return self._plain.__enter__()
        except BaseException:
            self._timings.fail(perf_counter() - self._started)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        try:
            swallowed = self._plain.__exit__(kind, error, trace)
        except BaseException:
            self._timings.fail(perf_counter() - self._started)
            raise
        if error is None:
            note(self._timings, perf_counter() - self._started)
        else:
            self._timings.fail(perf_counter() - self._started)
        return swallowed


def _called(verb: Callable[..., Any], timings: Timings) -> Callable[..., Any]:
    """The method that takes the time of a verb. It has the verb's own parameters: taking and giving on any costs as much as all else."""
    namespace: dict[str, Any] = {
        "_batch": BATCH,
        "_fail": timings.fail,
        "_fold": timings.fold,
        "_now": perf_counter,
        "_pending": timings.pending,
        "_verb": verb,
    }
    exec(_timing(verb), namespace)
    timed: Any = namespace["timed"]
    plain: Any = inspect.unwrap(verb)
    timed.__defaults__, timed.__kwdefaults__ = plain.__defaults__, plain.__kwdefaults__
    return wraps(verb)(timed)


_TIMED = """
{define} timed{parameters}:
    _started = _now()
    try:
        _result = {call}({arguments})
    except BaseException:
        _fail(_now() - _started)
        raise
    _pending.append(_now() - _started)
    if len(_pending) >= _batch:
        _fold()
    return _result
"""


@cache
def _timing(verb: Callable[..., Any]) -> CodeType:
    signature = inspect.signature(verb)
    plain: Any = inspect.Parameter.empty
    bare = [given.replace(annotation=plain, default=plain if given.default is plain else None) for given in signature.parameters.values()]
    waited_for = inspect.iscoroutinefunction(verb)
    source = _TIMED.format(
        define="async def" if waited_for else "def",
        parameters=inspect.Signature(bare),
        call="await _verb" if waited_for else "_verb",
        arguments=", ".join([f"{bare[0].name}._plain", *(_PASSED.get(given.kind, "{0}").format(given.name) for given in bare[1:])]),
    )
    return compile(source, f"<the timing of {verb.__qualname__}>", "exec")


_PASSED: dict[object, str] = {
    inspect.Parameter.KEYWORD_ONLY: "{0}={0}",
    inspect.Parameter.VAR_POSITIONAL: "*{0}",
    inspect.Parameter.VAR_KEYWORD: "**{0}",
}


def _called_in(span: Callable[[], AbstractContextManager[object]], timed: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(timed)
    def run(*args: Any, **kwargs: Any) -> Any:
        with span():
            return timed(*args, **kwargs)

    return run


def _awaited_in(span: Callable[[], AbstractContextManager[object]], timed: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(timed)
    async def run(*args: Any, **kwargs: Any) -> Any:
        with span():
            return await timed(*args, **kwargs)

    return run


def note(timings: Timings, seconds: float) -> None:
    """Counts what took so many seconds."""
    timings.add(seconds)
    if len(timings.pending) >= BATCH:
        timings.fold()


def put_off(timed: object) -> None:
    """Ends the timing of a repository's or a store's verbs."""
    if (plain := getattr(type(timed), "_of", None)) is not None:
        timed.__class__ = plain


def timeable(repository: type[Any]) -> dict[str, Callable[..., Any]]:
    """The verbs of a repository that have done what they are for when they return, by name."""
    verbs = inspect.getmembers(repository, inspect.isfunction)
    return {name: verb for name, verb in verbs if not name.startswith("_") and not _lazy(verb)}


def _lazy(verb: Callable[..., Any]) -> bool:
    return str(verb.__annotations__.get("return")).startswith(LAZY)
