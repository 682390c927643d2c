"""Context managers from generators, for what every statement passes through."""

from __future__ import annotations

from collections.abc import Generator
from types import TracebackType
from typing import Generic, TypeVar

from ruv_swarm_store.errors import Closed

T = TypeVar("T")


class Lent(Generic[T]):
    """What `contextlib.contextmanager` makes of a generator, at half its cost: it is entered once, and never called.

    Like that, and unlike a class that takes and releases by itself, it ends the generator even when an interrupt strikes between the
    block and `__exit__`.
    """

    __slots__ = ("_entered", "_steps")

    def __init__(self, steps: Generator[T]) -> None:
        self._steps = steps
        self._entered = False

    def __enter__(self) -> T:
        if self._entered:  # the next step would end what has begun
            raise Closed("this transaction has begun before", hint="Call store.transaction() again")
        self._entered = True
        return next(self._steps)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            next(self._steps, None)
            return False
        try:
            self._steps.throw(error)
        except StopIteration as end:
            return end is not error
        except RuntimeError as raised:  # what a generator makes of a StopIteration that is thrown into it
            if raised is not error and not (isinstance(error, StopIteration) and raised.__cause__ is error):
                raise
        except BaseException as raised:
            if raised is not error:
                raise
        error.__traceback__ = trace
        return False
