"""Runs each job beside its floor, round by round in turn, and prints the ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from floor import Floor
from rich.console import Console
from rich.table import Table

from ruv_swarm_store import Agent, Store

Job = Callable[[], object]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=int, default=100_000, help="rows in the tables before a job starts (default 100000)")
    parser.addoption("--rounds", type=int, default=15, help="rounds of each job and its floor, in turn (default 15)")


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> int:
    """How full the tables are."""
    given: Any = request.config.getoption("--rows")
    return int(given)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def worker(store: Store) -> Agent:
    return store.agents.register("bench", id="worker")


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Floor]:
    opened = Floor(tmp_path / "floor.db")
    yield opened
    opened.close()


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., float]:
    """Times `ours` and `floor` in turn; each does `operations` of the same job. Returns the median ratio of their speeds.

    The ratio of a round is taken between neighbours in time, so a machine that slows down slows both.
    """

    def run(ours: Job, floor: Job, *, operations: int, floor_is: str) -> float:
        rounds: Any = request.config.getoption("--rounds")
        floors: list[float] = []

        def time_floor() -> None:
            start = time.perf_counter()
            floor()
            floors.append(time.perf_counter() - start)

        ours()
        floor()
        # What pytest itself has allocated is none of the job's business; what the job allocates is collected as usual.
        gc.collect()
        gc.freeze()
        try:
            benchmark.pedantic(ours, setup=time_floor, rounds=rounds, iterations=1)
        finally:
            gc.unfreeze()
        times = benchmark.stats.stats.data
        ratios = [below / above for below, above in zip(floors[-len(times) :], times, strict=True)]
        ratio: float = statistics.median(ratios)
        benchmark.extra_info.update(
            {
                "floor": floor_is,
                "ratio": round(ratio, 3),
                "ratio_quartiles": [round(quartile, 3) for quartile in statistics.quantiles(ratios, n=4)],
                "per_second": round(operations / statistics.median(times)),
                "floor_per_second": round(operations / statistics.median(floors)),
            }
        )
        return ratio

    return run


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    done = [bench for bench in getattr(session, "benchmarks", []) if "ratio" in bench.extra_info]
    if not done:
        return
    table = Table(title="Speed as a share of the floor (1.00 = raw sqlite3 doing the same; higher is better)")
    for column in ("job", "ratio", "quartiles", "ours/s", "floor/s", "the floor is"):
        table.add_column(column, justify="left" if column in ("job", "the floor is") else "right")
    for bench in done:
        info = bench.extra_info
        low, _, high = info["ratio_quartiles"]
        name = bench.name.removeprefix("bench_").replace("_", " ")
        table.add_row(
            name,
            f"{info['ratio']:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{info['per_second']:,}",
            f"{info['floor_per_second']:,}",
            info["floor"],
        )
    Console(width=150).print(table)
