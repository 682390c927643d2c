"""Makes of a class with verbs that block one with verbs to await. What a verb becomes is told by its form and by a `Recipe`."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from functools import cached_property, partial, update_wrapper
from types import GenericAlias
from typing import Any, Literal

from msgspec import Struct

from ruv_swarm_store.aio.carrying import Feed, carry_out, feed, steps_of
from ruv_swarm_store.aio.crew import Crew, Inline, Undo
from ruv_swarm_store.errors import Closed, InvalidValue

Lane = Literal["writing", "reading", "errands"]
"""Who does it: the thread that writes, those that read, or those for what takes long."""

CALLED = frozenset({"function", "handler", "apply", "progress", "report", "stop", "on_corrupt", "projection"})
"""Parameters that are called where the work is done, in a thread."""

UNKNOWN = object()
"""Stands for a value that only a thread can find."""


class Form(Enum):
    """What a member becomes."""

    VERB = "a coroutine function, done in a thread"
    PLAIN = "the same, for it asks the database nothing"
    WAIT = "a coroutine function; no thread waits"
    WALK = "a function that gives an async iterator, read many at a time"
    FOLLOW = "the same, which waits for more without a thread"
    BLOCK = "a coroutine function that takes the body of the `with` as a function"
    AWAIT = "the coroutine function that it is"
    ASK = "a property that asks the database: a coroutine function"
    HOLD = "a property"
    KEEP = "a coroutine function, which asks no thread for what is in memory"


class Recipe(Struct, frozen=True, kw_only=True):
    """What is to be known of a class beyond what its members' forms say."""

    of: type
    lane: Lane = "writing"
    """Who does its verbs, but for these."""
    reads: Iterable[str] = ()
    """Verbs and iterators that read, and take no longer than a few rows do."""
    errands: Iterable[str] = ()
    """Verbs that take long."""
    plain: Iterable[str] = ()
    """Verbs that ask the database nothing."""
    asks: Iterable[str] = ()
    """Properties that ask the database."""
    holds: Mapping[str, str] = {}
    """Attributes that are set on each object, and their types."""
    without: Iterable[str] = ()
    """What it is not to have."""
    keeps: Mapping[str, Callable[..., Any]] = {}
    """What to return of a row that is in memory, for verbs that take its key: called with the row, or None, and the other arguments."""
    undo: Mapping[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], Undo]] = {}
    """How to take back what a verb has taken whose caller was cancelled: made of its object and arguments, called with what it returned."""

    def members(self, base: type[Derived] | None) -> Iterator[tuple[str, Any, Form]]:
        """What it is to have that its base has not, in the order of writing."""
        known = base.recipe.of.__mro__ if base is not None else object.__mro__
        found: dict[str, Any] = {}
        for kind in reversed(self.of.__mro__):
            if kind not in known and kind.__module__.startswith(__name__.partition(".")[0]):
                found |= vars(kind)
        for name, member in found.items():
            if (form := self.form(name, member)) is not None:
                yield name, member, form
        for name in self.holds:
            yield name, None, Form.HOLD

    def form(self, name: str, member: Any) -> Form | None:
        """What a member becomes; None when it is left out."""
        if name.startswith("_") or name in self.without:
            return None
        if isinstance(member, (property, cached_property)):
            return Form.ASK if name in self.asks else Form.HOLD
        if not inspect.isfunction(member) or (name.endswith("_async") and hasattr(self.of, name.removesuffix("_async"))):
            return None
        if name in self.plain:
            return Form.PLAIN
        returns = str(member.__annotations__.get("return", ""))
        iterates = returns.startswith("Iterator[")
        if hasattr(self.of, f"{name}_async"):
            return Form.FOLLOW if iterates else Form.WAIT
        # What `contextmanager` has made is no generator function, and wraps one.
        manages = iterates and not inspect.isgeneratorfunction(member) and inspect.isgeneratorfunction(inspect.unwrap(member))
        if manages or returns.startswith("AbstractContextManager["):
            return Form.BLOCK
        if iterates:
            return Form.WALK
        if inspect.iscoroutinefunction(member):
            return Form.AWAIT
        return Form.KEEP if name in self.keeps else Form.VERB

    def lane_of(self, name: str) -> Lane:
        """Who does a verb."""
        return "reading" if name in self.reads else "errands" if name in self.errands else self.lane


class Derived:
    """An object whose verbs are to be awaited."""

    __slots__ = ("__weakref__", "_crew", "_of")
    recipe: Recipe

    def __init__(self, crew: Crew | Inline, of: Any) -> None:
        self._crew = crew
        self._of = of

    def __class_getitem__(cls, item: Any) -> Any:
        return GenericAlias(cls, item)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._of!r}>"


_derived: dict[type, type[Any]] = {}
"""What was made of which class."""


def derive(recipe: Recipe, base: type[Any] = Derived, name: str | None = None) -> type[Any]:
    """The class with verbs to await."""
    of = recipe.of
    name = name or f"Async{of.__name__}"
    above = base if base is not Derived else None
    namespace: dict[str, Any] = {"__slots__": (), "__doc__": of.__doc__, "__module__": __name__.rpartition(".")[0], "recipe": recipe}
    for attribute, member, form in recipe.members(above):
        made = _MAKERS[form](recipe, attribute, member)
        if inspect.isfunction(member):
            update_wrapper(made, member)
        if not isinstance(made, (property, cached_property)):
            made.__qualname__ = f"{name}.{attribute}"
        namespace[attribute] = made
    own = {
        key for kind in of.__mro__ if kind is not object and (above is None or kind not in above.recipe.of.__mro__) for key in vars(kind)
    }
    if "__enter__" in own and "__aenter__" not in own:
        namespace |= {"__aenter__": _enter(recipe), "__aexit__": _exit(recipe)}
    if "__iter__" in own:
        namespace["__aiter__"] = _iterate
    if "__str__" in own:
        namespace["__str__"] = lambda self: str(self._of)
    _derived[of] = made = type(name, (base,), namespace)
    return made


def derived(crew: Crew | Inline, value: Any) -> Any:
    """An object of the store's as one whose verbs are to be awaited, if it has any; otherwise as it is."""
    for kind in type(value).__mro__:  # what is watched by a monitor is of a class below the one known here
        if (made := _derived.get(kind)) is not None:
            return made(crew, value)
    return value


def within(begin: Callable[..., AbstractContextManager[Any]], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a function inside a `with` block, with what that gives. Raises `InvalidValue`, which undoes it, when it has to be awaited."""
    with begin(*args, **kwargs) as given:
        return check_returned(function(*given) if isinstance(given, tuple) else function(given), function)


def check_called(*arguments: Any) -> None:
    """Raises `InvalidValue` for a coroutine function: what is called in a transaction, in a thread, cannot await."""
    for argument in arguments:
        for function in (argument, getattr(argument, "apply", None), getattr(argument, "clear", None)):
            if callable(function) and (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
                raise _awaitable(function)


def check_returned(value: Any, *called: Any) -> Any:
    """Raises `InvalidValue` for a value that would have to be awaited, which one of these functions returned."""
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()
        raise _awaitable(next(filter(callable, called)), "returned what has to be awaited")
    return value


def _awaitable(function: Any, what: str = "is a coroutine function") -> InvalidValue:
    return InvalidValue(
        f"{function!r} {what}, and is called in a thread",
        hint="Give an ordinary function, which calls the verbs of the unit of work it is given without await",
    )


# What each form becomes


def _verb(recipe: Recipe, name: str, member: Any) -> Any:
    lane, undo = recipe.lane_of(name), recipe.undo.get(name)
    calls = bool(CALLED.intersection(inspect.unwrap(member).__code__.co_varnames))

    async def verb(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._crew, lane).do(partial(getattr(self._of, name), *args, **kwargs))

    async def calling(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_called(*args, *kwargs.values())
        return check_returned(await verb(self, *args, **kwargs), *args, *kwargs.values())

    async def taking(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert undo is not None
        take_back = undo(self._of, args, kwargs)
        return await getattr(self._crew, lane).take(partial(getattr(self._of, name), *args, **kwargs), take_back)

    async def giving(self: Any, *args: Any, **kwargs: Any) -> Any:
        return derived(self._crew, await verb(self, *args, **kwargs))

    returns = member.__annotations__.get("return")
    gives = returns == "Self" or inspect.unwrap(member).__globals__.get(returns) in _derived
    return giving if gives else taking if undo is not None else calling if calls else verb


def _keep(recipe: Recipe, name: str, member: Any) -> Any:
    lane, answer = recipe.lane_of(name), recipe.keeps[name]
    key = list(inspect.signature(member).parameters)[1]

    async def keep(self: Any, *args: Any, **kwargs: Any) -> Any:
        if key in kwargs and not args:
            args = (kwargs.pop(key),)
        found = self._of.peek(args[0], UNKNOWN) if args else UNKNOWN
        if found is not UNKNOWN and (value := answer(found, *args[1:], **kwargs)) is not UNKNOWN:
            return value
        return await getattr(self._crew, lane).do(partial(getattr(self._of, name), *args, **kwargs))

    return keep


def _plain(recipe: Recipe, name: str, member: Any) -> Any:
    def plain(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_called(*args, *kwargs.values())
        return derived(self._crew, getattr(self._of, name)(*args, **kwargs))

    return plain


def _wait(recipe: Recipe, name: str, member: Any) -> Any:
    lane, undo, pair = recipe.lane_of(name), recipe.undo.get(name), f"{name}_async"

    async def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        check_called(*args, *kwargs.values())
        take_back = None if undo is None else undo(self._of, args, kwargs)
        return await carry_out(self._crew, getattr(self._crew, lane), getattr(self._of, pair)(*args, **kwargs), take_back)

    return wait


def _walk(recipe: Recipe, name: str, member: Any) -> Any:
    lane = recipe.lane_of(name)
    most = 1 if "Iterator[list[" in member.__annotations__["return"] else None

    def walk(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        iterator = getattr(self._of, name)(*args, **kwargs)
        return feed(self._crew, getattr(self._crew, lane), Feed(iterator.__next__, most))

    return walk


def _follow(recipe: Recipe, name: str, member: Any) -> Any:
    lane, pair = recipe.lane_of(name), f"{name}_async"

    def follow(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        check_called(*args, *kwargs.values())
        coming = getattr(self._of, pair)(*args, **kwargs)
        return coming if isinstance(self._crew, Inline) else feed(self._crew, getattr(self._crew, lane), Feed(steps_of(coming)))

    return follow


def _block(recipe: Recipe, name: str, member: Any) -> Any:
    lane = recipe.lane_of(name)
    given = "work, events" if "[tuple[" in member.__annotations__["return"] else "work"

    async def begin(self: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        check_called(function)
        return await getattr(self._crew, lane).do(partial(within, getattr(self._of, name), function, *args, **kwargs))

    def block(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and "function" not in kwargs:  # told here: what `async with` is given nobody would await
            raise InvalidValue(
                f"{name} is no block here, and takes a function that does what the block would",
                hint=f"Write e.g. await ….{name}(lambda {given}: work.config.set('k', 1))",
            )
        return begin(self, *args, **kwargs)

    # It is one, and can be known for one since Python 3.12.
    return getattr(inspect, "markcoroutinefunction", lambda function: function)(block)


def _await(recipe: Recipe, name: str, member: Any) -> Any:
    async def awaits(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self._of, name)(*args, **kwargs)

    return awaits


def _ask(recipe: Recipe, name: str, member: Any) -> Any:
    async def ask(self: Any) -> Any:
        return await self._crew.reading.do(partial(getattr, self._of, name))

    ask.__name__, ask.__doc__ = name, member.__doc__
    return ask


def _hold(recipe: Recipe, name: str, member: Any) -> Any:
    def hold(self: Any) -> Any:
        return derived(self._crew, getattr(self._of, name))

    hold.__doc__ = getattr(member, "__doc__", None)
    return cached_property(hold) if isinstance(member, cached_property) else property(hold)


def _enter(recipe: Recipe) -> Any:
    async def enter(self: Any) -> Any:
        crew, of = self._crew, self._of
        await getattr(crew, recipe.lane).take(partial(crew.begin, of), lambda _: crew.finish(of))
        return self

    return enter


def _exit(recipe: Recipe) -> Any:
    async def leave(self: Any, kind: Any, error: Any, trace: Any) -> None:
        try:
            ending = getattr(self._crew, recipe.lane).do(partial(self._crew.finish, self._of, kind, error, trace))
        except Closed:  # the store has ended, and this with it
            return
        # Whoever is cancelled here does not wait for it to end; it ends all the same.
        await (asyncio.shield(ending) if isinstance(ending, asyncio.Future) else ending)

    return leave


async def _iterate(self: Any) -> AsyncIterator[Any]:
    for entity in await self.all():
        yield entity


_MAKERS: dict[Form, Callable[[Recipe, str, Any], Any]] = {
    Form.VERB: _verb,
    Form.PLAIN: _plain,
    Form.WAIT: _wait,
    Form.WALK: _walk,
    Form.FOLLOW: _follow,
    Form.BLOCK: _block,
    Form.AWAIT: _await,
    Form.ASK: _ask,
    Form.HOLD: _hold,
    Form.KEEP: _keep,
}
