"""The recount: one process, one loop, no store. What the swarm reports has to equal it.

It shares with the swarm what belongs to a tree, and nothing else: it finds the files and counts them its own way.
"""

from __future__ import annotations

import ast
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import msgspec

from ruv_swarm_store.demo.leash import when_input_ends
from ruv_swarm_store.demo.source import LARGEST, belongs
from ruv_swarm_store.demo.totals import Recount, Totals


def recount(root: str) -> Recount:
    """Counts a tree from beginning to end."""
    steps = counting(root)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def counting(root: str) -> Generator[None, None, Recount]:
    """Counts a tree, one file at a time; whoever is in the same thread may do something else in between."""
    started = time.perf_counter()
    totals = Totals()
    modules: Counter[str] = Counter()
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = filter(belongs, subdirectories)
        for path in (Path(directory, name) for name in names if name.endswith(".py") and belongs(name)):
            if not path.is_file():
                continue
            yield
            totals.files += 1
            try:
                content = path.read_bytes()
            except OSError:
                totals.unparsable += 1
                continue
            totals.lines += len(content.splitlines())
            totals.words += len(content.split())
            imported = set()
            try:
                if len(content) > LARGEST:
                    raise ValueError("too large")
                for node in ast.walk(ast.parse(content)):
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        totals.functions += 1
                    elif isinstance(node, ast.ClassDef):
                        totals.classes += 1
                    elif isinstance(node, ast.Import):
                        imported |= {alias.name.split(".")[0] for alias in node.names}
                    elif isinstance(node, ast.ImportFrom) and node.level == 0:
                        imported.add(str(node.module).split(".", maxsplit=1)[0])
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                totals.unparsable += 1
            modules.update(imported)
    totals.imports = modules.total()
    totals.modules = dict(modules)
    return Recount(totals, time.perf_counter() - started)


if __name__ == "__main__":
    when_input_ends(lambda: os._exit(1))
    warnings.simplefilter("ignore")  # about the code that is read
    sys.stdout.buffer.write(msgspec.json.encode(recount(sys.argv[1])))
