"""The house stands as it is drawn: floors, dialects, entities beside their tables, one statement in each `write`."""

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ruv_swarm_store
from ruv_swarm_store import NewEvent, NewTask, Store
from ruv_swarm_store.query import Mapping

PACKAGE = Path(ruv_swarm_store.__file__).parent
DIALECTS = ("sqlite", "postgres", "psycopg", "pysqlite", "sqljs")
MODULES = [path for path in PACKAGE.rglob("*.py") if not {"engines", "alembic"} & set(path.relative_to(PACKAGE).parts)]


def words(path: Path) -> Iterator[tuple[int, str]]:
    """Every name, import and string constant of a module's code; documentation is free to say what it likes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, name.name) for name in names)
            case ast.ImportFrom(module=module, names=names):
                yield from ((node.lineno, f"{module}.{name.name}") for name in names)
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.arg(arg=word) | ast.keyword(arg=str(word)):
                yield node.lineno, word
            case ast.Constant(value=str(word)) if id(node) not in documentation:
                yield node.lineno, word


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_engines_name_a_dialect(path: Path) -> None:
    # Hints tell a person which address to give; an address is no knowledge of a dialect.
    found = [(line, word) for line, word in words(path) for dialect in DIALECTS if dialect in word.lower()]
    assert found == []


def test_a_named_dialect_would_be_noticed(tmp_path: Path) -> None:
    file = tmp_path / "noun.py"
    file.write_text('"""Free to say sqlite."""\nimport sqlite3\nx = kwargs(sqlite_where=1)\ny = "postgresql"\n')
    found = {word for _, word in words(file) if any(dialect in word for dialect in DIALECTS)}
    assert found == {"sqlite3", "sqlite_where", "postgresql"}


def mappings() -> dict[str, Mapping[Any]]:
    from ruv_swarm_store import agents, config, events, groups, messages, metrics, tasks

    modules = (agents, config, events, groups, messages, metrics, tasks)
    return {f"{module.__name__}.{name}": value for module in modules for name, value in vars(module).items() if isinstance(value, Mapping)}


@pytest.mark.parametrize("name", mappings())
def test_an_entity_has_its_table_s_columns_in_order(name: str) -> None:
    mapping = mappings()[name]
    entity: Any = mapping._make
    assert list(entity.__struct_fields__) == [column.name for column in mapping.table.c]


def test_the_schema_has_its_tables() -> None:
    seed = {"agents", "tasks", "messages", "metrics", "swarm_config", "agent_groups", "agent_group_members", "events", "schema_migrations"}
    assert seed <= set(ruv_swarm_store.schema.metadata.tables)


@pytest.mark.parametrize("name", ruv_swarm_store.__all__)
def test_what_is_public_is_documented(name: str) -> None:
    thing = getattr(ruv_swarm_store, name)
    if not isinstance(thing, type):
        return
    assert inspect.getdoc(thing)
    for attribute, member in vars(thing).items():
        if not attribute.startswith("_") and inspect.isfunction(member):
            assert inspect.getdoc(member), f"{name}.{attribute} has no docstring"


def test_no_package_shadows_alembic(checkout: Path) -> None:
    assert (checkout / "alembic" / "env.py").exists()
    assert not (checkout / "alembic" / "__init__.py").exists()
    assert not (PACKAGE / "alembic" / "__init__.py").exists()


Verb = Callable[[Store, dict[str, Any]], object]
ONE_STATEMENT: dict[str, Verb] = {
    "tasks.enqueue": lambda store, it: store.tasks.enqueue("a", {"n": 1}),
    "tasks.enqueue later": lambda store, it: store.tasks.enqueue("a", delay=5.0),
    "tasks.claim": lambda store, it: store.tasks.claim(it["agent"]),
    "tasks.claim of a type": lambda store, it: store.tasks.claim(it["agent"], types=["a"]),
    "tasks.start": lambda store, it: store.tasks.start(it["task"]),
    "tasks.heartbeat": lambda store, it: store.tasks.heartbeat(it["task"]),
    "tasks.complete": lambda store, it: store.tasks.complete(it["task"], {"ok": 1}),
    "agents.heartbeat": lambda store, it: store.agents.heartbeat(it["agent"]),
    "agents.set_status": lambda store, it: store.agents.set_status(it["agent"], "busy"),
    "messages.publish": lambda store, it: store.messages.publish("t", {}, sender=it["agent"]),
    "messages.acknowledge": lambda store, it: store.messages.acknowledge(it["message"], it["agent"]),
    "groups.create": lambda store, it: store.groups.create("new"),
    "groups.join": lambda store, it: store.groups.join(it["group"], it["agent"]),
    "config.set": lambda store, it: store.config.set("k", 1),
    "config.delete": lambda store, it: store.config.delete("k"),
    "config.expire": lambda store, it: store.config.expire(),
    "events.append": lambda store, it: store.events.append("s", [NewEvent("e")], type="t", expected_version=0),
    "events.append at any version": lambda store, it: store.events.append("s", [NewEvent("e")], type="t"),
    "events.append of a few": lambda store, it: store.events.append("s", [NewEvent("e"), NewEvent("f")], type="t", expected_version=0),
    "events.append of a few at any version": lambda store, it: store.events.append("s", [NewEvent("e"), NewEvent("f")], type="t"),
    "tasks.claim_many": lambda store, it: store.tasks.claim_many(it["agent"], 2),
    "metrics.delete": lambda store, it: store.metrics.delete(1),
}
SEVERAL: dict[str, Verb] = {
    "tasks.enqueue_many": lambda store, it: store.tasks.enqueue_many([("a", 1), NewTask("b")]),
    "tasks.enqueue after another": lambda store, it: store.tasks.enqueue("a", depends_on=[it["task"]]),
    "tasks.enqueue with a key": lambda store, it: store.tasks.enqueue("a", unique_key="k"),
    "tasks.fail": lambda store, it: store.tasks.fail(it["task"], "no"),
    "tasks.release": lambda store, it: store.tasks.release(it["task"]),
    "tasks.cancel": lambda store, it: store.tasks.cancel(it["task"]),
    "agents.register": lambda store, it: store.agents.register("x"),
    "agents.terminate": lambda store, it: store.agents.terminate(it["agent"]),
    "agents.delete": lambda store, it: store.agents.delete(it["agent"]),
    "groups.leave": lambda store, it: store.groups.leave(it["group"], it["agent"]),
    "groups.delete": lambda store, it: store.groups.delete(it["group"]),
    "messages.receive": lambda store, it: store.messages.receive(it["agent"]),
    "events.append of many": lambda store, it: store.events.append("s", [NewEvent("e")] * 20, type="t"),
    "events.append of one known by its id": lambda store, it: store.events.append("s", [NewEvent("e", id="x")], type="t"),
    "insert": lambda store, it: store.groups.insert(ruv_swarm_store.Group("g9", "g9", "", 0)),
}


@pytest.fixture
def traced() -> Iterator[tuple[Store, dict[str, Any], list[str]]]:
    statements: list[str] = []
    with Store.open(trace=lambda sql, seconds: statements.append(sql.split()[0])) as store:
        agent = store.agents.register("worker")
        store.tasks.enqueue_many([("a", 0)] * 3)
        things = {
            "agent": agent,
            "task": store.tasks.claim(agent),
            "group": store.groups.create("g"),
            "message": store.messages.publish("t", {}),
        }
        statements.clear()
        yield store, things, statements


@pytest.mark.parametrize("verb", ONE_STATEMENT)
def test_a_write_is_one_statement_and_so_its_own_transaction(traced: Any, verb: str) -> None:
    store, things, statements = traced
    ONE_STATEMENT[verb](store, things)
    writes = [word for word in statements if word != "SELECT"]
    assert len(writes) == 1
    assert writes[0] in ("INSERT", "UPDATE", "DELETE", "WITH")


@pytest.mark.parametrize("verb", SEVERAL)
def test_several_statements_are_one_transaction(traced: Any, verb: str) -> None:
    store, things, statements = traced
    SEVERAL[verb](store, things)
    assert statements.count("BEGIN") == statements.count("COMMIT") == 1
    begin, commit = statements.index("BEGIN"), statements.index("COMMIT")
    assert all(word == "SELECT" for word in statements[:begin] + statements[commit + 1 :])
    assert commit - begin > 1
