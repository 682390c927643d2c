"""What commands have in common: which store, how much of it, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ruv_swarm_store.clock import milliseconds
from ruv_swarm_store.engines import IN_BROWSER, Engine, Options, connect
from ruv_swarm_store.errors import InvalidValue, NotFound
from ruv_swarm_store.store import Store

Address = Annotated[str, typer.Option("--store", "-s", envvar="RUV_SWARM_STORE", metavar="PATH|URL", help="The store.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, metavar="N", help="Print at most so many.")]

SWARM = "swarm.db"


def insist(address: str) -> None:
    """Raises `NotFound` for a path at which there is nothing: looking at a store never creates one."""
    if not IN_BROWSER and "://" not in address and not Path(address).exists():
        raise NotFound(f"there is no store at {address}", hint="Name one with --store or RUV_SWARM_STORE; `ruv-swarm upgrade` creates it")


def look_into(address: str) -> Store:
    """A store, to read from."""
    insist(address)
    return Store.open(address, read_only=True)


@contextmanager
def opened(address: str, *, read_only: bool = False) -> Iterator[Engine]:
    """A database, whatever revision its schema is at."""
    engine = connect(address, Options(read_only=read_only))
    try:
        yield engine
    finally:
        engine.close()


def moment(text: str, what: str) -> int:
    """A time given as ISO 8601 has it, or in milliseconds since the epoch. Raises `InvalidValue` for another, and without a zone."""
    if text.lstrip("-").isdecimal():
        return milliseconds(int(text), what)
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidValue(f"{what} is {text!r}", hint=f"Give a time such as {datetime.now(UTC):%Y-%m-%dT%H:%MZ}") from error
    if time.tzinfo is None:
        raise InvalidValue(f"{what} {text} has no time zone", hint=f"Is it {text}Z, in UTC, or {text}+02:00?")
    return milliseconds(time, what)
