"""What every test may use: a clock that is set by hand, other processes, and bounded Hypothesis profiles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from hypothesis import HealthCheck, settings

import ruv_swarm_store
from ruv_swarm_store.engines import IN_BROWSER

if TYPE_CHECKING:
    from pg_server import Databases

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = Path(ruv_swarm_store.__file__).resolve().parent.parent
PROGRAMS = Path(__file__).resolve().parent / "programs"
if str(PROGRAMS) not in sys.path:
    sys.path.insert(0, str(PROGRAMS))  # what runs in other processes must be importable there by the same name

# `ci` gives the same examples every time; HYPOTHESIS_PROFILE=deep looks for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=60, stateful_step_count=40, print_blob=True)
settings.register_profile(
    "deep", deadline=None, max_examples=2_000, stateful_step_count=80, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("browser", settings.get_profile("ci"), max_examples=20)  # where Python is several times slower
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "browser" if IN_BROWSER else "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--share", metavar="I/N", help="run only share I, counted from 0, of the test files dealt out to N; see in_shares.py")


_SECONDS = {
    "conformance/test_backups.py": 0.6, "conformance/test_crowds.py": 1.8, "conformance/test_event_models.py": 3.1,
    "conformance/test_inbox_models.py": 4.2, "conformance/test_journal.py": 0.8, "conformance/test_models.py": 3.2,
    "conformance/test_rows_backup.py": 0.3, "conformance/test_rollups.py": 0.3, "conformance/test_waiting.py": 0.4,
    "test_backup_damage.py": 0.3, "test_cache.py": 1.1, "test_cli.py": 0.7, "test_cli_backups.py": 1.1, "test_consumers.py": 5.0,
    "test_continuous.py": 1.2, "test_copy.py": 0.4, "test_demo.py": 7.0, "test_demo_cooperative.py": 1.0, "test_image.py": 0.8,
    "test_journal.py": 0.8, "test_migrations.py": 0.6, "test_postgresql.py": 0.7, "test_postgresql_backup.py": 2.4,
    "test_sqlite.py": 0.3, "test_swarm.py": 21.0, "test_worker.py": 1.1,
}  # fmt: skip
"""What a test of these files takes, about; those of the others take an eighth of a second."""


@pytest.hookimpl(trylast=True)  # once it is known which tests are run at all
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the test files of the other shares; shares take about as long."""
    given: str | None = config.getoption("--share")
    if given is None:
        return
    index, shares = map(int, given.split("/"))
    loads = [0.0] * shares
    kept: set[Path] = set()
    here = Path(__file__).resolve().parent
    tests = Counter(item.path for item in items)
    files = {path: count * _SECONDS.get(path.relative_to(here).as_posix(), 0.125) for path, count in tests.items()}
    for path, seconds in sorted(files.items(), key=lambda taking: (-taking[1], taking[0])):
        least = loads.index(min(loads))
        loads[least] += seconds
        if least == index:
            kept.add(path)
    config.hook.pytest_deselected(items=[item for item in items if item.path not in kept])
    items[:] = [item for item in items if item.path in kept]


class Clock:
    """Milliseconds since the epoch, moving only when told."""

    def __init__(self, now: int = 1_800_000_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float = 0, *, ms: int = 0) -> int:
        self.now += round(seconds * 1000) + ms
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a store may be put."""
    return tmp_path / "swarm.db"


@pytest.fixture
def checkout() -> Path:
    """The top of the source tree."""
    return ROOT


@pytest.fixture
def environment() -> dict[str, str]:
    """Environment variables with which a Python started elsewhere imports the same library."""
    path = os.pathsep.join([str(LIBRARY), str(PROGRAMS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}


@pytest.fixture
def python(environment: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Runs a piece of Python in a process of its own; returns what it printed."""

    def run(code: str, *arguments: object, code_expected: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code_expected, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Databases]:
    """PostgreSQL databases, empty or absent; without a server the tests are left out, or fail where all engines are asked for."""
    if os.environ.get("RUV_SWARM_TEST_POSTGRES") == "none":
        pytest.skip("RUV_SWARM_TEST_POSTGRES=none leaves PostgreSQL out; nox does on all Pythons but one")
    try:
        import pg_server
    except ImportError as error:
        _no_postgresql(f"there is no PostgreSQL driver: {error}")
    try:
        databases = pg_server.databases()
    except pg_server.NoServer as error:
        _no_postgresql(f"{error}; install it, or name a database in {pg_server.YOURS}")
    yield databases
    databases.close()


def _no_postgresql(reason: str) -> NoReturn:
    if os.environ.get("CI") or os.environ.get("RUV_SWARM_ALL_ENGINES"):
        pytest.fail(reason)
    pytest.skip(reason)
