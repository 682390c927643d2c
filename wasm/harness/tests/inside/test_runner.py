"""What every runner promises, tested inside Pyodide: by `node.mjs` with and without JSPI, by `browser.mjs` in each browser."""

import asyncio
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest
from pyodide.ffi import can_run_sync, run_sync


def test_this_is_pyodide_in_the_tree() -> None:
    assert sys.platform == "emscripten"
    assert Path.cwd() == Path("/tree")
    assert Path(__file__).is_relative_to("/tree")


@pytest.mark.parametrize("name", ["sqljs_dbapi", "ruv_swarm_store", "sqlalchemy", "alembic", "msgspec"])
def test_packages_come_from_their_wheels_and_not_from_the_tree(name: str) -> None:
    found = importlib.util.find_spec(name)
    assert found is not None
    assert "/site-packages/" in str(found.origin)


def test_the_wheel_of_the_driver_has_sql_js_and_its_licence() -> None:
    files = {path.name: path for path in importlib.metadata.files("sqljs-dbapi") or []}
    assert {"sql-wasm-browser.js", "sql-wasm.wasm", "LICENSE"} <= files.keys()
    assert files["sql-wasm.wasm"].read_binary().startswith(b"\0asm")


async def test_a_coroutine_is_awaited(request: pytest.FixtureRequest) -> None:
    await asyncio.sleep(0)
    request.node.stash[RAN] = True


RAN = pytest.StashKey[bool]()


def test_the_coroutine_above_has_run_to_its_end(request: pytest.FixtureRequest) -> None:
    if not can_run_sync():
        pytest.skip("no JSPI")
    (node,) = (item for item in request.session.items if item.name == "test_a_coroutine_is_awaited")
    assert node.stash[RAN]


def test_python_was_entered_asynchronously() -> None:
    """Where JavaScript can switch stacks at all, a synchronous test may wait for a promise."""
    import js

    if not hasattr(js.WebAssembly, "Suspending"):
        pytest.skip("this JavaScript engine has no JSPI")
    assert can_run_sync()
    assert run_sync(js.Promise.resolve(7)) == 7
