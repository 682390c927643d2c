"""The commands of `ruv-swarm`."""

from __future__ import annotations

import os
import shlex
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import func, select
from typer.core import TyperGroup

from ruv_swarm_store import migrations, schema
from ruv_swarm_store.cli.backups import app as backup_commands
from ruv_swarm_store.cli.history import app as event_commands
from ruv_swarm_store.cli.history import rebuild
from ruv_swarm_store.cli.options import SWARM, Address, AsJson, Limit, insist, look_into, opened
from ruv_swarm_store.cli.output import compact, console, counted, instant, print_json, print_table, printable, say, span, steps_bars
from ruv_swarm_store.entities import AgentStatus, Task, TaskStatus
from ruv_swarm_store.errors import StoreError
from ruv_swarm_store.schema import LEASED
from ruv_swarm_store.store import Store

_DISTRIBUTION = "ruv-swarm-store"

_a, _t = schema.agents.c, schema.tasks.c


class _Commands(TyperGroup):
    """Says in a line what went wrong with a store, where a traceback would take fifty."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StoreError as error:
            typer.echo(f"Error: {error.message}", err=True)
            if error.hint:
                typer.echo(error.hint, err=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Do a swarm's tasks, look into its store, back it up, copy it, bring its schema up to date, or see a demo: ruv-swarm demo",
)

DEMO = "ruv-swarm-demo.db"


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            say(f"ruv-swarm {version(_DISTRIBUTION)}")
        except PackageNotFoundError:
            say("ruv-swarm (not installed)")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    pass


# --- a swarm at work ---------------------------------------------------------------------------------------------------


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def demo(
    path: Annotated[
        Path | None,
        typer.Argument(
            exists=True, file_okay=False, resolve_path=True, show_default=False, help="The tree; without, Python's own library."
        ),
    ] = None,
    store: Annotated[str, typer.Option("--store", "-s", metavar="PATH|URL", help="Where the run is kept.")] = DEMO,
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, show_default=False, help="Worker processes; without, one a processor, 2 to 4.")
    ] = None,
    pace: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Slow down each file, to watch or to kill workers.")] = 0.0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier runs, finished or not.")] = False,
) -> None:
    """Let a swarm of processes index a tree of Python source.

    Kill any worker, or all of them, or stop with Ctrl-C:
    the same command goes on from there.

    The report is printed once its totals have been found
    equal to those of a plain recount.
    """
    import sysconfig

    from ruv_swarm_store.demo.coordinator import conduct
    from ruv_swarm_store.demo.display import display_on
    from ruv_swarm_store.demo.outcome import Stopped
    from ruv_swarm_store.demo.report import report

    tree = path or Path(sysconfig.get_path("stdlib")).resolve()
    out = console()
    ended = conduct(
        store,
        str(tree),
        workers=workers or max(2, min(4, _processors())),
        slowdown=pace,
        fresh=fresh,
        display=display_on(out),
    )
    if isinstance(ended, Stopped):
        again = ["ruv-swarm", "demo", *([str(path)] if path else []), *(["-s", store] if store != DEMO else [])]
        say(f"Stopped after {ended.files:,} of {ended.known:,} known files. To go on from there: {shlex.join(again)}")
        raise typer.Exit(128 + ended.signal)
    report(ended, out, shlex.join(["ruv-swarm", "status", "-s", store]))


# --- working -------------------------------------------------------------------------------------------------------------


@app.command()
def work(
    function: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", show_default=False, help="What does a task; it is given the task.")],
    store: Address = SWARM,
    type: Annotated[list[str] | None, typer.Option("--type", "-t", show_default=False, help="Only tasks of it; can be repeated.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=1, metavar="N", help="So many tasks at a time, in threads.")] = 1,
    lease: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="How soon others get the tasks of a dead worker.")] = 30.0,
    name: Annotated[str | None, typer.Option(show_default=False, help="The agent's name; without, one of its own.")] = None,
) -> None:
    """Do tasks: call a function with each and keep what it returns.

    Ctrl-C or SIGTERM lets it finish what it is at,
    a second one returns that to the queue.
    """
    import logging

    from ruv_swarm_store.worker import Worker, find

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    sys.path.insert(0, str(Path.cwd()))
    does = find(function)
    insist(store)
    with Store.open(store) as found:
        clean = Worker(found, does, types=type, concurrency=concurrency, lease=lease, name=name).run(signals=True)
        if not clean:  # functions still run, in threads that nobody can end
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


# --- what a store holds ------------------------------------------------------------------------------------------------


@app.command()
def status(store: Address = SWARM, json: AsJson = False) -> None:
    """Show the agents, the queue and how fast it moves."""
    with look_into(store) as found:
        stats = found.tasks.stats()
        by_status = {row[0]: row[1] for row in found.execute(select(_a.status, func.count()).group_by(_a.status))}
        agents = found.agents.where(_a.status != AgentStatus.TERMINATED).order_by(_a.created_at.asc(), _a.id.asc()).all()
        holding = select(_t.agent_id, func.count()).where(_t.status.in_(LEASED)).group_by(_t.agent_id)
        held = {row[0]: row[1] for row in found.execute(holding)}
        events, messages = found.events.last_position(), found.messages.count()
        address = printable(found.address)
    if json:
        print_json(
            {
                "store": address,
                "revision": schema.REVISION,
                "agents": by_status,
                "tasks": stats.counts,
                "oldest_ready": stats.oldest_ready,
                "completed_per_second": stats.completed_per_second,
                "events": events,
                "messages": messages,
            }
        )
        return
    now = time.time_ns() // 1_000_000
    say(f"{address} at revision {schema.REVISION}: {counted(events, 'event')}, {counted(messages, 'message')}")
    waiting = "none is ready" if stats.oldest_ready is None else f"the longest ready one has waited for {span(now - stats.oldest_ready)}"
    say(f"{stats.completed_per_second:.1f} tasks completed a second over the last minute, {waiting}")
    gone = by_status.get(AgentStatus.TERMINATED, 0)
    say(f"{counted(len(agents), 'agent')}{f', and {gone:,} terminated' if gone else ''}")
    if agents:
        say("")
        print_table(
            ("agent", "type", "status", "tasks", "heartbeat"),
            [
                (agent.name or agent.id, agent.type, agent.status, held.get(agent.id, 0), f"{span(now - agent.last_heartbeat)} ago")
                for agent in agents
            ],
            numbers=("tasks", "heartbeat"),
        )
    if stats.counts:
        statuses = [state for state in TaskStatus if any(state in counts for counts in stats.counts.values())]
        say("")
        print_table(
            ("tasks", *statuses),
            [(type, *(f"{counts.get(state, 0):,}" for state in statuses)) for type, counts in sorted(stats.counts.items())],
            numbers=statuses,
        )


@app.command()
def tasks(
    store: Address = SWARM,
    status: Annotated[list[TaskStatus] | None, typer.Option(show_default=False, help="Only those; can be repeated.")] = None,
    type: Annotated[list[str] | None, typer.Option(show_default=False, help="Only those; can be repeated.")] = None,
    limit: Limit = 50,
    json: AsJson = False,
) -> None:
    """List tasks, the latest first."""
    with look_into(store) as found:
        query = found.tasks.query()
        if status:
            query = query.where(_t.status.in_(status))
        if type:
            query = query.where(_t.type.in_(type))
        listed: list[Task] = query.order_by(_t.position.desc()).limit(limit).all()
        names = {agent.id: agent.name for agent in found.agents.find_many({task.agent_id for task in listed if task.agent_id})}
    if json:
        print_json(listed)
        return
    print_table(
        ("id", "type", "status", "priority", "retries", "agent", "created", "error", "payload"),
        [
            (
                task.id,
                task.type,
                task.status,
                task.priority,
                task.retry_count,
                task.agent_id and (names.get(task.agent_id) or task.agent_id),
                instant(task.created_at),
                task.error_message,
                compact(task.payload),
            )
            for task in listed
        ],
        numbers=("priority", "retries"),
        long="payload",
        spare=("error", "created", "priority", "agent", "retries", "type"),
    )


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", show_default=False, help="The store's path or URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", show_default=False, help="Where to: created if need be, and without rows.")],
    json: AsJson = False,
) -> None:
    """Copy a whole store to another place or engine, all or nothing.

    What arrives is compared, row for row, with what was sent.
    """
    from ruv_swarm_store import transfer

    insist(source)
    with steps_bars() as report:
        contents = transfer.copy(source, target, report)
    if json:
        print_json(contents)
        return
    print_table(
        ("table", "rows", "checksum"),
        [(name, f"{content.rows:,}", content.checksum[:16]) for name, content in sorted(contents.items()) if content.rows],
        numbers=("rows",),
    )
    say(f"{counted(sum(content.rows for content in contents.values()), 'row')} copied, and verified in the target")


# --- its schema ----------------------------------------------------------------------------------------------------------


def _name(revision: str | None) -> str:
    return revision or "base"


@app.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="Up to which one.")] = "head",
    store: Address = SWARM,
) -> None:
    """Bring the schema up to date, creating the store where there is none."""
    with opened(store) as engine:
        before = migrations.current(engine)
        migrations.upgrade(engine, revision)
        after = migrations.current(engine)
        say(f"{engine.name} {'is' if before == after else f'went from {_name(before)}'} {'at' if before == after else 'to'} {_name(after)}")


@app.command(context_settings={"ignore_unknown_options": True})  # -1 is a revision
def downgrade(
    revision: Annotated[str, typer.Argument(help="Down to which one; -1 takes back one, base all.")],
    store: Address = SWARM,
) -> None:
    """Take revisions back, and with them what was stored in the tables and columns they brought."""
    insist(store)
    with opened(store) as engine:
        before = migrations.current(engine)
        migrations.downgrade(engine, revision)
        say(f"{engine.name} went from {_name(before)} to {_name(migrations.current(engine))}")


@app.command()
def current(store: Address = SWARM) -> None:
    """Show the revision the schema is at."""
    insist(store)
    with opened(store, read_only=True) as engine:
        at = migrations.current(engine)
    say(f"{_name(at)}{' (head)' if at == schema.REVISION else ''}")


@app.command()
def history(store: Address = SWARM, json: AsJson = False) -> None:
    """List the schema's revisions and when they were applied here."""
    insist(store)
    with opened(store, read_only=True) as engine:
        revisions = migrations.history(engine)
    if json:
        print_json(revisions)
        return
    print_table(
        ("revision", "name", "applied", "checksum"),
        [(revision.id, revision.name, instant(revision.applied_at) or "no", revision.checksum[:12]) for revision in revisions],
    )


@app.command()
def check(store: Address = SWARM) -> None:
    """Check that the store is whole: its revision, the history of its schema, its tables and references."""
    insist(store)
    with opened(store, read_only=True) as engine:
        migrations.verify(engine)
        wrong = engine.check()
        if (at := migrations.current(engine)) != schema.REVISION:
            wrong.append(f"the schema is at {_name(at)}, and this release works with {schema.REVISION}: run ruv-swarm upgrade")
        if wrong:
            for line in wrong:
                typer.echo(f"Error: {line}", err=True)
            raise typer.Exit(1)
        say(f"{engine.name} is whole, at {_name(at)}")


# --- its history, and its backups ----------------------------------------------------------------------------------------

app.command()(rebuild)
app.add_typer(event_commands, name="events")
app.add_typer(backup_commands, name="backup")
