"""Fleets of processes that work on one store and back it up, each to be killed as a whole.

For each directory, a line of its input, it starts a process group and prints its leader's number, and at last how that has ended, as
`Popen.returncode` tells. Writers note in `acks.N` what was acknowledged to them, and when; those that ship, of which the leader makes
backups, too, note in `shipped` how far they were told that the storage had got. Whichever ends by itself leaves in `ended.PID` why.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from pathlib import Path

from ruv_swarm_store import NewEvent, Store, StoreError
from ruv_swarm_store.clock import system_clock

WRITERS = 10


def note(file: int, *words: object) -> None:
    os.write(file, (" ".join(map(str, words)) + "\n").encode())


def opened(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def write(directory: Path, number: int) -> None:
    acks = opened(directory / f"acks.{number}")
    with Store.open(directory / "swarm.db") as store:
        agent = store.agents.register("writer", name=f"w-{number}")
        count = 0
        while True:
            count += 1
            store.events.append(f"w-{number}", [NewEvent("tick", {"count": count})], type="writer")
            note(acks, "event", f"w-{number}", count, system_clock())
            store.tasks.enqueue("work", {"by": number, "count": count})
            if (task := store.tasks.claim(agent, lease=600.0)) is not None:
                store.tasks.start(task)
                store.tasks.complete(task, result={"by": number})
                note(acks, "task", task.id, number, system_clock())
            time.sleep(0.01)


def ship(directory: Path, *, making: bool = False) -> None:
    shipped = opened(directory / "shipped")
    with Store.open(directory / "swarm.db") as store, store.backups.continuous(0.05) as shipping:

        def make() -> None:
            count = 0
            while True:
                try:
                    store.backups.create("full" if count % 4 == 0 else "incremental")
                    store.backups.prune(1)
                except StoreError as error:
                    note(shipped, "failed", error)
                count += 1
                time.sleep(0.2)

        if making:
            threading.Thread(target=make, daemon=True).start()
        while True:
            note(shipped, "shipped", shipping.ship().instant)
            time.sleep(0.03)


def lead(directory: Path) -> None:
    os.setsid()
    Store.open(directory / "swarm.db").close()
    for number in range(WRITERS):
        if not os.fork():
            write(directory, number)
    if not os.fork():
        ship(directory)
    ship(directory, making=True)


def main() -> None:
    for line in sys.stdin:
        leader = os.fork()
        if not leader:
            directory = Path(line.strip())
            try:
                lead(directory)
            except BaseException:
                (directory / f"ended.{os.getpid()}").write_text(traceback.format_exc())
            finally:
                os._exit(1)
        print(leader, flush=True)
        _, status = os.waitpid(leader, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
