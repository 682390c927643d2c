"""Copies a store and stays in the middle of it: says "half" once half of the rows are written, or "all" before the commit."""

import sys

from ruv_swarm_store.transfer import copy


def main() -> None:
    source, target, where = sys.argv[1:]

    def report(step: str, table: str, done: int, total: int) -> None:
        if (step == "copied" and 2 * done > total) if where == "half" else (step == "verified" and done == total):
            print(where, flush=True)
            sys.stdin.readline()

    copy(source, target, report)


if __name__ == "__main__":
    main()
