"""The `ruv-swarm` command: do tasks, look into a store, copy it, bring its schema up to date, and see a swarm at work."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command."""
    try:
        from ruv_swarm_store.cli.commands import app
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        sys.exit(f"ruv-swarm needs {missing.name}, which is not installed: pip install 'ruv-swarm-store[cli]'")
    app(prog_name="ruv-swarm")
