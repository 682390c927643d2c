"""`ruv-swarm events` and `ruv-swarm rebuild`: what has happened in a store, whether that is as it was written, what it adds up to."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Annotated

import msgspec
import typer

from ruv_swarm_store import schema
from ruv_swarm_store.cli.options import SWARM, Address, AsJson, Limit, insist, look_into, moment
from ruv_swarm_store.cli.output import compact, counted, instant, print_json, print_table, printable, say, steps_bars
from ruv_swarm_store.demo.stopping import stop_signals
from ruv_swarm_store.entities import Event
from ruv_swarm_store.events.cursors import NOT_JOURNAL
from ruv_swarm_store.store import Store

_e = schema.events.c

app = typer.Typer(no_args_is_help=True, help="Read a store's events, follow them, and verify that nobody has changed them.")

Aggregate = Annotated[str | None, typer.Option(show_default=False, metavar="ID", help="Only of this aggregate.")]
Types = Annotated[list[str] | None, typer.Option("--type", show_default=False, help="Only of this type of event; can be repeated.")]


@app.command()
def read(
    store: Address = SWARM,
    aggregate: Aggregate = None,
    type: Types = None,
    correlation: Annotated[str | None, typer.Option(show_default=False, metavar="ID", help="Only of this correlation.")] = None,
    since: Annotated[str | None, typer.Option(show_default=False, metavar="TIME", help="From then on: 2026-01-31T12:00Z.")] = None,
    until: Annotated[str | None, typer.Option(show_default=False, metavar="TIME", help="Before that time.")] = None,
    after: Annotated[
        int | None, typer.Option(min=0, show_default=False, metavar="POSITION", help="From the first one after it; without, the last ones.")
    ] = None,
    limit: Limit = 50,
    json: AsJson = False,
) -> None:
    """List events in their order."""
    with look_into(store) as found:
        query = found.events.query()
        if aggregate is not None:
            query = query.where(_e.aggregate_id == aggregate)
        if type:
            query = query.where(_e.event_type.in_(type))
        if correlation is not None:
            query = query.where(_e.correlation_id == correlation)
        if since is not None:
            query = query.where(_e.timestamp >= moment(since, "--since"))
        if until is not None:
            query = query.where(_e.timestamp < moment(until, "--until"))
        listed: list[Event]
        if after is not None:
            listed = query.where(_e.position > after).order_by(_e.position.asc()).limit(limit).all()
        else:
            listed = query.order_by(_e.position.desc()).limit(limit).all()[::-1]
    if json:
        print_json(listed)
        return
    print_table(
        ("position", "time", "stream", "aggregate", "number", "event", "data"),
        [
            (
                event.position,
                instant(event.timestamp),
                event.aggregate_type,
                event.aggregate_id,
                event.sequence_number,
                event.event_type,
                compact(event.event_data),
            )
            for event in listed
        ],
        numbers=("position", "number"),
        long="data",
        spare=("number", "stream", "time"),
    )


@app.command()
def tail(
    store: Address = SWARM,
    aggregate: Aggregate = None,
    type: Types = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, metavar="N", help="Begin with so many of the last ones.")] = 10,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, each event on a line of its own.")] = False,
) -> None:
    """Print the last events, and then each one as it comes, until Ctrl-C. The journal's only where `--type` names theirs."""
    with look_into(store) as found, stop_signals() as stop:
        query = found.events.query()
        if aggregate is not None:
            query = query.where(_e.aggregate_id == aggregate)
        query = query.where(_e.event_type.in_(type) if type else NOT_JOURNAL)
        head = found.events.last_position()
        last: list[Event] = query.where(_e.position <= head).order_by(_e.position.desc()).limit(limit).all()[::-1] if limit else []
        _print_lines(last, json)
        coming = found.events.follow(after=head, types=type or None, stop=lambda: stop.signal is not None)
        for event in coming:
            if aggregate is None or event.aggregate_id == aggregate:
                _print_lines([event], json)


def _print_lines(events: Iterable[Event], json: bool) -> None:
    for event in events:
        if json:
            say(msgspec.json.encode(event).decode())
        else:
            stream = f"{event.aggregate_type}/{event.aggregate_id} #{event.sequence_number}"
            words = (event.position, instant(event.timestamp), stream, event.event_type, compact(event.event_data))
            say("  ".join(map(printable, words)))
    sys.stdout.flush()


@app.command()
def verify(
    store: Address = SWARM,
    head: Annotated[str | None, typer.Option(metavar="HASH", show_default=False, help="A hash kept elsewhere, to be in the chain.")] = None,
    seal: Annotated[bool, typer.Option("--seal", help="Then seal the events that came after, and print the new head.")] = False,
    json: AsJson = False,
) -> None:
    """Read the events' hash chain and every event under it again.

    Exits with 1 if one was changed, removed or added.
    """
    insist(store)
    with Store.open(store, migrate=False) if seal else look_into(store) as found:
        audit = found.events.verify(head=head)
        if seal and audit.intact and audit.unsealed:
            found.events.seal()
            audit = found.events.verify(head=head)
    if json:
        print_json(audit)
    else:
        if audit.fault is not None:
            typer.echo(f"Error: {audit.fault.what}", err=True)
        vouched = f"{counted(audit.events, 'event')} under {counted(audit.links, 'seal')}"
        say(f"{vouched} as they were written, {counted(audit.unsealed, 'event')} not sealed")
        if audit.head is not None:
            say(f"head {audit.head}")
    if not audit.intact:
        raise typer.Exit(1)


def rebuild(
    store: Address = SWARM,
    position: Annotated[
        int | None, typer.Option(min=0, metavar="N", show_default=False, help="The rows as they were when that event was new.")
    ] = None,
    into: Annotated[
        str | None, typer.Option(metavar="PATH|URL", show_default=False, help="Also write the rows to a store, created if need be.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Rebuild agents, tasks, groups and configuration from the journal alone, and compare them with the tables.

    Exits with 1 if they differ.
    """
    with look_into(store) as found, steps_bars() as report:
        rebuilt = found.journal.rebuild(until_position=position, into=into, report=report)
    if json:
        print_json(rebuilt)
    else:
        print_table(("table", "rows"), [(name, f"{rows:,}") for name, rows in sorted(rebuilt.rows.items()) if rows], numbers=("rows",))
        for difference in rebuilt.differences:
            columns = f" in {', '.join(difference.columns)}" if difference.columns else ""
            typer.echo(f"Error: {difference.table} {compact(difference.key)} {_DIFFER[difference.what]}{columns}", err=True)
        total = f"{counted(sum(rebuilt.rows.values()), 'row')} from {counted(rebuilt.events, 'event')} up to {rebuilt.position:,}"
        if not rebuilt.compared:
            say(f"{total}; the tables have gone on since")
        elif rebuilt.differing:
            say(f"{total}: {counted(rebuilt.differing, 'row')} not as the journal has them")
        else:
            say(f"{total}: the tables hold just that")
        if rebuilt.into is not None:
            say(f"Written to {rebuilt.into}")
    if rebuilt.differing:
        raise typer.Exit(1)


_DIFFER = {"missing": "is missing in the table", "unknown": "is not in the journal", "changed": "differs"}
