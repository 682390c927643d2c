"""What the swarm indexes: which parts of a tree, and what is measured about a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct

SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})
"""Names that are not the source of what they lie in."""

LARGEST = 8_000_000
"""Bytes above which a file is not parsed: a parser at work lets no other thread run, so no lease would be extended."""


class Facts(Struct, frozen=True):
    """What is known about one file. One that does not parse has a `fault`, and lines and words only."""

    lines: int = 0
    words: int = 0
    functions: int = 0
    classes: int = 0
    modules: list[str] = []
    """The top-level modules it imports, each once, by name; relative imports are left out."""
    fault: str | None = None


def belongs(name: str) -> bool:
    """Whether a file or directory of that name is indexed: not what is hidden, generated, or has no name in Unicode."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not name.startswith(".") and name not in SKIPPED


def listing(directory: Path) -> tuple[list[str], list[str]]:
    """The names of the Python files and of the directories in a directory; of one that cannot be read, none."""
    files, directories = [], []
    try:
        for entry in sorted(directory.iterdir()):
            if not belongs(entry.name):
                continue
            if entry.is_dir():
                if not entry.is_symlink():  # a link may lead out of the tree, or back into it
                    directories.append(entry.name)
            elif entry.suffix == ".py" and entry.is_file():
                files.append(entry.name)
    except OSError:
        return [], []
    return files, directories


def measure(path: Path) -> Facts:
    """The facts about a file. One that cannot be read, or is no Python of this version, is a fact too."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Facts(fault=f"cannot be read: {error.strerror}")
    size = Facts(len(content.splitlines()), len(content.split()))
    if len(content) > LARGEST:
        return Facts(size.lines, size.words, fault=f"not parsed: more than {LARGEST:,} bytes")
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        return Facts(size.lines, size.words, fault=f"does not parse: {error.msg} (line {error.lineno})")
    except (ValueError, RecursionError, MemoryError) as error:
        return Facts(size.lines, size.words, fault=f"does not parse: {type(error).__name__} {error}".rstrip())
    functions = classes = 0
    modules: set[str] = set()
    for node in _statements(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                functions += 1
            case ast.ClassDef():
                classes += 1
            case ast.Import():
                modules.update(alias.name.partition(".")[0] for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                modules.add(module.partition(".")[0])
    return Facts(size.lines, size.words, functions, classes, sorted(modules))


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Every statement, at any depth, without going through the expressions: most of a tree's nodes are those."""
    pending: list[Any] = [tree]
    while pending:
        node = pending.pop()
        yield node
        for block in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending.extend(getattr(node, block, ()))
