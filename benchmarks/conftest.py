"""Runs each job beside its floor and its peers, round by round in turn, and prints the ratios."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import sqlite3
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import plots
import pytest
import report
from floor import Floor
from growth import number
from naive import NAIVE
from peers import PEERS
from places import NoServer, Place, PostgreSQLPlace, PostgreSQLServer, SQLitePlace, on_cpus
from rich.console import Console

from ruv_swarm_store import Agent, Store

Job = Callable[[], object]

NORMAL = ("sqlite-normal", "postgresql-normal")
EVERY = ("sqlite-normal", "sqlite-full", "postgresql-normal", "postgresql-full")
ROWS = 100_000
PEER_SHARE = 3
"""The peers take part in one round of so many: most of the time would be theirs otherwise."""

left_out = pytest.StashKey[dict[str, None]]()
woken = pytest.StashKey[list[dict[str, Any]]]()
machine = pytest.StashKey[dict[str, None]]()


class Rival(NamedTuple):
    """A peer's way to do the job."""

    name: str
    job: Job
    operations: int
    note: str
    about: str
    """What there is to know about the peer at any job."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rows", type=_numbers, default=[ROWS], help="rows in the tables before a job starts (default 100k), or several: 10k,1m"
    )
    parser.addoption("--rounds", type=int, default=15, help="rounds of each job and its floor, in turn (default 15)")
    parser.addoption("--wakes", type=int, default=400, help="times that a waiting process is woken (default 400)")
    parser.addoption("--idle", type=float, default=10.0, help="seconds that it waits in vain (default 10)")
    parser.addoption("--no-peers", action="store_true", help="leave other libraries out")
    parser.addoption("--markdown", type=Path, help="also write the tables to this file, as Markdown")
    parser.addoption("--json", type=Path, help="also write the figures to this file, as JSON")
    parser.addoption("--plots", type=Path, help="draw benchmarks.png and benchmarks.svg in this directory")


def _numbers(text: str) -> list[int]:
    return [number(one) for one in text.split(",")]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "durable: the job commits, so it is measured at both durabilities")
    config.addinivalue_line("markers", "sized: the job has a size in its name, and is measured at one only")
    config.addinivalue_line("markers", "only(engine): where the job is measured")
    config.option.benchmark_quiet = True  # its table of seconds says nothing that ours do not
    config.stash[left_out] = {}
    config.stash[woken] = []
    config.stash[machine] = {f"Python {platform.python_version()}": None, f"SQLite {sqlite3.sqlite_version}": None}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        places: tuple[str, ...] = EVERY if metafunc.definition.get_closest_marker("durable") else NORMAL
        if (only := metafunc.definition.get_closest_marker("only")) is not None:
            places = tuple(place for place in places if place.startswith(only.args))
        metafunc.parametrize("place", places, indirect=True)
    sizes = _sizes(metafunc.config)
    if "rows" in metafunc.fixturenames and len(sizes) > 1 and metafunc.definition.get_closest_marker("sized") is None:
        metafunc.parametrize("rows", sizes, indirect=True, ids=[f"at {size:,} rows" for size in sizes])


def _sizes(config: pytest.Config) -> list[int]:
    given: Any = config.getoption("--rows")
    return list(given)


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> int:
    """How full the tables are."""
    sizes = _sizes(request.config)
    size: int = getattr(request, "param", sizes[0] if len(sizes) == 1 else ROWS)
    return size


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest) -> int:
    """How often a job is timed."""
    given: Any = request.config.getoption("--rounds")
    return int(given)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[PostgreSQLServer | str]:
    """PostgreSQL, or why there is none."""
    try:
        started = PostgreSQLServer()
    except NoServer as error:
        yield str(error)
        return
    request.config.stash[machine][started.version] = None
    yield started
    started.close()


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Each engine, at one or both durabilities; without PostgreSQL that is left out, loudly."""
    engine, _, durability = request.param.partition("-")
    if engine == "sqlite":
        yield SQLitePlace(durability, tmp_path)
        return
    running = request.getfixturevalue("server")
    if isinstance(running, str):
        request.config.stash[left_out][f"NOT MEASURED on PostgreSQL: {running}"] = None
        pytest.skip(running)
    opened = PostgreSQLPlace(durability, running)
    yield opened
    opened.close()


@pytest.fixture
def store(place: Place) -> Iterator[Store]:
    with place.store() as opened:
        yield opened


@pytest.fixture
def worker(store: Store) -> Agent:
    return store.agents.register("bench", id="worker")


@pytest.fixture
def floor(place: Place) -> Iterator[Floor]:
    opened = place.floor()
    yield opened
    opened.close()


@pytest.fixture
def rivals(request: pytest.FixtureRequest, place: Place) -> Iterator[Callable[..., list[Rival]]]:
    """Peers that can do a job of `Peer` here, each on a database of its own.

    One whose tables are ours is filled by `like`, as our store is; the others get so many tasks `pending`.
    """
    with ExitStack() as opened:

        def find(job: str, given: Any, operations: int, *, pending: int = 0, like: Callable[[Store], object] | None = None) -> list[Rival]:
            found: list[Rival] = []
            if request.config.getoption("--no-peers"):
                return found
            for kind in (*NAIVE, *PEERS):
                if kind.engine != place.engine or place.durability not in kind.durabilities or not kind.can(job):
                    continue
                try:
                    peer = kind(place)
                except ImportError as error:
                    request.config.stash[left_out][f"NOT COMPARED with {kind.name}: {error}"] = None
                    continue
                opened.callback(peer.close)
                if pending:
                    peer.fill(pending)
                if like is not None:
                    peer.fill_like(like)
                request.config.stash[machine][f"{kind.name} {version(kind.name)}"] = None
                do = peer.job(job)
                assert do is not None
                found.append(Rival(kind.name, partial(do, given), operations, kind.note(job), kind.note("")))
            place.settle()
            return found

        yield find


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, rounds: int) -> Callable[..., float]:
    """Times `ours`, `floor` and rivals in turn; each does `operations` of the same job. Returns the median ratio of our speeds.

    The ratio of a round is taken between neighbours in time, so a machine that slows down slows both.
    """

    def run(ours: Job, floor: Job, *, operations: int, floor_is: str, rivals: Sequence[Rival] = ()) -> float:
        floors: list[float] = []
        theirs: dict[str, list[tuple[float, float]]] = {rival.name: [] for rival in rivals}

        def time_others() -> None:
            peers = [(rival, timed(rival.job) / rival.operations) for rival in rivals if len(floors) % PEER_SHARE == 0]
            floors.append(timed(floor))
            for rival, seconds in peers:
                theirs[rival.name].append((floors[-1] / operations / seconds, seconds))

        place = request.node.callspec.params.get("place", "")
        engine, _, durability = place.partition("-")
        with on_cpus(client=True) if engine == "postgresql" else nullcontext():
            for job in (ours, floor, *(rival.job for rival in rivals)):
                job()
            # What pytest itself has allocated is none of the job's business; what the job allocates is collected as usual.
            gc.collect()
            gc.freeze()
            try:
                benchmark.pedantic(ours, setup=time_others, rounds=rounds, iterations=1)
            finally:
                gc.unfreeze()
        times = benchmark.stats.stats.data
        ratios = [below / above for below, above in zip(floors[-len(times) :], times, strict=True)]
        benchmark.extra_info.update(
            {
                "job": _job(request.node.originalname, request.node.callspec.id, place),
                "engine": engine or "sqlite",
                "durability": durability or "normal",
                "floor": floor_is,
                **_figures(ratios, operations / statistics.median(times)),
                "floor_per_second": round(operations / statistics.median(floors)),
                "peers": [
                    {
                        "name": rival.name,
                        "note": rival.note,
                        "about": rival.about,
                        **_figures([ratio for ratio, _ in measured], 1 / statistics.median(seconds for _, seconds in measured)),
                    }
                    for rival in rivals
                    for measured in [theirs[rival.name]]
                ],
            }
        )
        ratio: float = statistics.median(ratios)
        return ratio

    return run


def timed(job: Job) -> float:
    """The seconds it takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def _figures(ratios: Sequence[float], per_second: float) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {"ratio": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)], "per_second": round(per_second)}


def _job(function: str, parameters: str, place: str) -> str:
    """What the row is called: the function, and its parameters but for the place."""
    rest = parameters.replace(place, "").strip("-")
    return " ".join(filter(None, (function.removeprefix("bench_").replace("_", " "), rest)))


@pytest.fixture
def record_wake_ups(request: pytest.FixtureRequest, place: Place) -> Callable[..., None]:
    """Takes seconds from enqueue to claim, and the idle waiter's share of a core."""

    def record(seconds: Sequence[float], idle: float) -> None:
        ordered = sorted(second * 1000 for second in seconds)
        request.config.stash[woken].append(
            {
                "engine": place.engine,
                "durability": place.durability,
                "count": len(ordered),
                "p50": statistics.median(ordered),
                "p99": ordered[min(len(ordered) * 99 // 100, len(ordered) - 1)],
                "longest": ordered[-1],
                "idle": idle,
            }
        )

    return record


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    measured = [bench.extra_info for bench in getattr(session, "benchmarks", []) if "ratio" in bench.extra_info]
    # In the order of the jobs, each with all its sizes and places.
    sizes = re.compile(r" at [\d,]+ rows$")
    order = list(dict.fromkeys(sizes.sub("", info["job"]) for info in measured))
    measured.sort(key=lambda info: order.index(sizes.sub("", info["job"])))
    order = list(dict.fromkeys(info["job"] for info in measured))
    measured.sort(key=lambda info: (order.index(info["job"]), info["engine"] != "sqlite", info["durability"] != "normal"))
    stash = config.stash
    sections: list[tuple[str, Sequence[str], report.Rows]] = []
    if measured:
        sections.append((report.TITLE, report.HEAD, report.speeds(measured)))
    if times := stash[woken]:
        sections.append((report.WAKE_TITLE, report.WAKE_HEAD, report.wakes(times)))
    console = Console(width=150)
    for section in sections:
        report.show(console, *section)
    here = stash[machine]
    notes = [f"{os.cpu_count()} cores, {', '.join(here)}", *report.notes(measured)]
    for note in notes:
        terminalreporter.write_line(note)
    for line in stash[left_out]:
        terminalreporter.write_line(line, yellow=True, bold=True)
    if (path := config.getoption("--markdown")) is not None:
        parts = [f"{title}:\n\n{report.markdown(head, rows)}" for title, head, rows in sections]
        parts.append("\n".join(f"- {note}" for note in [*notes, *stash[left_out]]) + "\n")
        path.write_text("\n".join(parts), encoding="utf-8")
    if (path := config.getoption("--json")) is not None:
        found = {"jobs": measured, "wake_ups": stash[woken], "notes": [*notes, *stash[left_out]]}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if measured and (path := config.getoption("--plots")) is not None:
        plots.ratios(measured, path)
