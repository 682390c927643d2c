"""Tells of commits: this process's at once, everybody else's by NOTIFY."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql
from psycopg.pq import ExecStatus

log = logging.getLogger(__name__)

COALESCE = 0.005
"""Seconds in which all commits of a process are told of by one notification: inside a transaction NOTIFY makes commits queue up."""
RECONNECT = 0.25
"""Seconds between attempts to listen again after the connection was lost."""

HEARKEN = 0.1
"""Seconds a listener waits at a time: so long closing may take."""

Connect = Callable[[], psycopg.Connection[Any]]


class Watch:
    """Counts commits. One thread tells the others of this process's, one listens to theirs; each starts when first needed."""

    def __init__(self, connect: Connect, channel: str, notified: Callable[[int], object]) -> None:
        """`connect` opens a connection for this object's own use. `notified` hears of each transaction that only tells of others."""
        self._notified = notified
        self._connect = connect
        self._channel = sql.Identifier(channel)
        self._changed = threading.Condition()
        self._count = 0
        self._due = threading.Event()
        self._closed = threading.Event()
        self._starting = threading.Lock()
        self._teller: threading.Thread | None = None
        self._listener: threading.Thread | None = None
        self._listening = threading.Event()

    def committed(self) -> None:
        """Wakes who waits: here now, elsewhere within milliseconds."""
        self._wake()
        if not self._due.is_set():
            self._due.set()
            if self._teller is None:
                self._teller = self._start("_teller", self._tell)

    def look(self) -> int:
        """How many changes have been heard of. From the first look on, none is missed."""
        if self._listener is None:
            self._listener = self._start("_listener", self._listen)
        self._listening.wait(1)
        return self._count

    def wait(self, seen: int, seconds: float) -> bool:
        """Blocks until there are more changes than `seen`, at most `seconds`; whether there are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count != seen or self._closed.is_set(), max(seconds, 0))

    def close(self) -> None:
        """Ends both threads, after a last word to the others, and wakes who waits."""
        self._closed.set()
        self._due.set()
        self._wake()
        for thread in (self._teller, self._listener):
            if thread is not None and thread is not threading.current_thread():
                thread.join(2)

    def _wake(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def _start(self, name: str, run: Callable[[], None]) -> threading.Thread:
        with self._starting:
            started: threading.Thread | None = getattr(self, name)
            if started is None:
                started = threading.Thread(target=run, name=f"ruv_swarm_store{name}", daemon=True)
                setattr(self, name, started)
                started.start()
            return started

    def _tell(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        notify = sql.SQL("NOTIFY {}; SELECT txid_current()").format(self._channel).as_bytes()  # one transaction, its number at last
        try:
            while True:
                self._due.wait()
                if not self._closed.is_set():
                    time.sleep(COALESCE)
                self._due.clear()
                try:
                    if connection is None or connection.closed:
                        connection = self._connect()
                        connection.execute("SET synchronous_commit = off")  # nobody's commit waits for it
                    told = connection.pgconn.exec_(notify)  # in one call of the driver's library, which others need not wait for
                    if told.status != ExecStatus.TUPLES_OK:
                        raise psycopg.OperationalError(told.get_error_message())
                    self._notified(int(told.get_value(0, 0) or 0))
                except psycopg.Error as error:
                    log.debug("nobody was notified: %s", error)  # they look by themselves now and then
                    if connection is not None:
                        connection.close()
                    connection = None
                    self._closed.wait(RECONNECT)
                if self._closed.is_set():
                    return
        finally:
            if connection is not None:
                connection.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                with self._connect() as connection:
                    connection.execute(sql.SQL("LISTEN {}").format(self._channel))
                    self._listening.set()
                    self._wake()  # something may have happened while nobody listened
                    while not self._closed.is_set():
                        for _ in connection.notifies(timeout=HEARKEN, stop_after=1):
                            self._wake()
            except psycopg.Error as error:
                self._listening.set()  # not to hold up those who look: they fall back to polling
                log.debug("not listening: %s", error)
                with suppress(Exception):
                    self._closed.wait(RECONNECT)
