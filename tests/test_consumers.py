"""Consumers in processes that are killed: what they did about an event is there exactly once, whoever dies when."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from consumer import Totals, record

from ruv_swarm_store import NewEvent, Store

pytestmark = pytest.mark.long

EVENTS = 240
LIVES = 16
CREW = 2
"""Processes at a time that share a name, or a group."""


@pytest.fixture(params=["file", "postgresql"])
def address(request: pytest.FixtureRequest, path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(path)
        return
    databases = request.getfixturevalue("postgresql")
    address = databases.new()
    yield address
    databases.drop(address)


@pytest.fixture
def killed(address: str, checkout: Path, environment: dict[str, str]) -> Callable[[Store, str, int], None]:
    """Lets consumers of a kind live and die."""

    def run(store: Store, kind: str, events: int) -> None:
        append(store, 0, events)
        program = str(checkout / "tests" / "programs" / "consumer.py")
        crew = [
            subprocess.Popen(
                [sys.executable, program, address, kind, f"member-{number}", str(LIVES)], env=environment, stdout=subprocess.PIPE, text=True
            )
            for number in range(CREW)
        ]
        for number in range(events, events * 3 // 2):  # while they live and die
            append(store, number, 1)
        ends: Counter[str] = Counter()
        for process in crew:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0
            ends.update(dict(zip(("by itself", "from outside", "alive"), map(int, output.split()), strict=True)))
        assert ends["by itself"] >= LIVES / 4  # how many were killed from outside depends on the machine's load

    return run


def append(store: Store, first: int, count: int) -> None:
    store.events.append("s", [NewEvent("abc"[number % 3], number) for number in range(first, first + count)], type="thing")


def effects(store: Store) -> list[int]:
    """The positions of the events that had an effect, in the order of the effects."""
    return [int(metric.value) for metric in store.metrics.find_all()]


def positions(store: Store) -> list[int]:
    return [event.position for event in store.events.walk()]


def test_a_killed_subscriber_has_done_everything_once_and_in_order(address: str, killed: Any) -> None:
    with Store.open(address) as store:
        killed(store, "subscription", EVENTS)
        done = len(effects(store))
        one = store.events.subscribe("s")
        assert one.follow(record, timeout=0) == len(positions(store)) - done
        assert done >= LIVES
        assert effects(store) == positions(store)


def test_a_killed_member_s_events_have_had_their_effect_once(address: str, killed: Any) -> None:
    with Store.open(address) as store:
        killed(store, "group", EVENTS)
        done = len(effects(store))
        group = store.events.group("g", max_attempts=10**6)
        while group.lag():
            group.follow("survivor", record, timeout=0.05)
        assert done >= LIVES
        assert sorted(effects(store)) == positions(store)
        assert group.parked() == []


def test_a_killed_build_goes_on_where_it_was(address: str, killed: Any) -> None:
    with Store.open(address) as store:
        killed(store, "projection", EVENTS // 12)
        assert store.metrics.count() > 3  # times a slot was cleared: before a build, and after a switch
        projector = store.events.project(Totals())
        projector.run(timeout=0)
        wanted = Counter(event.event_type for event in store.events.walk())
        assert store.config.prefix(f"{projector.live}/") == {f"{projector.live}/{type}": count for type, count in wanted.items()}
        projector.rebuild()  # whatever was left half built
        assert store.config.prefix("") == {f"{projector.live}/{type}": count for type, count in wanted.items()}
        assert [build.slot for build in projector.builds()] == [projector.live]
