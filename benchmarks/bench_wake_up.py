"""How soon `tasks.wait` in another process has a task that was enqueued here, and what waiting costs."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from places import Place

import ruv_swarm_store
from ruv_swarm_store import Store

LIBRARY = Path(ruv_swarm_store.__file__).resolve().parent.parent
WAITER = Path(__file__).resolve().with_name("waiter.py")


def bench_wake_up(place: Place, record_wake_ups: Callable[..., None], request: pytest.FixtureRequest) -> None:
    count: Any = request.config.getoption("--wakes")
    idle: Any = request.config.getoption("--idle")
    address = place.new()
    with Store.open(address, durability=place.durability) as store:
        agent = store.agents.register("waiter")
        process = subprocess.Popen(
            [sys.executable, str(WAITER), address, place.durability, agent.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(LIBRARY)},
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            asking, answers = process.stdin, process.stdout

            def ask(question: str) -> None:
                asking.write(f"{question}\n")
                asking.flush()

            assert answers.readline() == "ready\n"
            ask(f"idle {idle}")
            share = float(answers.readline())
            seconds = []
            for _ in range(count):
                ask("wait")
                # By then it waits, and at no particular moment between two of its looks.
                time.sleep(random.uniform(0.015, 0.03))
                started = time.monotonic()
                store.tasks.enqueue("crawl", {"url": "https://example.com/a/page"})
                seconds.append(float(answers.readline()) - started)
            asking.close()
        assert process.returncode == 0
    record_wake_ups(seconds, share)
