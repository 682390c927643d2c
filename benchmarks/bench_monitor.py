"""What the monitor costs: the same verbs with it on and off, in two processes in turn, each with a file of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ruv_swarm_store

LIBRARY = Path(ruv_swarm_store.__file__).resolve().parent.parent
MONITORED = Path(__file__).resolve().with_name("monitored.py")
SLICES = 5
"""Rounds are so many times shorter than others', and so many times as many: a busy machine varies by more than there is to measure."""


@pytest.fixture
def rounds(rounds: int) -> int:
    return rounds * SLICES


@pytest.mark.parametrize(("job", "count"), [("claim", 200), ("get", 2_000), ("unit", 100)], ids=["claim", "get", "unit of work"])
def bench_monitored(tmp_path: Path, compare: Callable[..., float], rounds: int, job: str, count: int) -> None:
    tasks = count * (rounds + 2) if job == "claim" else 1_000
    with _process(tmp_path, "on", tasks) as on, _process(tmp_path, "off", tasks) as off:
        for process in (on, off):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        compare(_asking(on, f"{job} {count}\n"), _asking(off, f"{job} {count}\n"), operations=count, floor_is="the same, the monitor off")
    assert (on.returncode, off.returncode) == (0, 0)


def _process(directory: Path, monitor: str, tasks: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(MONITORED), str(directory / f"{monitor}.db"), monitor, str(tasks)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(LIBRARY)},
    )


def _asking(process: subprocess.Popen[str], question: str) -> Callable[[], None]:
    def ask() -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(question)
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"

    return ask
