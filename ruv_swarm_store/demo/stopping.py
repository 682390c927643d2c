"""Being asked to stop: by Ctrl-C or by SIGTERM, once or again."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """What the signals have said so far."""

    signal: int | None = None
    """The first one."""
    at_once = False
    """Whether there was a second one."""

    def asked(self, number: int, frame: FrameType | None) -> None:
        """Takes note of a signal."""
        self.at_once = self.signal is not None
        if self.signal is None:
            self.signal = number


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """While the block runs, Ctrl-C and SIGTERM interrupt nothing: they are noted for it to look at."""
    stop = Stop()
    before = {number: signal.signal(number, stop.asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
