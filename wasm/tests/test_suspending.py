"""A stack that waits for JavaScript, and Python's cycle collector meanwhile."""

import asyncio
import gc
import weakref

import pytest
from pyodide.ffi import can_run_sync
from sqljs_dbapi import suspending
from sqljs_dbapi.suspending import run_sync

pytestmark = pytest.mark.skipif(not can_run_sync(), reason="this JavaScript engine has no JSPI")


class Cyclic:
    """Only the cycle collector ends it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def enabled():
    """The collector runs before and after."""
    assert gc.isenabled()
    yield
    assert gc.isenabled()


async def collects_by_itself() -> bool:
    await asyncio.sleep(0.001)
    return gc.isenabled()


def test_nothing_is_collected_unasked_while_a_stack_is_suspended() -> None:
    """Also when the suspended ones end in another order than they began in."""

    async def one(seconds: float) -> bool:
        found = run_sync(collects_by_itself())
        run_sync(asyncio.sleep(seconds))
        return found

    async def several() -> list[bool]:
        return await asyncio.gather(*(one(seconds) for seconds in (0.02, 0.01, 0.03)))

    assert not run_sync(collects_by_itself())
    assert run_sync(several()) == [False] * 3


def test_a_failure_resumes_too() -> None:
    async def failing() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_sync(failing())


def test_garbage_is_collected_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspending, "YOUNG", 1_000)
    left: list[weakref.ref[Cyclic]] = []

    async def littering() -> None:
        for _ in range(20):
            left.extend(weakref.ref(Cyclic()) for _ in range(200))
            run_sync(asyncio.sleep(0))

    run_sync(littering())
    assert sum(garbage() is not None for garbage in left) < 2_000


def test_who_collects_by_hand_goes_on_to() -> None:
    gc.disable()
    try:
        run_sync(asyncio.sleep(0))
        assert not gc.isenabled()
    finally:
        gc.enable()
