"""sql.js in this realm: loaded once, and what the rest of the driver calls.

Only loading needs `await`, because browsers compile WebAssembly and import modules asynchronously. Everything after that is
synchronous. Where JavaScript can switch stacks (JSPI: `can_run_sync()`), Python waits for the loading by itself.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from sqljs_dbapi.errors import OperationalError
from sqljs_dbapi.functions import Callbacks
from sqljs_dbapi.suspending import run_sync
from sqljs_dbapi.wire import Answer

JS = files("sqljs_dbapi") / "js"

Prepared = tuple[int, int, list[str], list[str | None], int, str | None]
"""A statement's address or 0, where the rest of the text begins, names and declared types of its columns, result code, error."""


class Engine:
    """The driver in JavaScript, and its calls."""

    def __init__(self, js: Any, python: Any, capture: Any) -> None:
        self.js = js
        self.capture = capture
        """What `capture.mjs` made: it sees the pages that SQLite writes. None where there is none."""
        self.callbacks = Callbacks(self)
        self._set_dispatch()
        functions: dict[str, Callable[..., Any]] = {}
        js.attach(python, id(functions))
        # what is called often goes past Pyodide's conversions: these are builtin functions, given the very objects
        self.run: Callable[[int, bytes, int], Answer] = functions["run"]
        """Runs a statement with a tuple of parameters, packed, or b"", for so many rows at most; if negative with bytes for texts."""
        self.batch: Callable[[int, bytes], Answer] = functions["batch"]
        """Runs a statement with each of a list of tuples, packed."""
        self.prepare: Callable[[int, bytes], Prepared] = functions["prepare"]
        self.describe: Callable[[int], tuple[list[str], list[str | None]]] = functions["describeAgain"]
        """Names and declared types of a statement's columns, as they are now."""
        self.take_arguments: Callable[[], tuple[Any, ...]] = functions["takeArguments"]
        """What SQLite calls a function with."""
        self.give_result: Callable[[bytes], int] = functions["giveResult"]
        """Takes what that returned, as a tuple, packed."""
        self.in_transaction: Callable[[int], bool] = functions["inTransaction"]
        self.total_changes: Callable[[int], int] = functions["totalChanges"]
        self.finalize = js.finalize
        self.reset = js.reset
        self.convert = js.convert

    def _set_dispatch(self) -> None:
        from pyodide.ffi import create_proxy

        proxies = [create_proxy(self.callbacks.dispatch), create_proxy(lambda: self.callbacks.message)]
        self.js.setDispatch(*proxies)
        for proxy in proxies:
            proxy.destroy()


_engine: Engine | None = None
_loading: "asyncio.Task[Engine] | None" = None


async def load() -> None:
    """Load SQLite. Needed once, and only where it cannot happen by itself; later calls return at once.

    Raises OperationalError when sql.js cannot be started.
    """
    global _loading  # noqa: PLW0603 - one engine for each realm, as sql.js has it
    if _engine is None:
        if _loading is None or (_loading.done() and (_loading.cancelled() or _loading.exception())):
            _loading = asyncio.ensure_future(_start())
        await asyncio.shield(_loading)


def engine() -> Engine:
    """The engine; loads it where Python can wait for JavaScript.

    Raises OperationalError where it cannot.
    """
    if _engine is not None:
        return _engine
    from pyodide.ffi import can_run_sync

    if not can_run_sync():
        raise OperationalError("SQLite is not loaded yet, and Python cannot wait for it here: `await sqljs_dbapi.load()` once before")
    run_sync(load())
    return engine()


async def import_module(name: str) -> Any:
    """A JavaScript module of this package."""
    from pyodide.code import run_js

    source = b64encode((JS / name).read_bytes()).decode()
    return await run_js("(url) => import(url)")(f"data:text/javascript;base64,{source}")


async def _start() -> Engine:
    global _engine  # noqa: PLW0603
    import pyodide_js
    from js import Object
    from pyodide.code import run_js
    from pyodide.ffi import JsException, to_js

    try:
        driver, layout, python = await asyncio.gather(*map(import_module, ["driver.mjs", "layout.mjs", "python.mjs"]))
        capture = (await import_module("capture.mjs")).createCapture() if (JS / "capture.mjs").is_file() else None
        # its own module system would take these for Node's or a page's
        source = (JS / "vendor" / "sql-wasm-browser.js").read_text(encoding="utf-8")
        options = {
            "initSqlJs": run_js(f"(function (module, exports, define) {{{source}\nreturn initSqlJs;}})")(),
            "wasmBytes": (JS / "vendor" / "sql-wasm.wasm").read_bytes(),
            "findLayout": layout.findLayout,
        }
        if capture is not None:
            options["wrapImports"] = capture.wrapImports
        js = await driver.start(to_js(options, dict_converter=Object.fromEntries))
        _engine = Engine(js, python.connect(pyodide_js._module, id(OperationalError)), capture)
    except JsException as error:
        raise OperationalError(f"SQLite could not be started: {error}") from error
    from sqljs_dbapi import storage

    await storage.prepare()
    return _engine
