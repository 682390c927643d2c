"""The run while it goes on: a live picture on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ruv_swarm_store.demo.progress import AtWork, Progress
from ruv_swarm_store.demo.run import DIRECTORY, FILE, TREE, TYPES
from ruv_swarm_store.entities import AgentStatus, TaskStatus

SHOWN = 12
"""Workers listed; the others are counted."""
PAUSE = 2.0
"""Seconds from one line to the next where there is no terminal."""
STATUSES = (TaskStatus.PENDING, TaskStatus.SCHEDULED, TaskStatus.ASSIGNED, TaskStatus.RUNNING, TaskStatus.COMPLETED, TaskStatus.FAILED)
ALWAYS = (TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.COMPLETED)
"""Statuses shown with nothing in them too."""


class Scene(Struct, frozen=True):
    """What there is to see at one moment."""

    path: str
    elapsed: float
    progress: Progress
    rate: float
    findings: list[str]
    stage: str | None
    """What is being waited for, unless it is the work itself."""


class Display(AbstractContextManager["Display"]):
    """Shows a run, for as long as its `with` block is open."""

    @abstractmethod
    def show(self, scene: Scene) -> None:
        """Shows how things are now."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Tells of something that happened once."""


def display_on(console: Console) -> Display:
    """What suits this console."""
    return Picture(console) if console.is_terminal else Lines(console)


class Lines(Display):
    """One line every now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = 0.0
        self._stage: str | None = None

    def show(self, scene: Scene) -> None:
        """Prints a line when it is time, or when what is waited for changes."""
        if (now := time.monotonic()) < self._next and scene.stage == self._stage:
            return
        self._next, self._stage = now + PAUSE * (1 if scene.stage is None else 5), scene.stage
        progress = scene.progress
        indexed, known = progress.files
        parts = [f"{indexed:,} of {known:,} files"]
        if scene.stage is None:
            parts += [f"{scene.rate:.0f} tasks/s", f"workers: {len(progress.workers)}", f"retries: {progress.retries}"]
        else:
            parts.append(scene.stage)
        self.say(f"{scene.elapsed:6.1f} s  {', '.join(parts)}")

    def say(self, text: str) -> None:
        """Prints a line."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        pass


class Picture(Display):
    """A picture that is redrawn in place and disappears at the end."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._live.stop()

    def show(self, scene: Scene) -> None:
        """Draws it anew."""
        gap = Text()
        parts: list[RenderableType] = [gap, _heading(scene), _bar(scene), gap]
        if scene.progress.workers:
            parts += [_workers(scene.progress), gap]
        parts += [_queue(scene.progress), *_findings(scene)]
        self._live.update(Group(*parts), refresh=True)

    def say(self, text: str) -> None:
        """Prints a line above the picture, where it stays."""
        self._live.console.print(text, markup=False, highlight=False)


def _heading(scene: Scene) -> Table:
    line = Table.grid(expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    line.add_column(no_wrap=True, justify="right")
    minutes, seconds = divmod(int(scene.elapsed), 60)
    line.add_row(Text.assemble(("Indexing ", "bold"), scene.path), Text(f"{minutes}:{seconds:02}", style="bold"))
    hint = scene.stage or "Ctrl-C stops once the files in hand are done; the same command goes on from there"
    line.add_row(Text(hint, style="yellow" if scene.stage else "dim"), "")
    return line


def _bar(scene: Scene) -> Table:
    indexed, known = scene.progress.files
    line = Table.grid(expand=True, padding=(0, 2, 0, 0))
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    retries = f"   retries: {scene.progress.retries}" if scene.progress.retries else ""
    numbers = f"{indexed:,} of {known:,} files   {scene.rate:.0f} tasks/s{retries}"
    line.add_row(ProgressBar(total=known or 1, completed=indexed), Text(numbers))
    return line


_COLOURS = {AgentStatus.IDLE: "dim", AgentStatus.BUSY: "green", AgentStatus.FAILED: "red"}


def _workers(progress: Progress) -> Table:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("worker", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("done", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("doing", ratio=1, no_wrap=True, overflow="ellipsis")
    for worker in progress.workers[:SHOWN]:
        agent = worker.agent
        status = Text(agent.status, style=_COLOURS.get(agent.status, ""))
        pid = str(agent.configuration.get("pid", ""))
        table.add_row(Text(agent.name or agent.id), pid, f"{worker.completed:,}", status, _doing(worker))
    if (more := len(progress.workers) - SHOWN) > 0:
        table.add_row(f"and {more} more")
    return table


def _doing(worker: AtWork) -> Text:
    text = Text(worker.doing or "")
    if worker.doing and worker.seconds >= 1:
        text.append(f"  {worker.seconds:.0f} s", style="yellow")
    return text


def _queue(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tasks", min_width=11)
    shown = [status for status in STATUSES if status in ALWAYS or progress.count(*TYPES, status=status)]
    for status in shown:
        table.add_column(status, justify="right", min_width=9)
    for type in (TREE, DIRECTORY, FILE):
        table.add_row(type.partition(".")[2], *(f"{progress.count(type, status=status):,}" for status in shown))
    return table


def _findings(scene: Scene) -> list[Text]:
    if not scene.findings:
        return []
    return [Text(), Text("findings", style="dim"), *(Text(finding, no_wrap=True, overflow="ellipsis") for finding in scene.findings)]
