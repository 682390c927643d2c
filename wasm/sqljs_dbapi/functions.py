"""Functions and aggregates written in Python, called by SQLite."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqljs_dbapi.adaptation import bindable
from sqljs_dbapi.codes import SQLITE_ERROR, SQLITE_NOMEM, SQLITE_TOOBIG
from sqljs_dbapi.wire import pack

if TYPE_CHECKING:
    from sqljs_dbapi._engine import Engine

Call = Callable[[int, tuple[Any, ...]], Any]


class _Failed(Exception):
    """A method of an aggregate raised; this says which."""


class Callbacks:
    """What the engine calls in Python, by number."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.calls: dict[int, tuple[str, Call]] = {}
        self.tracebacks = False
        self.message = ""
        self.last = 0

    def add(self, *calls: tuple[str, Call]) -> int:
        """Take up calls under successive numbers, and give the first. With each comes what is said when it fails."""
        first = self.last + 1
        for call in calls:
            self.last += 1
            self.calls[self.last] = call
        return first

    def remove(self, numbers: range) -> None:
        """Let go of calls that the engine does not make any more."""
        for number in numbers:
            del self.calls[number]

    def dispatch(self, number: int, instance: int, undecoded: bool) -> int:
        """Call with the arguments that SQLite has, and give it the result. Gives 0, or minus a result code."""
        self.message, call = self.calls[number]
        try:
            arguments = self.engine.take_arguments()
            if undecoded:
                arguments = tuple(value[0].decode() if type(value) is tuple else value for value in arguments)
            (result,) = bindable([call(instance, arguments)], ())
            if type(result) is int and not -(2**63) <= result < 2**63:
                raise OverflowError
            if type(result) is str:
                result.encode()
            return self.engine.give_result(pack((result,)))
        except BaseException as error:
            if self.tracebacks:
                sys.unraisablehook(_Unraisable(error, call))
            if isinstance(error, _Failed):
                self.message = str(error)
                error = error.__cause__ or error
            if isinstance(error, MemoryError):
                return -SQLITE_NOMEM
            if isinstance(error, OverflowError):
                self.message = "string or blob too big"
                return -SQLITE_TOOBIG
            return -SQLITE_ERROR


class _Unraisable:
    """What `sys.unraisablehook` is given."""

    def __init__(self, error: BaseException, where: object) -> None:
        self.exc_type = type(error)
        self.exc_value: BaseException | None = error
        self.exc_traceback = error.__traceback__
        self.err_msg: str | None = None
        self.object = where


def scalar(function: Callable[..., Any]) -> tuple[str, Call]:
    """The call of a function."""

    def call(_: int, arguments: tuple[Any, ...]) -> Any:
        return function(*arguments)

    return "user-defined function raised exception", call


def aggregate(factory: Callable[[], Any]) -> tuple[tuple[str, Call], tuple[str, Call]]:
    """The calls that step and end an aggregate. Its objects are numbered; minus a number is one that begins."""
    objects: dict[int, Any] = {}

    def step(instance: int, arguments: tuple[Any, ...]) -> None:
        if instance < 0:
            instance = -instance
            try:
                objects[instance] = factory()
            except Exception as error:
                raise _Failed("user-defined aggregate's '__init__' method raised error") from error
        if (found := objects.get(instance)) is not None:
            found.step(*arguments)

    def finalize(instance: int, _: tuple[Any, ...]) -> Any:
        found = objects.pop(instance, None)
        return None if found is None else found.finalize()

    said = "user-defined aggregate's '{}' method raised error"
    return (said.format("step"), step), (said.format("finalize"), finalize)
