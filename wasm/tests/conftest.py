"""The driver's tests run inside Pyodide; what they compare it with is Pyodide's own sqlite3."""

import sys

import pytest

if sys.platform != "emscripten":
    collect_ignore_glob = ["*"]
else:
    import sqljs_dbapi
    from sqljs_dbapi._engine import engine


@pytest.fixture(scope="session", autouse=True)
def loaded():
    """The engine; where Python cannot wait for JavaScript it is loaded before pytest starts."""
    return engine()


@pytest.fixture
def connection(loaded):
    """A connection to a database in memory."""
    with_ = sqljs_dbapi.connect(":memory:")
    yield with_
    with_.close()
