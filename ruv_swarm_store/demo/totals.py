"""What a tree adds up to, and where two counts of it differ."""

from __future__ import annotations

from msgspec import Struct, field


class Totals(Struct):
    """A tree's totals: the swarm's, added up from the store, or the recount's."""

    files: int = 0
    unparsable: int = 0
    lines: int = 0
    words: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    modules: dict[str, int] = field(default_factory=dict)
    """How many files import each top-level module."""


class Recount(Struct, frozen=True):
    """What the recount found, and how many seconds it took."""

    totals: Totals
    seconds: float


def differences(swarm: Totals, recount: Totals) -> list[str]:
    """Each number in which two counts differ, in words; nothing when they are equal."""
    found = [
        f"{name} {getattr(swarm, name):,} against {getattr(recount, name):,}"
        for name in Totals.__struct_fields__
        if name != "modules" and getattr(swarm, name) != getattr(recount, name)
    ]
    modules = sorted(swarm.modules.keys() | recount.modules.keys())
    found += [
        f"files importing {module} {swarm.modules.get(module, 0):,} against {recount.modules.get(module, 0):,}"
        for module in modules
        if swarm.modules.get(module) != recount.modules.get(module)
    ]
    return found
