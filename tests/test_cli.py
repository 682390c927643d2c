"""The `ruv-swarm` command: what it prints where, what it refuses, and that looking never changes anything."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
from typer.testing import CliRunner

from ruv_swarm_store import NewEvent, Store, schema
from ruv_swarm_store.cli.commands import app

ANSI = re.compile(r"\x1b\[")
BOXES = re.compile(r"[─-╿]")


def ruv_swarm(*arguments, **env):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env, prog_name="ruv-swarm")


@pytest.fixture
def process(environment):
    """The command as it is really run."""

    def run(*arguments, **options):
        command = [sys.executable, "-m", "ruv_swarm_store.cli", *map(str, arguments)]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment, **options)

    return run


@pytest.fixture
def path(tmp_path):
    """A store in which something has happened."""
    path = tmp_path / "swarm.db"
    with Store.open(path) as store:
        scout = store.agents.register("scout", name="s-1", configuration={"pid": 7})
        gone = store.agents.register("scout", name="s-2")
        first = store.tasks.enqueue("crawl", {"url": "https://example.com/a"})
        store.tasks.enqueue("crawl", {"url": "https://example.com/b"}, priority=9)
        store.tasks.enqueue("sum", {"n": 3}, delay=3600)
        store.tasks.fail(store.tasks.claim(gone), "no route\nto host", retry=False)
        store.tasks.complete(store.tasks.claim(scout), {"links": 3})
        store.tasks.enqueue("crawl", {"url": "https://example.com/c"})
        store.events.append(first.id, [NewEvent("claimed", {"by": "s-1"}), NewEvent("completed", {"links": 3})], type="task")
        store.events.append("other", [NewEvent("claimed", {"by": "s-2"})], type="task")
        store.messages.publish("found", {"n": 1}, sender=scout)
        store.agents.terminate(gone)
    return path


# What a store holds


def test_status_shows_agents_and_queue(path):
    printed = ruv_swarm("status", "-s", path)
    assert printed.exit_code == 0
    assert "3 events, 1 message" in printed.stdout
    assert "1 agent, and 1 terminated" in printed.stdout
    lines = [line.split() for line in printed.stdout.splitlines()]
    assert ["tasks", "pending", "scheduled", "completed", "failed"] in lines
    assert ["crawl", "1", "0", "1", "1"] in lines
    assert ["sum", "0", "1", "0", "0"] in lines


def test_status_as_json(path):
    found = json.loads(ruv_swarm("status", "-s", path, "--json").stdout)
    assert found["tasks"] == {"crawl": {"pending": 1, "completed": 1, "failed": 1}, "sum": {"scheduled": 1}}
    assert found["agents"] == {"idle": 1, "terminated": 1}
    assert (found["events"], found["messages"], found["revision"]) == (3, 1, schema.REVISION)


def test_the_address_comes_from_the_environment_too(path):
    printed = ruv_swarm("status", RUV_SWARM_STORE=str(path))
    assert printed.exit_code == 0
    assert str(path) in printed.stdout


def test_tasks_are_filtered_and_limited(path):
    def urls(*options):
        listed = json.loads(ruv_swarm("tasks", "-s", path, "--json", *options).stdout)
        return [task["payload"].get("url", "")[-1:] for task in listed]

    assert urls() == ["c", "", "b", "a"]
    assert urls("--type", "crawl") == ["c", "b", "a"]
    assert urls("--type", "crawl", "--type", "sum", "-n", "2") == ["c", ""]
    assert urls("--status", "failed") == ["b"]
    assert urls("--status", "failed", "--status", "completed") == ["b", "a"]
    assert urls("--status", "cancelled") == []
    assert ruv_swarm("tasks", "-s", path, "--status", "nonsense").exit_code == 2


def test_tasks_as_text_have_a_line_each(path):
    lines = ruv_swarm("tasks", "-s", path).stdout.splitlines()
    assert len(lines) == 5
    assert lines[0].split() == ["id", "type", "status", "priority", "retries", "agent", "created", "error", "payload"]
    assert r"no route\nto host" in lines[3]
    assert lines[3].endswith('{"url":"https://example.com/b"}')


def test_events_are_filtered(path):
    def numbers(*options):
        return [event["position"] for event in json.loads(ruv_swarm("events", "read", "-s", path, "--json", *options).stdout)]

    assert numbers() == [1, 2, 3]
    assert numbers("--limit", "2") == [2, 3]
    assert numbers("--after", "0", "--limit", "2") == [1, 2]
    assert numbers("--after", "2") == [3]
    assert numbers("--type", "claimed") == [1, 3]
    assert numbers("--aggregate", "other") == [3]
    assert numbers("--aggregate", "nobody") == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_file_s_name_need_not_be_text(process, tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.db")
    for command in (["upgrade"], ["status"], ["status", "--json"], ["check"]):
        done = process(*command, "-s", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert "/caf\\" in done.stdout


def test_hostile_text_stays_on_its_line(path):
    with Store.open(path) as store:
        store.tasks.enqueue("evil\x1b[31m\r\n\x07[bold]type[/bold]", "x\n\x1b[2Jy")
    printed = ruv_swarm("tasks", "-s", path, "-n", "1").stdout
    assert len(printed.splitlines()) == 2
    assert "\x1b" not in printed
    assert r"evil\x1b[31m\r\n\x07[bold]type[/bold]" in printed


# What is not there, or is no store


@pytest.mark.parametrize(
    "command",
    [
        ["status"],
        ["tasks"],
        ["events", "read"],
        ["events", "tail"],
        ["events", "verify"],
        ["rebuild"],
        ["backup", "create"],
        ["backup", "schedule", "--every", "1h"],
        ["backup", "continuous"],
        ["current"],
        ["history"],
        ["check"],
        ["downgrade", "base"],
    ],
    ids=" ".join,
)
def test_an_absent_store_is_an_error_and_stays_absent(tmp_path, command):
    printed = ruv_swarm(*command, "-s", tmp_path / "absent.db")
    assert printed.exit_code == 1
    assert "there is no store at" in printed.stderr
    assert "--store" in printed.stderr
    assert printed.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "check", "upgrade"])
def test_a_file_that_is_no_database_is_an_error(tmp_path, command):
    path = tmp_path / "notes.txt"
    path.write_text("no database, however often you look at it\n" * 100)
    printed = ruv_swarm(command, "-s", path)
    assert printed.exit_code == 1
    assert "not a database" in printed.stderr
    assert path.read_text().startswith("no database")


def test_looking_changes_nothing(path):
    before = path.read_bytes()
    for command in (["status"], ["tasks"], ["events", "read"], ["events", "verify"], ["current"], ["history"], ["check"]):
        assert ruv_swarm(*command, "-s", path).exit_code == 0
    assert path.read_bytes() == before


def test_an_older_schema_is_refused_and_not_migrated(path):
    assert ruv_swarm("downgrade", "base", "-s", path).exit_code == 0
    printed = ruv_swarm("status", "-s", path)
    assert printed.exit_code == 1
    assert "ruv-swarm upgrade" in printed.stderr
    assert ruv_swarm("current", "-s", path).stdout == "base\n"


# Its schema


def test_up_and_down_and_up_again(tmp_path):
    path = tmp_path / "new.db"
    head = schema.REVISION
    before = f"{int(head) - 1:04}"
    assert f"from base to {head}" in ruv_swarm("upgrade", "-s", path).stdout
    assert f"is at {head}" in ruv_swarm("upgrade", "-s", path).stdout
    assert ruv_swarm("current", "-s", path).stdout == f"{head} (head)\n"
    assert f"is whole, at {head}" in ruv_swarm("check", "-s", path).stdout
    assert f"from {head} to {before}" in ruv_swarm("downgrade", "-1", "-s", path).stdout
    assert "no" in ruv_swarm("history", "-s", path).stdout.splitlines()[-1].split()
    printed = ruv_swarm("check", "-s", path)
    assert printed.exit_code == 1
    assert f"the schema is at {before}" in printed.stderr
    assert f"from {before} to base" in ruv_swarm("downgrade", "base", "-s", path).stdout
    assert "from base to 0001" in ruv_swarm("upgrade", "0001", "-s", path).stdout


def test_history_says_when(path):
    revisions = json.loads(ruv_swarm("history", "-s", path, "--json").stdout)
    assert [revision["id"] for revision in revisions] == [f"{number:04}" for number in range(1, int(schema.REVISION) + 1)]
    assert all(revision["applied_at"] > 0 for revision in revisions)
    assert re.search(r"0001 +initial +20\d\d-", ruv_swarm("history", "-s", path).stdout)


@pytest.mark.parametrize("command", ["upgrade", "downgrade"])
def test_an_unknown_revision_is_an_error(path, command):
    printed = ruv_swarm(command, "9999", "-s", path)
    assert printed.exit_code == 1
    assert "9999" in printed.stderr
    assert "ruv-swarm history" in printed.stderr


def test_check_finds_damage(path):
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\x55" * 4096
    path.write_bytes(content)
    printed = ruv_swarm("check", "-s", path)
    assert printed.exit_code == 1
    assert printed.stderr


# As it is really run


@pytest.mark.long
def test_a_pipe_gets_plain_text(process, path):
    for command in (["status"], ["tasks"], ["events", "read"], ["history"]):
        printed = process(*command, "-s", path)
        assert printed.returncode == 0, printed.stderr
        assert not ANSI.search(printed.stdout)
        assert not BOXES.search(printed.stdout)
        assert all(line == line.rstrip() for line in printed.stdout.splitlines())


def test_an_error_is_no_traceback(process, tmp_path):
    printed = process("status", cwd=tmp_path)
    assert printed.returncode == 1
    assert printed.stderr.startswith("Error: there is no store at swarm.db\n")
    assert "Traceback" not in printed.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_gets_tables_that_fit(path, columns, environment):
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "ruv_swarm_store.cli", "tasks", "-s", str(path)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as running:
        running.wait(60)
    os.close(theirs)
    printed = os.read(ours, 100_000).decode()
    os.close(ours)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", printed).splitlines()
    assert BOXES.search(printed)
    assert max(map(len, lines)) <= columns
    assert ("created" in lines[0]) == (columns == 200)
    assert all(re.match(r"[0-9a-f-]{36} ", line) for line in lines[2:])


@pytest.mark.parametrize("absent", ["typer", "rich"])
def test_without_the_extra_it_says_how_to_get_it(absent, environment):
    code = f"import sys; sys.modules[{absent!r}] = None; from ruv_swarm_store.cli import main; main()"
    printed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60, env=environment)
    assert printed.returncode == 1
    assert printed.stderr == f"ruv-swarm needs {absent}, which is not installed: pip install 'ruv-swarm-store[cli]'\n"


def test_version():
    printed = ruv_swarm("--version")
    assert printed.exit_code == 0
    try:
        assert version("ruv-swarm-store") in printed.stdout
    except PackageNotFoundError:
        assert "not installed" in printed.stdout
