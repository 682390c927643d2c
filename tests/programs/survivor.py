"""A worker process that outlives its server: survivor.py URL NUMBER.

Completes tasks, each with an event in the same transaction, until none is left unfinished; whatever the connection does, it
tries again. Prints `ready`, then the id of each task that it was told it had completed, then how often the server was away.
"""

import sys
import time

from ruv_swarm_store import Conflict, NewEvent, Store
from ruv_swarm_store.errors import Unavailable

LEASE = 2.0  # long enough for a task, short enough to wait for those of a claim whose answer was lost


def main(url: str, number: str) -> None:
    away = 0
    with Store.open(url, durability="full", timeout=10) as store:
        agent = store.agents.register("survivor", name=f"survivor-{number}")
        print("ready", flush=True)
        while True:
            try:
                task = store.tasks.wait(agent, lease=LEASE, timeout=0.2)
                if task is None:
                    stats = store.tasks.stats()
                    if stats.total() == stats.total("completed"):
                        break
                    continue
                time.sleep(0.005)
                with store.transaction() as work:
                    work.tasks.complete(task, number)
                    work.events.append(task.id, [NewEvent("completed", number)], type="task")
                print(task.id, flush=True)
            except Unavailable:
                away += 1
                time.sleep(0.05)
            except Conflict:
                pass  # too slow, or done although the answer was lost
    print("away", away, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
