"""Carries out what waits, and what goes on and on, in steps: each is done in a thread, and none is held in between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any, NamedTuple

from ruv_swarm_store.aio.crew import Crew, Doing, Inline, Undo
from ruv_swarm_store.engines import Pause

MOST = 500
"""Most items that an iterator hands over at a time."""
SLICE = 0.002
"""Seconds after which it hands over what it has."""


class _End(NamedTuple):
    """What a verb returned."""

    value: Any


async def carry_out(crew: Crew | Inline, lane: Doing, verb: Coroutine[Any, Any, Any], undo: Undo | None) -> Any:
    """What a verb returns that waits for others: it looks in a thread, and waits on the event loop.

    Cancelled while it waits, it has taken nothing; while it looks, that is taken back by `undo`. All its steps have one context: what it
    has set in one, its span for example, is there in the next, and can be reset.
    """
    if isinstance(crew, Inline):
        return await crew.keep(await verb, undo)
    assert crew.pause is not None
    context = copy_context()
    take_back = partial(_take_back, context, verb, undo)
    step = partial(_step, context, verb)
    try:
        while True:
            came = await lane.take(step, take_back)
            if isinstance(came, _End):
                return came.value
            if came.seconds > 0:
                await crew.pause(*came)
            else:
                await asyncio.sleep(0)
    finally:
        _close(context, verb)


def _step(context: Context, verb: Coroutine[Any, Any, Any]) -> Pause | _End:
    try:
        pause: Pause = context.run(verb.send, None)
    except StopIteration as end:
        return _End(end.value)
    return pause


def _take_back(context: Context, verb: Coroutine[Any, Any, Any], undo: Undo | None, came: Pause | _End) -> None:
    if not isinstance(came, _End):
        _close(context, verb)
    elif undo is not None:
        undo(came.value)


def _close(context: Context, verb: Coroutine[Any, Any, Any]) -> None:
    with suppress(RuntimeError, ValueError):  # another thread is in its context, or in it: that one closes it when its step is done
        context.run(verb.close)


class Feed:
    """An iterator whose items are taken many at a time."""

    def __init__(self, following: Callable[[], Any], most: int | None = None) -> None:
        """`following` gives the next item, or a `Pause`; `StopIteration` ends it. At most so many are taken at a time."""
        self.ended = False
        """Whether there is nothing to come."""
        self._following = following
        self._most = most or MOST
        self._failure: Exception | None = None

    def pull(self) -> tuple[list[Any], Pause | None]:
        """The next items; and for what to wait before there can be more."""
        if self._failure is not None:
            raise self._failure
        items: list[Any] = []
        until = time.monotonic() + SLICE
        while len(items) < self._most:
            try:
                item = self._following()
            except StopIteration:
                self.ended = True
                break
            except Exception as error:
                if not items:
                    raise
                self._failure = error  # after what came before it
                break
            if isinstance(item, Pause):
                return items, item
            items.append(item)
            if time.monotonic() > until:
                break
        return items, None


def steps_of(source: AsyncIterator[Any]) -> Callable[[], Any]:
    """What gives the next item of an async iterator, or the `Pause` at which it has nothing to do: away from any event loop."""
    pending: Coroutine[Any, Any, Any] | None = None

    def following() -> Any:
        nonlocal pending
        step: Any = source.__anext__() if pending is None else pending
        try:
            pause = step.send(None)
        except StopIteration as end:
            pending = None
            return end.value
        except StopAsyncIteration:
            raise StopIteration from None
        pending = step
        return pause

    return following


async def feed(crew: Crew | Inline, lane: Doing, source: Feed) -> AsyncIterator[Any]:
    """The items of a feed."""
    while True:
        items, pause = await lane.do(source.pull)
        for item in items:
            yield item
        if source.ended:
            return
        if isinstance(crew, Inline):
            await asyncio.sleep(0)
        elif pause is not None:
            assert crew.pause is not None
            await crew.pause(*pause)
