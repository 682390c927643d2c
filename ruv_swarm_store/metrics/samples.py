"""What is measured: samples to record, and the metrics they become."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from sqlalchemy import select

from ruv_swarm_store import codec, schema
from ruv_swarm_store.clock import Moment, milliseconds
from ruv_swarm_store.engines import Executor, text_items
from ruv_swarm_store.entities import Agent, Metric
from ruv_swarm_store.errors import InvalidValue
from ruv_swarm_store.query import Mapping

METRICS = Mapping(schema.metrics, Metric)

UNTIMED = -1
"""The time of a metric that is given one when it is written."""


_KNOWN = select(schema.agents.c.id).where(schema.agents.c.id.in_(text_items("ids")))


class Sample(Struct, frozen=True, gc=False):
    """A value to record; `at` is when it was measured, now if left out."""

    name: str
    value: float
    agent: Agent | str | None = None
    type: str = "gauge"
    unit: str = ""
    tags: dict[str, Any] | None = None
    at: Moment | None = None


Row = tuple[str, float, int, str, str, str | None, str, int]
"""A metric's row without its number; tags are JSON text."""


def seal(sample: Sample, now: int = UNTIMED) -> Row:
    """The row of a sample, measured `now` unless it says when. Raises `InvalidValue` for what cannot be stored."""
    agent, at, tags = sample.agent, sample.at, sample.tags
    if isinstance(agent, Agent):
        agent = agent.id
    if tags is not None and not isinstance(tags, dict):
        raise InvalidValue(f"tags is {tags!r}", hint="Give a dict")
    return (
        codec.text(sample.name, "metric name"),
        codec.real(sample.value, "value"),
        now if at is None else codec.integer(milliseconds(at, "at"), "at", 0),
        codec.text(sample.type, "type"),
        codec.text(sample.unit, "unit"),
        None if agent is None else codec.text(agent, "agent"),
        "{}" if tags is None else codec.seal(tags, "tags")[1],
        1,
    )


def metric_of(row: Row, id: int = 0) -> Metric:
    """The metric of a row."""
    name, value, timestamp, type_, unit, agent, tags, version = row
    return Metric(name, value, timestamp, type_, unit, agent, {} if tags == "{}" else codec.decode(tags), version, id)


def agent_of(row: Row) -> str | None:
    """The agent's id."""
    return row[5]


def known_agents(run: Executor, rows: Iterable[Row]) -> set[str | None]:
    """Those of the rows' agents that exist; None always does."""
    ids = {agent_of(row) for row in rows} - {None}
    return {None, *(id for (id,) in run.all(_KNOWN, {"ids": codec.encode(list(ids))}))}
