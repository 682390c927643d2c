"""Runs inside Pyodide: a program, or pytest with tests that may be coroutines."""

import inspect
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyodide.code import eval_code_async
from pyodide.ffi import can_run_sync, run_sync, to_js

if TYPE_CHECKING:
    import pytest


async def run(before: str, source: str | None, arguments: Sequence[str]) -> int:
    """Run `before`, then the program `source`, or pytest where that is None. What comes back is the exit code."""
    if failed := await program(before, ["<before>"]):
        return failed
    return await program(source, arguments) if source is not None else tests(arguments)


async def program(source: str, arguments: Sequence[str]) -> int:
    """Run a program, which may await at its top level, as `__main__`; `arguments` become sys.argv."""
    sys.argv[:] = arguments
    try:
        await eval_code_async(source, {"__name__": "__main__", "__file__": arguments[0]}, filename=arguments[0])
    except SystemExit as stopped:
        if stopped.code is None or isinstance(stopped.code, int):
            return stopped.code or 0
        print(stopped.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


async def evaluate(source: str, namespace: dict[str, Any]) -> Any:
    """Run lines in a namespace that the next call finds again; the value of the last one, as JavaScript has it."""
    return to_js(await eval_code_async(source, namespace, filename="<evaluate>"), dict_converter=from_entries)


def from_entries(entries: Any) -> Any:
    """A plain JavaScript object."""
    import js

    return js.Object.fromEntries(entries)


def tests(arguments: Sequence[str]) -> int:
    """Run pytest."""
    import pytest

    return int(pytest.main(["-p", "no:cacheprovider", "-p", "no:faulthandler", *arguments], plugins=[Coroutines()]))


class Coroutines:
    """Awaits tests that are coroutine functions where JavaScript can switch stacks (JSPI), and says so where it cannot."""

    def pytest_pyfunc_call(self, pyfuncitem: "pytest.Function") -> bool | None:
        """Run one test that is a coroutine function."""
        import pytest

        if not inspect.iscoroutinefunction(pyfuncitem.obj):
            return None
        if not can_run_sync():
            pytest.skip("a coroutine cannot be awaited in here: this JavaScript engine has no JSPI")
        run_sync(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}))
        return True
