"""How a process notices that the one that started it is gone, or wants it gone: its standard input ends."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def when_input_ends(act: Callable[[], object]) -> None:
    """Calls `act`, on a thread of its own, once standard input has ended."""

    def follow() -> None:
        while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin.read(): its lock would be held when the interpreter ends
            pass
        act()

    threading.Thread(target=follow, name="leash", daemon=True).start()
