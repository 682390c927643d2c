"""Whether the process behind an agent is provably dead."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any


def whereabouts() -> dict[str, Any]:
    """Where this process can be found; agents carry it in their configuration."""
    return {"pid": os.getpid(), "host": platform.node()}


def is_gone(configuration: dict[str, Any]) -> bool:
    """Whether the process an agent registered is no more.

    False when that cannot be told, as for another machine's process: such an agent is given up once it has fallen silent.
    """
    pid = configuration.get("pid")
    if not isinstance(pid, int) or configuration.get("host") != platform.node():
        return False
    if pid == os.getpid():
        return True  # it had the number that this process has now
    if os.name != "posix":
        return False  # elsewhere os.kill(pid, 0) does not ask, it kills
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("Z", "X")
