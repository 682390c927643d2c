"""Waiting for JavaScript in the middle of Python, where WebAssembly's stacks can be switched (JSPI)."""

import gc
from collections.abc import Awaitable
from typing import Any

YOUNG = 20_000  # objects made since the last collection, after which one is due
FULL_EVERY = 50  # of those collections one looks at everything


class _Collector:
    """Keeps Python's cycle collector from running by itself while a stack is suspended, and collects in its place.

    CPython 3.14's incremental collections walk the frames of every thread state. Pyodide gives each suspended stack one of its own, and
    reuses the memory in which its frames were: with several of them suspended the walk never ends, or leaves the heap
    (pyodide/pyodide#6464, mended by #6466, in no release up to 314.0.7). Young and full collections walk no frames.
    """

    def __init__(self) -> None:
        self._suspended = self._collections = 0
        self._was_enabled = False

    def suspend(self) -> None:
        if not self._suspended:
            self._was_enabled = gc.isenabled()
            gc.disable()
        self._suspended += 1
        self._collect()

    def resume(self) -> None:
        self._suspended -= 1
        self._collect()
        if not self._suspended and self._was_enabled:
            gc.enable()

    def _collect(self) -> None:
        if self._was_enabled and gc.get_count()[0] > YOUNG:
            self._collections += 1
            gc.collect(0 if self._collections % FULL_EVERY else 2)


_collector = _Collector()


def run_sync(awaitable: Awaitable[Any]) -> Any:
    """What `awaitable` gives; this stack is suspended meanwhile, and the event loop goes on.

    Pyodide's own `run_sync`, with the cycle collector kept from what it cannot bear on a suspended stack.
    """
    from pyodide import ffi

    _collector.suspend()
    try:
        return ffi.run_sync(awaitable)
    finally:
        _collector.resume()
