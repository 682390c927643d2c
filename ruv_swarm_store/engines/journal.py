"""The journal: triggers by which the database itself writes an event for every change to what a swarm's state is made of.

They are made from the metadata, in each dialect's words. Whoever changes a row, and however, its event is part of the same
transaction. On PostgreSQL they run when that is about to commit: only then is the lock taken that keeps events in order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from msgspec import Struct
from sqlalchemy import Column, ColumnElement, Dialect, Table, Text, delete, func, insert, select, text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from ruv_swarm_store import codec, schema

_JOURNALED = {
    schema.agents,
    schema.tasks,
    schema.task_dependencies,
    schema.task_failures,
    schema.task_schedules,
    schema.task_pauses,
    schema.task_limits,
    schema.agent_groups,
    schema.agent_group_members,
    schema.swarm_config,
}
TABLES: Sequence[Table[Any]] = [table for table in schema.metadata.sorted_tables if table in _JOURNALED]
"""What is journaled; tables that others refer to come before those."""

MARKS = "journal"
"""The id and the type of the stream that tells when the journal was started and stopped."""
STARTED, STOPPED = "journal.started", "journal.stopped"
IN_JSON = "json"
"""In an event's metadata, for a column that is null in its data: it holds JSON's null, not none at all."""


class Speaker(Protocol):
    """An executor, or SQLAlchemy's connection: it speaks a dialect and runs statements."""

    @property
    def dialect(self) -> Dialect: ...

    def execute(self, statement: Any, params: Any, /) -> Any: ...


class Journaling(Struct, frozen=True):
    """That the journal is being written, and since when."""

    started_at: int
    """In milliseconds since the epoch."""
    after: int
    """The position of the last event before it began: with an `inserted` event for every row there was."""


def stream_type(table: Table[Any]) -> str:
    """The aggregate type of a table's events."""
    return f"journal.{table.name}"


def key(table: Table[Any]) -> Sequence[Column[Any]]:
    """The columns that name a row: its id where the primary key is but its place in an order."""
    return list(table.primary_key) if table.autoincrement_column is None else [table.c.id]


def stream_id(table: Table[Any]) -> ColumnElement[str]:
    """The aggregate id of the events of a table's row: its key, or the JSON array of what makes it up."""
    return _StreamId(table.c.values()[0]).label("stream_id")


# On and off. What changes the database belongs into a transaction.


def journaling(on: Speaker) -> Journaling | None:
    """Since when there is a journal; None where none is written, or not all of it since its triggers are not in force, or not these."""
    for started_at, after, there in on.execute(_STATE, {}):
        if _WORDS[on.dialect.name].are_among(codec.decode(there or "[]")):
            return Journaling(started_at, after)
    return None


def begun(on: Speaker) -> bool:
    """Whether it was started and not stopped, whatever has become of its triggers."""
    return bool(list(on.execute(_BEGUN, {})))


def start(on: Speaker, now: int) -> Journaling:
    """Has every change from now on journaled, after an `inserted` event for each row there is."""
    words = _WORDS[on.dialect.name]
    _run(on, words.alone("SHARE ROW EXCLUSIVE"))
    install(on)
    ((after,),) = on.execute(_HEAD, {})
    for table in TABLES:
        on.execute(text(words.base(table)), {})
    _mark(on, STARTED, {"after": after, "revision": schema.REVISION})
    on.execute(delete(schema.event_journal), {})
    on.execute(insert(schema.event_journal).values(id=1, started_at=now, after=after), {})
    return Journaling(now, after)


def stop(on: Speaker) -> None:
    """Ends the journal; what it says stays."""
    remove(on)
    on.execute(delete(schema.event_journal), {})
    _mark(on, STOPPED, {})


def install(on: Speaker) -> None:
    """Puts the triggers in place, for a database that has the rows and the events of a journaled one."""
    words = _WORDS[on.dialect.name]
    for table in TABLES:
        _run(on, words.drop(table))
        _run(on, words.create(table))


def remove(on: Speaker) -> None:
    """Takes the triggers away, and nothing else."""
    words = _WORDS[on.dialect.name]
    _run(on, words.alone("ACCESS EXCLUSIVE"))
    for table in TABLES:
        _run(on, words.drop(table))


def give_way(on: Speaker) -> None:
    """Makes the rest of the transaction wait for others' only so long that none of them is sacrificed to it."""
    _run(on, _WORDS[on.dialect.name].give_way)


def _run(on: Speaker, statements: Sequence[str]) -> None:
    for statement in statements:
        on.execute(text(statement), {})


def _mark(on: Speaker, kind: str, data: Mapping[str, Any]) -> None:
    words = _WORDS[on.dialect.name]
    statement = words.event(f"'{MARKS}'", MARKS, kind, words.json(":data"), "NULL")
    on.execute(text(statement), {"data": codec.encode(data)})


# The dialects' words


class _Words(ABC):
    """How a dialect says it. `old` and `new` name a row before and after its change."""

    give_way: Sequence[str] = ()
    moment: str
    """The present, in milliseconds since the epoch."""
    id: str
    """A new id that begins with `clock.now`."""

    def are_among(self, there: Sequence[str]) -> bool:
        """Whether all the triggers are among those of a database, given as `_Installed` tells them."""
        return {one for table in TABLES for one in _told(self, table)} <= set(there)

    @abstractmethod
    def alone(self, mode: str) -> Sequence[str]:
        """Waits until nobody else is changing the tables, or adding events, and keeps them from it."""

    @abstractmethod
    def create(self, table: Table[Any]) -> Sequence[str]:
        """The triggers of one table."""

    @abstractmethod
    def told(self, table: Table[Any]) -> Sequence[str]:
        """The triggers of one table as `_Installed` tells them."""

    @abstractmethod
    def drop(self, table: Table[Any]) -> Sequence[str]:
        """No triggers of one table, whether it has any or not."""

    @abstractmethod
    def json(self, text: str) -> str:
        """JSON text as a value for a column."""

    @abstractmethod
    def object(self, row: str, columns: Sequence[Column[Any]]) -> str:
        """A JSON object of these columns of a row."""

    @abstractmethod
    def changes(self, members: Sequence[str]) -> str:
        """A JSON object of members given as text, each after a comma; those that are NULL are left out."""

    @abstractmethod
    def member(self, row: str, column: Column[Any]) -> str:
        """A column's value as JSON text."""

    @abstractmethod
    def differs(self, column: Column[Any]) -> str:
        """Whether a column was changed."""

    @abstractmethod
    def in_json(self, row: str, columns: Sequence[Column[Any]]) -> str:
        """An object that has `IN_JSON` under the name of each of these columns that holds JSON's null; NULL where none does."""

    def event(self, key: str, type_: str, kind: str, data: str, metadata: str, source: str = "") -> str:
        """INSERT of an event, or of one for each row of a source."""
        return f"""\
INSERT INTO events (id, aggregate_id, aggregate_type, event_type, event_data, metadata, timestamp, sequence_number)
SELECT {self.id}, {key}, '{type_}', '{kind}', {data}, {metadata}, clock.now, 1 + coalesce(
    (SELECT max(sequence_number) FROM events WHERE aggregate_id = {key} AND aggregate_type = '{type_}'), 0)
FROM (SELECT {self.moment} AS now) AS clock{source}"""  # noqa: S608 - names of the schema's

    def inserted(self, table: Table[Any], source: str = "") -> str:
        """The event of a row that is new."""
        return self._event(table, "inserted", "new", self.object("new", list(table.c)), list(table.c), source)

    def updated(self, table: Table[Any]) -> str:
        """The event of a row that was changed under the same key."""
        columns = [column for column in table.c if column not in key(table)]
        members = [f"""CASE WHEN {self.differs(c)} THEN ',"{c.name}":' || {self.member("new", c)} END""" for c in columns]
        return self._event(table, "updated", "new", self.changes(members), columns)

    def deleted(self, table: Table[Any]) -> str:
        """The event of a row that is gone."""
        return self._event(table, "deleted", "old", self.object("old", key(table)), ())

    def base(self, table: Table[Any]) -> str:
        """The events of the rows that are there."""
        return self.inserted(table, f", {table.name} AS new")

    def _event(self, table: Table[Any], what: str, row: str, data: str, columns: Sequence[Column[Any]], source: str = "") -> str:
        of_two_nulls = [column for column in columns if isinstance(column.type, schema.Json) and column.nullable]
        metadata = self.in_json(row, of_two_nulls) if of_two_nulls else "NULL"
        return self.event(self.stream_id(table, row), stream_type(table), f"{table.name}.{what}", data, metadata, source)

    def stream_id(self, table: Table[Any], row: str) -> str:
        """`stream_id` of a row."""
        first, *others = key(table)
        if not others:
            return f'{row}."{first.name}"'
        return " || ',' || ".join([f"'[' || {self.member(row, first)}", *(self.member(row, column) for column in others)]) + " || ']'"


@cache
def _told(words: _Words, table: Table[Any]) -> Sequence[str]:
    return words.told(table)


class _SQLite(_Words):
    moment = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"  # unixepoch() has milliseconds since 3.42 only
    id = "printf('%012x', clock.now) || lower(hex(randomblob(10)))"

    def alone(self, mode: str) -> Sequence[str]:
        return ()  # as who writes always is

    def create(self, table: Table[Any]) -> Sequence[str]:
        name = table.name
        same = " AND ".join(f'old."{column.name}" IS new."{column.name}"' for column in key(table))
        # What is most often changed comes first: one difference decides.
        others = sorted((column for column in table.c if column not in key(table)), key=lambda column: column.name != "version")
        bodies = {
            ("inserted", "INSERT", ""): [self.inserted(table)],
            ("deleted", "DELETE", ""): [self.deleted(table)],
            ("renamed", "UPDATE", f"WHEN NOT ({same}) "): [self.deleted(table), self.inserted(table)],
        }
        if others:
            changed = " OR ".join(map(self.differs, others))
            bodies["updated", "UPDATE", f"WHEN {same} AND ({changed}) "] = [self.updated(table)]
        return [
            f"CREATE TRIGGER journal_{name}_{what} AFTER {verb} ON {name} {when}BEGIN\n"
            + "".join(f"{event};\n" for event in events)
            + "END"
            for (what, verb, when), events in bodies.items()
        ]

    def told(self, table: Table[Any]) -> Sequence[str]:
        return self.create(table)

    def drop(self, table: Table[Any]) -> Sequence[str]:
        return [f"DROP TRIGGER IF EXISTS journal_{table.name}_{what}" for what in ("inserted", "updated", "deleted", "renamed")]

    def json(self, text: str) -> str:
        return text

    def object(self, row: str, columns: Sequence[Column[Any]]) -> str:
        members = ", ".join(f"'{column.name}', {self._value(row, column)}" for column in columns)
        return f"json_object({members})"

    def _value(self, row: str, column: Column[Any]) -> str:
        value = f'{row}."{column.name}"'
        return f"json({value})" if isinstance(column.type, schema.Json) else value

    def changes(self, members: Sequence[str]) -> str:
        # One call: a chain of || copies everything again with each of its links.
        form = "%s" * len(members)
        return f"'{{' || substr(printf('{form}', {', '.join(members)}), 2) || '}}'"

    def member(self, row: str, column: Column[Any]) -> str:
        value = f'{row}."{column.name}"'
        if isinstance(column.type, schema.Json | schema.Int64):  # valid JSON as they are
            return f"coalesce({value}, 'null')" if column.nullable else value
        return f"json_quote({value})"

    def differs(self, column: Column[Any]) -> str:
        return f'old."{column.name}" IS NOT new."{column.name}"'

    def in_json(self, row: str, columns: Sequence[Column[Any]]) -> str:
        spaces = "char(9, 10, 13, 32)"
        marks = ", ".join(f"'{c.name}', CASE trim({row}.\"{c.name}\", {spaces}) WHEN 'null' THEN '{IN_JSON}' END" for c in columns)
        return f"nullif(json_patch('{{}}', json_object({marks})), '{{}}')"


class _PostgreSQL(_Words):
    give_way = ("SET LOCAL lock_timeout = '500ms'",)  # half of what the server waits before it looks for a deadlock
    moment = "floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    id = "lpad(to_hex(clock.now), 12, '0') || right(replace(gen_random_uuid()::text, '-', ''), 20)"

    def alone(self, mode: str) -> Sequence[str]:
        names = ", ".join(f"'{table.name}'" for table in TABLES)
        # Those that are there: the one that a revision is about to make is not.
        return [
            f"""\
DO $$ BEGIN EXECUTE (
    SELECT 'LOCK TABLE ' || string_agg(name, ', ' ORDER BY place) || ' IN {mode} MODE'
    FROM unnest(ARRAY[{names}]) WITH ORDINALITY AS journaled (name, place) WHERE to_regclass(name) IS NOT NULL
); END $$""",  # noqa: S608 - names of the schema's
            "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '.events', 0))",
        ]

    def create(self, table: Table[Any]) -> Sequence[str]:
        name = table.name
        same = " AND ".join(f'old."{column.name}" = new."{column.name}"' for column in key(table))
        update = self.updated(table) if len(key(table)) < len(table.c) else "NULL"
        # The last number of the stream is no longer another's to change: who has changed a row keeps others from it until the end.
        function = f"""\
CREATE FUNCTION journal_{name}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
IF TG_OP = 'TRUNCATE' THEN
  RAISE EXCEPTION USING MESSAGE = '{name} is journaled: DELETE its rows', ERRCODE = 'feature_not_supported';
END IF;
IF TG_OP = 'UPDATE' THEN
  IF {same} THEN
    {update};
    RETURN NULL;
  END IF;
END IF;
IF TG_OP <> 'INSERT' THEN
  {self.deleted(table)};
END IF;
IF TG_OP <> 'DELETE' THEN
  {self.inserted(table)};
END IF;
RETURN NULL;
END $$"""
        deferred = f"ON {name} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
        # Triggers are spelled as the server tells them. Rows are compared by their bytes: to the comparison of JSON, 1 is 1.0.
        return [
            function,
            f"CREATE CONSTRAINT TRIGGER journal_changed AFTER INSERT OR DELETE {deferred} EXECUTE FUNCTION journal_{name}()",
            f"CREATE CONSTRAINT TRIGGER journal_updated AFTER UPDATE {deferred} WHEN (old.* *<> new.*) EXECUTE FUNCTION journal_{name}()",
            f"CREATE TRIGGER journal_truncated BEFORE TRUNCATE ON {name} FOR EACH STATEMENT EXECUTE FUNCTION journal_{name}()",
        ]

    def told(self, table: Table[Any]) -> Sequence[str]:
        function, *triggers = self.create(table)
        source = hashlib.sha256(function.split("$$")[1].encode()).hexdigest()
        return [f"{trigger} {source}" for trigger in triggers]

    def drop(self, table: Table[Any]) -> Sequence[str]:
        triggers = ("changed", "updated", "truncated")  # of the function or, by now, of another
        return [
            *(f"DROP TRIGGER IF EXISTS journal_{what} ON {table.name}" for what in triggers),
            f"DROP FUNCTION IF EXISTS journal_{table.name}() CASCADE",
        ]

    def json(self, text: str) -> str:
        return f"CAST({text} AS jsonb)"

    def object(self, row: str, columns: Sequence[Column[Any]]) -> str:
        members = ", ".join(f"'{column.name}', {row}.\"{column.name}\"" for column in columns)
        return f"jsonb_build_object({members})"

    def changes(self, members: Sequence[str]) -> str:
        return self.json(f"'{{' || substr(concat({', '.join(members)}), 2) || '}}'")

    def member(self, row: str, column: Column[Any]) -> str:
        value = f'{row}."{column.name}"'
        json = f"{value}::text" if isinstance(column.type, schema.Json | schema.Int64) else f"to_json({value})::text"
        return f"coalesce({json}, 'null')" if column.nullable else json

    def differs(self, column: Column[Any]) -> str:
        if isinstance(column.type, schema.Json):
            return f'ROW(old."{column.name}")::record *<> ROW(new."{column.name}")::record'
        return f'old."{column.name}" IS DISTINCT FROM new."{column.name}"'

    def in_json(self, row: str, columns: Sequence[Column[Any]]) -> str:
        marks = ", ".join(f"'{c.name}', CASE jsonb_typeof({row}.\"{c.name}\") WHEN 'null' THEN '{IN_JSON}' END" for c in columns)
        return f"nullif(jsonb_strip_nulls(jsonb_build_object({marks})), '{{}}')"


_WORDS: Mapping[str, _Words] = {"sqlite": _SQLite(), "postgresql": _PostgreSQL()}


class _StreamId(FunctionElement[str]):
    """The aggregate id of a row's events, told for the table of the one column given."""

    name = "stream_id"
    type = Text()
    inherit_cache = True


@compiles(_StreamId)
def _of_row(element: _StreamId, compiler: Any, **_: Any) -> str:
    (column,) = element.clauses
    table: Any = column.table
    return f"({_WORDS[compiler.dialect.name].stream_id(table, table.name)})"


class _Installed(FunctionElement[str]):
    """The triggers in force, as a JSON array of all there is to say of each: what it does, and with PostgreSQL the sum of its function."""

    name = "installed"
    type = Text()
    inherit_cache = True


@compiles(_Installed, "sqlite")
def _in_master(element: _Installed, compiler: Any, **_: Any) -> str:
    return "(SELECT json_group_array(sql) FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'journal_*')"


@compiles(_Installed, "postgresql")
def _in_catalog(element: _Installed, compiler: Any, **_: Any) -> str:
    return (
        "(SELECT CAST(json_agg(concat_ws(' ', replace(pg_get_triggerdef(pg_trigger.oid, true), '\"', ''), "
        "encode(sha256(convert_to(prosrc, 'UTF8')), 'hex'))) AS text) "
        "FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_proc ON pg_proc.oid = tgfoid "
        "WHERE starts_with(tgname, 'journal_') AND tgenabled IN ('O', 'A') "
        "AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema()))"
    )


_STATE = select(schema.event_journal.c.started_at, schema.event_journal.c.after, _Installed())
_BEGUN = select(schema.event_journal.c.id)
_HEAD = select(func.coalesce(func.max(schema.events.c.position), 0))
