"""SQLAlchemy's dialect compliance suite on `sqlite+sqljs`, and on Pyodide's own sqlite3 for comparison.

`node wasm/harness/node.mjs --file wasm/tests/compliance/sqlalchemy_suite.py [PYTEST ARGUMENT...]` runs it inside Pyodide. It
fails when a test of ours fails, or one is skipped that sqlite3 passes.
"""

import importlib
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest
import sqljs_dbapi

OURS = "sqlite+sqljs://"
FLOOR = "sqlite://"
KNOWN_SKIPS: set[str] = set()
"""Tests that are skipped here though sqlite3 passes them, each with the reason beside it."""
FILES = {
    "conftest.py": "from sqlalchemy.testing.plugin.pytestplugin import *\n",
    "test_suite.py": "from sqlalchemy.testing.suite import *\n",
    "setup.cfg": "[sqla_testing]\nrequirement_cls = sqljs_dbapi.requirements:Requirements\nprofile_file = profiles.txt\n",
}


class Outcomes:
    """What became of each test."""

    def __init__(self):
        self.of = {}

    def pytest_runtest_logreport(self, report):
        """Note a test's call, or why it never came to it."""
        if report.when == "call" or report.outcome != "passed":
            self.of[re.sub(r"_sqlite[^:]*", "", report.nodeid)] = report.outcome

    def with_outcome(self, *outcomes):
        """The tests that ended so."""
        return {test for test, outcome in self.of.items() if outcome in outcomes}


def run(url, arguments):
    """Run the suite once, and forget SQLAlchemy after it: its test plugin is made for one database."""
    for name in [
        name for name in sys.modules if re.match(r"(sqlalchemy|conftest|test_suite)\b|sqljs_dbapi\.(dialect|provision|requirements)$", name)
    ]:
        del sys.modules[name]
    importlib.invalidate_caches()
    outcomes = Outcomes()
    code = pytest.main(
        [
            *("-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:logging", "-c", "setup.cfg", "--rootdir=.", "-q", "--no-header"),
            *("-W", "ignore", "--dburi", url, "--requirements", "sqljs_dbapi.requirements:Requirements", *arguments, "test_suite.py"),
        ],
        plugins=[outcomes],
    )
    return int(code), outcomes


async def main(arguments):
    """Run both, and compare."""
    await sqljs_dbapi.load()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        for name, text in FILES.items():
            Path(name).write_text(text, encoding="utf-8")
        print(f"--- {OURS}")
        code, ours = run(OURS, arguments)
        print(f"--- {FLOOR}")
        _, floor = run(FLOOR, arguments)
        os.chdir("/")
    missing = (floor.with_outcome("passed") - ours.with_outcome("passed")) - KNOWN_SKIPS
    for test in sorted(missing):
        print(f"passed by sqlite3 only: {test} ({ours.of.get(test, 'not run')})")
    for name, found in ((OURS, ours), (FLOOR, floor)):
        print(f"{name:16} " + ", ".join(f"{len(found.with_outcome(outcome))} {outcome}" for outcome in ("passed", "skipped", "failed")))
    return code or bool(missing) or not ours.with_outcome("passed")


sys.exit(int(await main(sys.argv[1:])))  # noqa: F704, PLE1142 - a program that may await
