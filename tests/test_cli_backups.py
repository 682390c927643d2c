"""`ruv-swarm backup`, `events` and `rebuild`: each command as it is run, what it prints, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from plenty import rows
from typer.testing import CliRunner

from ruv_swarm_store import NewEvent, Store, schema
from ruv_swarm_store.cli.commands import app

pytestmark = pytest.mark.long

ID = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"

EVENTS = 27
"""How many there are in the store: two of its own, the journal's beginning, and one for each of its changes."""


def ruv_swarm(*arguments: object, **env: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env, prog_name="ruv-swarm")


def printed(*arguments: object, **env: str) -> str:
    done = ruv_swarm(*arguments, **env)
    assert done.exit_code == 0, done.stderr
    return str(done.stdout)


def refused(*arguments: object, **env: str) -> str:
    """What a command says when it fails: an error and what to do, without anything else."""
    done = ruv_swarm(*arguments, **env)
    assert done.exit_code == 1, done.stdout
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    return str(done.stderr)


def as_json(*arguments: object, **env: str) -> Any:
    return json.loads(printed(*arguments, "--json", **env))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journaled store in which something has happened."""
    path = tmp_path / "swarm.db"
    with Store.open(path, journal=True) as store:
        scout = store.agents.register("scout", name="s-1")
        store.tasks.enqueue_many([("crawl", {"n": number}) for number in range(20)])
        store.tasks.complete(store.tasks.claim(scout), {"links": 3})
        store.events.append("walk", [NewEvent("began", {"n": 1}), NewEvent("ended")], type="walk")
        store.config.set("topology", "mesh")
    return path


def state(path: Path) -> dict[str, list[str]]:
    with Store.open(path, read_only=True) as store:
        return rows(store)


def damage(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def kept(path: Path, pattern: str = "*") -> list[Path]:
    return sorted(path.with_name(f"{path.name}.backups").glob(pattern))


@pytest.fixture
def started(environment: dict[str, str]) -> Callable[..., Any]:
    """Runs a command that goes on until it is stopped, as a process of its own."""

    @contextmanager
    def start(*arguments: object) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "ruv_swarm_store.cli", *map(str, arguments)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()

    return start


def ended(process: subprocess.Popen[str], with_: signal.Signals) -> str:
    """Stops a command as its user would; what else it printed."""
    process.send_signal(with_)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_command_as_it_is_really_run(path: Path, environment: dict[str, str]) -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "ruv_swarm_store.cli", *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment, cwd=path.parent)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    before = state(path)
    full = run("backup", "create")
    assert re.match(rf"{ID}: full backup of .*, up to event {EVENTS}\n", full)
    assert "incremental backup" in run("backup", "create", "--incremental")
    assert len(run("backup", "list").splitlines()) == 3
    assert "2 backups" in run("backup", "verify")
    assert "passed in" in run("backup", "drill")
    assert "0 backups removed" in run("backup", "prune", "--keep", "2")
    assert "restored to the state of" in run("backup", "restore", full[:36], "--into", "back.db")
    assert state(path.with_name("back.db")) == before
    assert f"{EVENTS} events not sealed" in run("events", "verify")
    assert len(run("events", "read", "--limit", "3").splitlines()) == 4
    assert "the tables hold just that" in run("rebuild")


# Backups


def test_what_was_made_is_told(path: Path) -> None:
    first = as_json("backup", "create", "-s", path)
    second = as_json("backup", "create", "-s", path, "--incremental", "--compression", "zlib")
    third = as_json("backup", "create", "-s", path, "--format", "rows")
    assert [(made["kind"], made["format"], made["parent"]) for made in (first, second, third)] == [
        ("full", "pages", None),
        ("incremental", "pages", first["id"]),
        ("full", "rows", None),
    ]
    assert second["compression"] == "zlib"
    assert set(third["checksums"]) > {"tasks", "events"}
    assert as_json("backup", "list", "-s", path) == [first, second, third]
    lines = [line.split() for line in printed("backup", "list", "-s", path).splitlines()]
    assert lines[0] == ["id", "kind", "format", "began", "event", "revision", "size", "encrypted"]
    assert [line[:3] for line in lines[1:]] == [[made["id"], made["kind"], made["format"]] for made in (first, second, third)]
    assert ruv_swarm("backup", "create", "-s", path, "--format", "tapes").exit_code == 2


def test_a_lost_store_comes_back(path: Path, tmp_path: Path) -> None:
    before = state(path)
    elsewhere = tmp_path / "elsewhere"
    made = as_json("backup", "create", "-s", path, "--to", elsewhere)
    printed("backup", "create", "-s", path)
    for lost in path.parent.glob("swarm.db*"):
        if lost.is_file():
            lost.unlink()
    for place in ([], ["--from", elsewhere]):  # beside where the store was, and where it was said
        assert len(as_json("backup", "list", "-s", path, *place)) == 1
        assert as_json("backup", "verify", "-s", path, *place)["problems"] == []
        assert as_json("backup", "drill", "-s", path, *place)["passed"]
        assert not path.exists()
    assert as_json("backup", "list", RUV_SWARM_BACKUPS=str(elsewhere)) == [made]
    assert "restored to" in printed("backup", "restore", "--from", elsewhere, "--into", path)
    assert state(path) == before
    with Store.open(path) as store:
        assert store.journal.status() is not None


def test_a_database_on_a_server_has_no_place_beside_it() -> None:
    assert "--from or --to" in refused("backup", "list", "-s", "postgresql://nobody@localhost/none")


def test_drills_are_listed(path: Path) -> None:
    first, second = (as_json("backup", "create", "-s", path)["id"] for _ in range(2))
    done = as_json("backup", "drill", second, "-s", path)
    assert (done["backup"], done["passed"], done["rows"]["tasks"]) == (second, True, 20)
    listed = printed("backup", "list", "-s", path, "--drills")
    assert re.search(rf"{first} .* never\n", listed)
    assert re.search(rf"{second} .* passed 20\d\d-", listed)
    assert [entry["drill"] for entry in as_json("backup", "list", "-s", path, "--drills")] == [None, done]


@pytest.mark.skipif(os.name != "posix", reason="there are no pseudo-terminals")
def test_a_terminal_has_room_for_ids(path: Path, environment: dict[str, str]) -> None:
    import fcntl
    import struct
    import termios

    id = as_json("backup", "create", "-s", path)["id"]
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    env = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")} | {"TERM": "xterm"}
    for command in (["verify"], ["list"], ["list", "--drills"]):
        arguments = [sys.executable, "-m", "ruv_swarm_store.cli", "backup", *command, "-s", str(path)]
        with subprocess.Popen(arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as running:
            running.wait(60)
        shown = os.read(ours, 100_000).decode()
        assert (command == ["verify"]) == ("verifying" in shown)  # a bar
        assert "nothing is damaged" in shown or id in shown
    os.close(theirs)
    os.close(ours)


def test_earlier_states_are_restored_and_told_before(path: Path, tmp_path: Path) -> None:
    first, before = as_json("backup", "create", "-s", path), state(path)
    between = first["created_at"] + 1
    while time.time_ns() // 1_000_000 <= between:
        time.sleep(0.001)
    with Store.open(path) as store:
        store.tasks.enqueue("later")
    second = as_json("backup", "create", "-s", path)
    as_iso = datetime.fromtimestamp(between / 1000, UTC).isoformat()
    for number, chosen in enumerate((["--at", between], ["--at", as_iso], ["--position", first["position"]], [first["id"]])):
        into = tmp_path / f"{number}.db"
        plan = as_json("backup", "restore", "-s", path, "--into", into, "--dry-run", *chosen)
        assert (plan["backup"], plan["dry_run"]) == (first["id"], True)
        assert "would be restored to" in printed("backup", "restore", "-s", path, "--into", into, "--dry-run", *chosen)
        assert not into.exists()
        assert as_json("backup", "restore", "-s", path, "--into", into, *chosen)["rows"]["tasks"] == 20
        assert state(into) == before
    assert as_json("backup", "restore", "-s", path, "--into", tmp_path / "new.db")["backup"] == second["id"]
    assert state(tmp_path / "new.db") == state(path)


def test_nothing_is_replaced_unasked(path: Path, tmp_path: Path) -> None:
    printed("backup", "create", "-s", path)
    into = tmp_path / "there.db"
    Store.open(into).close()
    before = into.read_bytes()
    refused("backup", "restore", "-s", path, "--into", into)
    assert into.read_bytes() == before
    assert "replaced by" in printed("backup", "restore", "-s", path, "--into", into, "--overwrite")
    assert state(into) == state(path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--at", "2026-01-31T12:00"], "2026-01-31T12:00Z, in UTC"),
        (["--at", "yesterday"], "Give a time such as 20"),
        (["--at", "1000"], "Error:"),
        (["no-such-backup"], "there is no backup no-such-backup"),
        (["--position", "3", "--at", "1000"], "more than one"),
    ],
)
def test_what_cannot_be_restored_is_an_error(path: Path, tmp_path: Path, options: list[str], says: str) -> None:
    printed("backup", "create", "-s", path)
    assert says in refused("backup", "restore", "-s", path, "--into", tmp_path / "new.db", *options)
    assert not (tmp_path / "new.db").exists()


def test_damage_is_named(path: Path, tmp_path: Path) -> None:
    printed("backup", "create", "-s", path)
    [file] = kept(path, "*.pages")
    damage(file)
    assert file.name in refused("backup", "verify", "-s", path)
    assert file.name in refused("backup", "verify", "-s", path, "--quick")
    found = ruv_swarm("backup", "verify", "-s", path, "--json")
    assert found.exit_code == 1
    assert json.loads(found.stdout)["problems"][0]["file"] == file.name
    assert file.name in refused("backup", "drill", "-s", path)
    assert file.name in refused("backup", "restore", "-s", path, "--into", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()
    assert " failed 20" in printed("backup", "list", "-s", path, "--drills")


def test_keys_come_from_files_or_the_environment(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    raw, text, phrase = tmp_path / "raw", tmp_path / "text", tmp_path / "phrase"
    raw.write_bytes(bytes(range(32)))
    text.write_text(bytes(range(32)).hex() + "\n")
    phrase.write_text("correct horse battery staple\n")
    made = as_json("backup", "create", "-s", path, "--key-file", raw)
    assert made["encryption"]["derivation"] == "none"
    for env in ({"RUV_SWARM_BACKUP_KEY": bytes(range(32)).hex()}, {"RUV_SWARM_BACKUP_KEY_FILE": str(text)}):
        assert as_json("backup", "verify", "-s", path, **env)["problems"] == []
    with_phrase = as_json("backup", "create", "-s", path, "--to", tmp_path / "other", "--key-file", phrase)
    assert with_phrase["encryption"]["derivation"] == "scrypt"
    for env in ({}, {"RUV_SWARM_BACKUP_KEY": "correct horse"}, {"RUV_SWARM_BACKUP_KEY_FILE": str(raw)}):
        says = refused("backup", "restore", "--from", tmp_path / "other", "--into", tmp_path / "new.db", **env)
        assert "key" in says
        assert "correct horse" not in says
    printed(
        "backup",
        "restore",
        "--from",
        tmp_path / "other",
        "--into",
        tmp_path / "new.db",
        RUV_SWARM_BACKUP_KEY="correct horse battery staple",
    )
    assert state(tmp_path / "new.db") == state(path)
    raw.write_bytes(b"\xff" * 31)
    assert "holds no key" in refused("backup", "list", "-s", path, "--key-file", raw)
    if os.name == "posix":  # elsewhere variables are text
        assert "holds no key" in refused("backup", "create", "-s", path, RUV_SWARM_BACKUP_KEY=os.fsdecode(b"\xff\xfe"))


def test_old_backups_are_removed(path: Path) -> None:
    ids = [as_json("backup", "create", "-s", path)["id"] for _ in range(4)]
    assert "not said what to keep" in refused("backup", "prune", "-s", path)
    assert "2 backups would be removed" in printed("backup", "prune", "-s", path, "--keep", "2", "--dry-run")
    assert len(as_json("backup", "list", "-s", path)) == 4
    assert as_json("backup", "prune", "-s", path, "--keep", "2")["removed"] == ids[:2]
    assert printed("backup", "prune", "-s", path, "--hourly", "3", "--yearly", "1").startswith(f"{ids[2]}\n1 backup removed")
    assert [backup["id"] for backup in as_json("backup", "list", "-s", path)] == ids[3:]


def test_one_of_an_earlier_key_is_passed_over_and_can_be_deleted(path: Path) -> None:
    pytest.importorskip("cryptography")
    old = as_json("backup", "create", "-s", path, RUV_SWARM_BACKUP_KEY="old")["id"]
    new = as_json("backup", "create", "-s", path, RUV_SWARM_BACKUP_KEY="new")["id"]
    assert f"{old} is encrypted with another key" in printed("backup", "verify", "-s", path, RUV_SWARM_BACKUP_KEY="new")
    assert printed("backup", "delete", old, "-s", path) == f"{old} was removed\n"
    assert [backup["id"] for backup in as_json("backup", "list", "-s", path)] == [new]
    assert "there is no backup" in refused("backup", "delete", old, "-s", path)


def test_an_old_schema_is_backed_up_before_it_is_upgraded(path: Path, tmp_path: Path) -> None:
    printed("downgrade", "0002", "-s", path)
    assert as_json("backup", "create", "-s", path)["revision"] == "0002"
    assert printed("current", "-s", path) == "0002\n"
    printed("backup", "restore", "-s", path, "--into", tmp_path / "new.db")
    assert printed("current", "-s", tmp_path / "new.db") == "0002\n"
    assert "ruv-swarm upgrade" in refused("backup", "create", "-s", path, "--format", "rows")
    assert len(kept(path, "*.manifest")) == 1


def test_what_is_no_store_is_not_backed_up_and_stays_as_it_is(tmp_path: Path) -> None:
    empty, foreign, migrated = (tmp_path / name for name in ("empty", "foreign.db", "migrated.db"))
    empty.touch()
    for file, name in ((foreign, "mine"), (migrated, "alembic_version")):
        with closing(sqlite3.connect(file)) as database:
            database.execute(f"CREATE TABLE {name} (version_num TEXT)")
            database.execute(f"INSERT INTO {name} VALUES ('1975ea83b712')")
            database.commit()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file in before:
        assert "there is no store at" in refused("backup", "create", "-s", file)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", ["list", "verify", "drill", "prune"])
def test_where_no_backups_are_is_an_error(tmp_path: Path, command: str) -> None:
    options = ["--keep", "1"] if command == "prune" else []
    assert "--from" in refused("backup", command, "-s", tmp_path / "absent.db", *options)
    assert "there are no backups at" in refused("backup", command, "--from", tmp_path / "absent", *options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="the signals are not there")
def test_a_schedule_makes_and_removes_backups_until_it_is_stopped(path: Path, started: Callable[..., Any]) -> None:
    with started("backup", "schedule", "-s", path, "--every", "0.2s", "--full-every", "2", "--keep", "2") as process:
        assert process.stdout.readline().startswith("A backup every 0.2 s to <DirectoryStorage")
        made = [process.stdout.readline() for _ in range(3)]
        out = ended(process, signal.SIGINT)
    assert all(re.match(rf"{ID}: (full|incremental) backup of ", line) for line in [*made, *out.splitlines()])
    kinds = [backup["kind"] for backup in as_json("backup", "list", "-s", path)]
    assert 2 <= len(kinds) <= 3
    assert kinds[0] == "full"
    assert as_json("backup", "verify", "-s", path)["problems"] == []


@pytest.mark.parametrize(("every", "says"), [("soon", "90s, 15min, 6h or 1d"), ("-1s", "90s"), ("3 weeks", "90s"), ("0", "every is 0")])
def test_a_schedule_needs_an_interval(path: Path, every: str, says: str) -> None:
    assert says in refused("backup", "schedule", "-s", path, "--every", every)


@pytest.mark.skipif(os.name != "posix", reason="the signals are not there")
def test_shipping_ends_with_all_that_was_committed(path: Path, tmp_path: Path, started: Callable[..., Any]) -> None:
    with started("backup", "continuous", "-s", path, "--interval", "0.05") as process, Store.open(path) as store:
        assert process.stdout.readline().startswith("Shipping every 0.05 s to ")
        wait_for(lambda: kept(path, "*.manifest"))
        for number in range(30):
            store.tasks.enqueue("shipped", number)
            time.sleep(0.005)
        wait_for(lambda: kept(path, "*.log.*"))
        store.tasks.enqueue("last")
        out = ended(process, signal.SIGTERM)
        position = store.events.last_position()
    assert re.match(rf"Shipped 1 backup and \d+ segments? of .*, event {position:,}\n", out)
    into = tmp_path / "new.db"
    assert as_json("backup", "restore", "-s", path, "--into", into)["position"] == position
    assert state(into) == state(path)


# Events


def test_events_are_read_by_time_and_correlation(path: Path) -> None:
    with Store.open(path) as store:
        cause = store.events.read("walk")[0]
        store.events.append("walk", [NewEvent("seen")], type="walk", cause=cause)
        newest = store.events.read("walk")[-1]
    assert [event["id"] for event in as_json("events", "read", "-s", path, "--correlation", cause.id)] == [newest.id]
    assert as_json("events", "read", "-s", path, "--since", newest.timestamp)[-1]["id"] == newest.id
    early = as_json("events", "read", "-s", path, "--until", newest.timestamp, "--aggregate", "walk")
    assert newest.id not in [event["id"] for event in early]
    assert "no time zone" in refused("events", "read", "-s", path, "--since", "2026-01-01")


@pytest.mark.skipif(os.name != "posix", reason="the signals are not there")
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_events_are_followed(path: Path, started: Callable[..., Any], form: list[str]) -> None:
    def name(line: str) -> str:
        return str(json.loads(line)["event_type"]) if form else line.split("  ")[3]

    with started("events", "tail", "-s", path, "--aggregate", "walk", "-n", "2", *form) as process, Store.open(path) as store:
        assert [name(process.stdout.readline()) for _ in range(2)] == ["began", "ended"]
        store.tasks.enqueue("not asked for")
        store.events.append("walk", [NewEvent("again", "x\n\x1b[2J")], type="walk")
        line = process.stdout.readline()
        assert name(line) == "again"
        assert "\x1b" not in line
        assert ended(process, signal.SIGINT) == ""


@pytest.mark.skipif(os.name != "posix", reason="the signals are not there")
def test_the_journal_is_followed_by_its_types_only(path: Path, started: Callable[..., Any]) -> None:
    with Store.open(path) as store:
        store.tasks.enqueue("journalled")
        journalled = store.events.read_all()[-1]
    assert journalled.aggregate_type.startswith("journal.")
    for words, expected in ([], "ended"), (["--type", journalled.event_type], journalled.event_type):
        with started("events", "tail", "-s", path, "-n", "1", "--json", *words) as process:
            assert json.loads(process.stdout.readline())["event_type"] == expected
            assert ended(process, signal.SIGINT) == ""


def test_events_are_verified(path: Path) -> None:
    assert as_json("events", "verify", "-s", path)["unsealed"] == EVENTS
    assert f"{EVENTS} events under 1 seal" in printed("events", "verify", "-s", path, "--seal")
    head = as_json("events", "verify", "-s", path)["head"]
    assert as_json("events", "verify", "-s", path, "--head", head)["fault"] is None
    refused("events", "verify", "-s", path, "--head", "0" * 64)
    raw = sqlite3.connect(path)
    raw.execute("DROP TRIGGER events_no_update")
    raw.execute("UPDATE events SET event_data = '2' WHERE event_type = 'began'")
    raw.commit()
    raw.close()
    refused("events", "verify", "-s", path)


# The journal


def test_a_journal_is_rebuilt_and_compared(path: Path, tmp_path: Path) -> None:
    found = as_json("rebuild", "-s", path)
    assert (found["rows"]["tasks"], found["compared"], found["differing"]) == (20, True, 0)
    again = as_json("rebuild", "-s", path, "--into", tmp_path / "rebuilt.db")
    assert again["into"] is not None
    ours, theirs = state(path), state(tmp_path / "rebuilt.db")
    for table in ("agents", "tasks", "swarm_config"):
        assert theirs[table] == ours[table]
    earlier = as_json("rebuild", "-s", path, "--position", "3")
    assert (earlier["compared"], earlier["position"]) == (False, 3)
    assert "the tables have gone on since" in printed("rebuild", "-s", path, "--position", "3")


def test_rows_that_are_not_in_the_journal_are_told(path: Path) -> None:
    raw = sqlite3.connect(path)
    triggers = raw.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'swarm_config'").fetchall()
    for name, _ in triggers:
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute("UPDATE swarm_config SET value = '\"ring\"'")
    for _, sql in triggers:
        raw.execute(sql)
    raw.commit()
    raw.close()
    says = refused("rebuild", "-s", path)
    assert "swarm_config" in says
    assert "differs in value" in says


def test_without_a_journal_there_is_nothing_to_rebuild(tmp_path: Path) -> None:
    Store.open(tmp_path / "plain.db").close()
    assert "journal" in refused("rebuild", "-s", tmp_path / "plain.db")
    assert schema.REVISION in printed("current", "-s", tmp_path / "plain.db")


def test_a_passphrase_may_be_of_any_length(path: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    for ending in ("\n", "\r\n"):
        phrase = "x" * (32 - len(ending))
        key.write_bytes((phrase + ending).encode())
        made = as_json("backup", "create", "-s", path, "--key-file", key)
        assert made["encryption"]["derivation"] == "scrypt"
        assert printed("backup", "drill", "-s", path, RUV_SWARM_BACKUP_KEY=phrase).startswith(made["id"])
    for raw in (b"x" * 32, bytes(range(31)) + b"\n"):
        key.write_bytes(raw)
        assert as_json("backup", "create", "-s", path, "--key-file", key)["encryption"]["derivation"] == "none"


def test_what_a_key_does_not_fit_is_told_of(path: Path, tmp_path: Path) -> None:
    key = {"RUV_SWARM_BACKUP_KEY": "correct horse"}
    safe = as_json("backup", "create", "-s", path, **key)["id"]
    plain = as_json("backup", "create", "-s", path)["id"]
    told = printed("backup", "restore", "-s", path, "--into", tmp_path / "one.db", **key)
    assert f"{plain} is later, but not encrypted with this key" in told
    assert as_json("backup", "restore", safe, "-s", path, "--into", tmp_path / "two.db", **key)["encrypted"]
    told = printed("backup", "restore", plain, "-s", path, "--into", tmp_path / "three.db", **key)
    assert "nothing proves" in told


def test_of_two_stores_in_one_place_the_named_one_is_restored(path: Path, tmp_path: Path) -> None:
    Store.open(tmp_path / "other.db").close()
    place = tmp_path / "place"
    made = as_json("backup", "create", "-s", path, "--to", place)["id"]
    as_json("backup", "create", "-s", tmp_path / "other.db", "--to", place)
    assert as_json("backup", "restore", "-s", path, "--from", place, "--into", tmp_path / "new.db")["backup"] == made
    assert "several stores" in refused("backup", "restore", "-s", tmp_path / "third.db", "--from", place, "--into", tmp_path / "no.db")
