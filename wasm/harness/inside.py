"""Runs inside Pyodide: a program, or pytest with tests that may be coroutines."""

import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyodide.code import eval_code_async
from pyodide.ffi import can_run_sync, run_sync, to_js

if TYPE_CHECKING:
    import pytest


async def run(before: str, source: str | None, arguments: Sequence[str], share: Sequence[int]) -> int:
    """Run `before`, then the program `source`, or pytest's `share` where that is None. What comes back is the exit code."""
    if failed := await program(before, ["<before>"]):
        return failed
    return await program(source, arguments) if source is not None else check(arguments, *share)


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


def check(arguments: Sequence[str], index: int = 0, shares: int = 1) -> int:
    """Run pytest, or the share `index` of its test files."""
    import pytest

    share = Share(index, shares)
    code = pytest.main(["-p", "no:cacheprovider", "-p", "no:faulthandler", *arguments], plugins=[Coroutines(), share])
    return 0 if code == pytest.ExitCode.NO_TESTS_COLLECTED and share.left_all else int(code)


class Share:
    """Keeps the test files of one share; shares have about as many tests each."""

    def __init__(self, index: int, shares: int) -> None:
        self.index, self.shares, self.left_all = index, shares, False

    def pytest_collection_modifyitems(self, config: "pytest.Config", items: "list[pytest.Item]") -> None:
        """Leave the other shares' tests out."""
        files = Counter(item.path for item in items)
        loads = [0] * self.shares
        kept = set()
        for path, tests in sorted(files.items(), key=lambda counted: (-counted[1], counted[0])):
            least = loads.index(min(loads))
            loads[least] += tests
            if least == self.index:
                kept.add(path)
        left = [item for item in items if item.path not in kept]
        if left:
            self.left_all = len(left) == len(items)
            items[:] = [item for item in items if item.path in kept]
            config.hook.pytest_deselected(items=left)


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
