"""Around the Python of a browser: where the tests may put databases, and how JavaScript calls."""

import asyncio
from collections.abc import Callable
from typing import Any

from pyodide.code import run_js
from pyodide.ffi import create_once_callable, run_sync


def scratch() -> str:
    """What names of databases are to begin with: a directory on Node, where they are files."""
    return run_js("globalThis.process?.release?.name === 'node' ? `${process.env.TMPDIR ?? '/tmp'}/` : ''")


def without_suspension(act: Callable[[], Any]) -> Any:
    """What `act` returns or raises where Python cannot be suspended: called by JavaScript."""

    async def called() -> Any:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def call() -> None:
            try:
                done.set_result(act())
            except BaseException as error:
                done.set_exception(error)

        run_js("(call) => { setTimeout(call, 0); }")(create_once_callable(call))
        return await done

    return run_sync(called())
