"""Writes to a store without end and says what was acknowledged: one line for each commit."""

import sys

from ruv_swarm_store import NewEvent, Store


def main(path: str, durability: str) -> None:
    with Store.open(path, durability=durability) as store:  # type: ignore[arg-type]
        agent = store.agents.register("writer")
        number = 0
        while True:
            number += 1
            task = store.tasks.enqueue("t", {"number": number})
            print("task", task.id, flush=True)
            version = store.events.append(agent.id, [NewEvent("wrote", [number, n]) for n in range(3)], type="writer")
            print("version", agent.id, version, flush=True)
            with store.transaction() as work:
                work.config.set("first", number)
                work.config.set("second", number)
            print("config", number, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
