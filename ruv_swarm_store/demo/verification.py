"""The proof: what the swarm stored equals what a recount finds, and every task was completed once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import msgspec

from ruv_swarm_store.demo.crew import spawn
from ruv_swarm_store.demo.run import Run
from ruv_swarm_store.demo.source import belongs
from ruv_swarm_store.demo.totals import Recount, Totals, differences
from ruv_swarm_store.errors import StoreError

TRIES = 3
"""How often the recount is started before it is given up."""
SHOWN = 5
"""Differences named in an error."""
CLOCKS = 20
"""Milliseconds by which a file system's clock may be behind."""


_decode = msgspec.json.Decoder(Recount).decode


class Mismatch(StoreError):
    """The swarm's outcome is not what it must be."""


class Recounting:
    """The recount, in a process of its own while the swarm works."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._tries = 0
        self._result: Recount | None = None
        self._start()

    def _start(self) -> None:
        self._tries += 1
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - both are closed by stop
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = spawn("recount", self._path, stdout=self._said, stderr=self._errors)

    def result(self) -> Recount | None:
        """What was found; None while the counting goes on. Raises `StoreError` when it fails again and again."""
        if self._result is None and (returned := self._process.poll()) is not None:
            if returned == 0:
                self._said.seek(0)
                self._result = _decode(self._said.read())
            elif self._tries < TRIES:
                self.stop()
                self._start()
            else:
                self._errors.seek(0)
                lines = self._errors.read().decode(errors="replace").strip().splitlines() or [f"exit code {returned}"]
                raise StoreError(f"the recount of {self._path} failed: {lines[-1]}", hint="The run can be resumed")
        return self._result

    def stop(self) -> None:
        """Ends the process, if it still runs."""
        self._process.kill()
        self._process.communicate()
        self._said.close()
        self._errors.close()


def verify(run: Run, totals: Totals, recount: Recount) -> None:
    """Raises `Mismatch` unless every task was completed once and the totals are those of the recount."""
    if wrong := run.audit():
        raise Mismatch(
            f"{len(wrong)} tasks did not end as they must: {_some(wrong)}", hint=f"Look at run {run.id} with: ruv-swarm events read"
        )
    if different := differences(totals, recount.totals):
        if changed := _changed_since(run.began, run.path):
            hint = f"Changed since the run began: {_some(changed)}. Run it again while nobody edits the tree"
        else:
            hint = "Nothing in the tree has changed meanwhile, so this is a fault of the demo or of the store: please report it"
        raise Mismatch(f"the swarm and the recount differ: {_some(different)}", hint=hint)


def _changed_since(moment: int, root: str) -> list[str]:
    """What in a tree was changed at a moment or later; a directory for what was added to it or taken away."""
    found = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = filter(belongs, subdirectories)
        for path in (Path(directory), *(Path(directory, name) for name in names if name.endswith(".py"))):
            try:
                changed = path.stat().st_mtime * 1000
            except OSError:
                continue  # gone by now: its directory tells
            if changed >= moment - CLOCKS:
                found.append(str(path))
    return found


def _some(found: list[str]) -> str:
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more
