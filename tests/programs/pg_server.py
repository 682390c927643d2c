"""PostgreSQL for the tests: a server of their own, gone when this process is, or a database of yours; and empty stores on it."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

import psycopg
from psycopg import sql

from ruv_swarm_store import Store

YOURS = "RUV_SWARM_TEST_POSTGRES"
"""The environment variable that names a database to use instead of starting a server."""
SETTINGS = {
    "listen_addresses": "''",  # nobody else on this machine gets in
    "max_connections": "200",
    "log_min_messages": "fatal",
}
QUICK = {
    "fsync": "off",  # its data need not outlive the machine; that of a killed server is there all the same
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_size": "256MB",
    "max_wal_senders": "0",
    "autovacuum": "off",  # it would get into the way of copying a database
}
ROOM = 2**30
"""Bytes it may need in memory."""
# Started beside the server: it ends when this process does, however that ends, and then so does the server.
KEEPER = 'cat >/dev/null; "$1" stop -D "$2/data" -m immediate -s; rm -rf "$2"'


class NoServer(Exception):
    """There is no PostgreSQL on this machine to start."""


def program(name: str) -> str:
    """Where a server program of PostgreSQL is. Raises `NoServer`."""
    newest_first = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[4]), reverse=True)  # noqa: PTH207
    others = ["/usr/pgsql-*/bin", "/usr/local/pgsql/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin"]
    places = [os.environ.get("PATH", os.defpath), *newest_first, *(path for pattern in others for path in sorted(glob.glob(pattern)))]  # noqa: PTH207
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise NoServer(f"PostgreSQL's {name} is neither on PATH nor where packages put it")
    return found


def _as_somebody() -> dict[str, Any]:
    """How to start a program of PostgreSQL's: they refuse to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise NoServer("PostgreSQL does not run as root, and there is neither a user postgres nor a user nobody")


def _place(*, quick: bool) -> str:
    """Where its directory goes: into memory if it may and there is room. Copying a database takes 12 ms there, and 80 on a busy disk.

    Not into pytest's directory, which others may not enter; and a socket's path must be short.
    """
    memory = Path("/dev/shm")
    return str(memory) if quick and memory.is_dir() and shutil.disk_usage(memory).free > ROOM else "/tmp"


class Server:
    """A running server, with the superuser `postgres` and a database of that name.

    A `quick` one does without what makes a commit outlive the machine; otherwise it has the settings that PostgreSQL comes with.
    """

    def __init__(self, *, quick: bool = True) -> None:
        initdb, self._pg_ctl = program("initdb"), program("pg_ctl")
        self._somebody = _as_somebody()
        self.directory = Path(tempfile.mkdtemp(prefix="ruv-swarm-pg-", dir=_place(quick=quick)))
        if self._somebody:
            os.chown(self.directory, self._somebody["user"], self._somebody["group"])
        self._keeper = subprocess.Popen(
            ["sh", "-c", KEEPER, "keeper", self._pg_ctl, str(self.directory)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # an interrupt at the terminal is not for it
            cwd="/",
            **self._somebody,
        )
        try:
            data = str(self.directory / "data")
            self._call(initdb, "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-N")
            settings = {**SETTINGS, **(QUICK if quick else {}), "unix_socket_directories": f"'{self.directory}'"}
            with (self.directory / "data" / "postgresql.auto.conf").open("a") as file:
                file.writelines(f"{name} = {value}\n" for name, value in settings.items())
            self.start()
        except BaseException:
            self.close()
            raise

    def url(self, database: str = "postgres", **options: str) -> str:
        """The address of one of its databases."""
        query = "&".join(f"{name}={value}" for name, value in {"host": str(self.directory), **options}.items())
        return f"postgresql://postgres@/{database}?{query}"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        self._call(self._pg_ctl, "start", "-D", str(self.directory / "data"), "-l", str(self.directory / "log"), "-w", "-s")

    def restart(self, mode: str) -> None:
        """Restarts it: `fast` ends every connection first, `immediate` kills everything, which is then recovered from the log."""
        self._call(self._pg_ctl, "restart", "-D", str(self.directory / "data"), "-l", str(self.directory / "log"), "-m", mode, "-w", "-s")

    def stop(self, mode: str = "fast") -> None:
        """Stops it; `start` brings it back."""
        self._call(self._pg_ctl, "stop", "-D", str(self.directory / "data"), "-m", mode, "-w", "-s")

    def close(self) -> None:
        """Ends it for good, with all it holds."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()

    def _call(self, *command: str) -> None:
        # A file, not a pipe: the server would hold its other end.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/", timeout=120, check=False, **self._somebody
            )
            output.seek(0)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{output.read().decode(errors='replace')}")


class Databases(Protocol):
    """Where empty databases come from."""

    def new(self, *, absent: bool) -> str:
        """The address of a store without content; of one that is not there yet, if it is to be `absent`."""
        ...

    def connect(self, address: str) -> psycopg.Connection[Any]:
        """A connection of one's own to what is behind an address, with its schema in view."""
        ...

    def drop(self, address: str) -> None:
        """Removes it; nobody uses it any more."""
        ...

    def close(self) -> None: ...


class Own:
    """Databases on a server of the tests' own. Each is a copy of the first, made ahead: its migration takes longer than most tests."""

    def __init__(self) -> None:
        self.server = Server()
        try:
            self._admin = psycopg.connect(self.server.url(), autocommit=True)
            self._prepare()
        except BaseException:
            self.server.close()
            raise
        self._numbers = itertools.count(1)
        self._used: list[str] = []
        self._ahead: Future[str] | None = None

    def _prepare(self) -> None:
        recent = self._admin.info.server_version >= 15_00_00
        with_icu = recent and self._admin.execute("SELECT 1 FROM pg_collation WHERE collprovider = 'i' LIMIT 1").fetchone()
        # Text in most users' databases sorts by some language's rules: what relies on code points has to say so.
        language = "LOCALE_PROVIDER icu ICU_LOCALE 'en'" if with_icu else ""
        self._strategy = "STRATEGY file_copy" if recent else ""  # half the time of wal_log
        self._admin.execute(f"CREATE DATABASE absent TEMPLATE template0 {language}".encode())
        self._admin.execute("CREATE DATABASE empty TEMPLATE absent")
        Store.open(self.server.url("empty")).close()

    def new(self, *, absent: bool = False) -> str:
        ahead, self._ahead = self._ahead, None
        ready = None if ahead is None else ahead.result()
        if absent or ready is None:
            address = self._copy("absent" if absent else "empty")
        else:
            address, ready = ready, None
        self._ahead = Future()
        if ready is not None:
            self._ahead.set_result(ready)
        else:
            # A thread for each, so that there is none while nothing is made: from Python 3.12 on forking beside one is warned of.
            threading.Thread(target=self._make_ahead, args=(self._ahead,), daemon=True).start()
        return address

    def _make_ahead(self, made: Future[str]) -> None:
        try:
            made.set_result(self._copy("empty"))
        except BaseException as error:
            made.set_exception(error)

    def _copy(self, template: str) -> str:
        name = f"test_{next(self._numbers)}"
        self._admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {self._strategy}".encode())
        while len(self._used) > 2:  # not the latest: the server takes a moment to notice that its connections were closed
            self._admin.execute(f"DROP DATABASE {self._used.pop(0)} WITH (FORCE)".encode())
        return self.server.url(name)

    def connect(self, address: str) -> psycopg.Connection[Any]:
        return psycopg.connect(address, autocommit=True)

    def drop(self, address: str) -> None:
        self._used.append(str(psycopg.conninfo.conninfo_to_dict(address)["dbname"]))

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.exception()
        self._admin.close()
        self.server.close()


class Yours:
    """Schemas of a database that is there already, each removed in the end. Needs the right to create schemas, nothing else."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._admin = psycopg.connect(url, autocommit=True)
        self._numbers = itertools.count(1)

    def new(self, *, absent: bool = False) -> str:
        schema = f"ruv_swarm_test_{os.getpid()}_{next(self._numbers)}"
        return f"{self._url}{'&' if '?' in self._url else '?'}schema={schema}"

    def connect(self, address: str) -> psycopg.Connection[Any]:
        schema = address.rpartition("schema=")[2]
        connection = psycopg.connect(self._url, autocommit=True)
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        return connection

    def drop(self, address: str) -> None:
        schema = address.rpartition("schema=")[2]
        self._admin.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema)))

    def close(self) -> None:
        self._admin.close()


def databases() -> Databases:
    """Yours if the environment names one, else a server's that is started for it. Raises `NoServer`."""
    return Yours(os.environ[YOURS]) if os.environ.get(YOURS) else Own()
