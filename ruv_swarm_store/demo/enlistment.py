"""Who takes part: one coordinator at a time, and no worker whose process is dead."""

from __future__ import annotations

from ruv_swarm_store.demo.liveness import is_gone, whereabouts
from ruv_swarm_store.demo.work import COORDINATES, COORDINATOR, INDEXER
from ruv_swarm_store.entities import Agent, AgentStatus
from ruv_swarm_store.errors import Conflict
from ruv_swarm_store.schema import agents
from ruv_swarm_store.store import Store

SILENCE = 15.0
"""Seconds without a heartbeat after which an agent is given up, if its process cannot be seen to be dead."""


def enlist(store: Store) -> Agent:
    """Makes this process the coordinator. Raises `Conflict` while another one is at work."""
    with store.transaction() as work:  # between asking and registering nobody else may register
        other = work.agents.find_by_id(COORDINATOR)
        if (
            other is not None
            and other.status is not AgentStatus.TERMINATED
            and work.now - other.last_heartbeat < SILENCE * 1000
            and not is_gone(other.configuration)
        ):
            raise Conflict(
                f"the demo is running on this store already, as process {other.configuration.get('pid')}",
                hint="Wait for it, stop it, or use another --store",
            )
        return work.agents.register(COORDINATES, id=COORDINATOR, name=COORDINATOR, configuration=whereabouts())


def discharge(store: Store) -> None:
    """Terminates the workers of an earlier coordinator whose processes are dead, so that their tasks are free at once."""
    for agent in store.agents.where(agents.c.type == INDEXER, agents.c.status != AgentStatus.TERMINATED):
        if is_gone(agent.configuration):
            store.agents.terminate(agent)


def silent(store: Store) -> list[Agent]:
    """The workers that have not been heard of for too long."""
    return [agent for agent in store.agents.stale(SILENCE) if agent.type == INDEXER]
