"""Stuart Bishop's compliance suite of PEP 249 (`dbapi-compliance` on PyPI)."""

import unittest

import pytest
import sqljs_dbapi

dbapi20 = pytest.importorskip("dbapi20", reason="dbapi-compliance is not installed")


class TestDriver(dbapi20.DatabaseAPI20Test):
    """The driver against the suite."""

    driver = sqljs_dbapi
    connect_args = (":memory:",)
    # SQLite has no stored procedures: `callproc` is not there, and the suite then asks for nothing

    def test_nextset(self):
        """PEP 249 leaves `nextset` out where there are never several results."""
        assert not hasattr(sqljs_dbapi.Cursor, "nextset")

    def test_non_idempotent_close(self):
        """Here we differ: a connection may be closed twice, as with sqlite3. The suite itself calls its wish disputable."""
        con = self._connect()
        con.close()
        con.close()

    def test_setoutputsize(self):
        """Nothing depends on it."""
        with_ = self._connect()
        with_.cursor().setoutputsize(1000)
        with_.cursor().setoutputsize(1000, 0)
        with_.close()


del dbapi20  # or pytest collects its base class
assert unittest
