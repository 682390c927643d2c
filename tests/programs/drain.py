"""A worker process of several threads that drains the queue of a store file: drain.py PATH THREADS LEASE.

Completes each task and appends its event in one transaction, and prints how many each thread claimed.
"""

import sys
import threading

from ruv_swarm_store import LeaseLost, NewEvent, Store


def drain(store: Store, lease: float, claimed: list[int], failures: list[BaseException]) -> None:
    try:
        agent = store.agents.register("drain")
        count = 0
        while (task := store.tasks.claim(agent, lease=lease)) is not None or unfinished(store):
            if task is None:
                store.tasks.rescue()
                task = store.tasks.wait(agent, lease=lease, timeout=0.2)
                if task is None:
                    continue
            count += 1
            try:
                with store.transaction() as work:
                    work.tasks.complete(task, {"by": agent.id})
                    work.events.append(task.id, [NewEvent("completed", {"by": agent.id})], type="task", expected_version=0)
            except LeaseLost:
                continue  # too slow: another has it now
        claimed.append(count)
    except BaseException as error:
        failures.append(error)
        raise


def unfinished(store: Store) -> bool:
    stats = store.tasks.stats()
    return stats.total() > stats.total("completed")


def main() -> None:
    path, threads, lease = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    claimed: list[int] = []
    failures: list[BaseException] = []
    with Store.open(path) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        running = [threading.Thread(target=drain, args=(store, lease, claimed, failures)) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    if failures:
        sys.exit(f"failed: {failures!r}")
    print(sum(claimed), flush=True)


if __name__ == "__main__":
    main()
