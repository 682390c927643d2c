"""The examples in the documentation run, and print what they say they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(code: str, namespace: dict[str, object]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<documentation>", "exec"), namespace)
    return printed.getvalue()


def test_the_readme_prints_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    (kind, code), (shown, expected) = blocks[:2]
    assert (kind, shown) == ("python", "text")
    assert run(code, {}) == expected


def test_every_other_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [code for kind, code in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")) if kind == "python"][1:]
    assert examples
    for code in examples:
        run(code, {})


def test_the_api_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = [code for kind, code in BLOCK.findall((ROOT / "docs" / "api.md").read_text(encoding="utf-8")) if kind == "python"]
    assert len(examples) > 10
    namespace: dict[str, object] = {}
    for code in examples:
        run(code, namespace)


def test_the_api_page_names_every_verb() -> None:
    from ruv_swarm_store import Store
    from ruv_swarm_store.events import Projector

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    with Store.open() as store:
        nouns: list[object] = [store.agents, store.tasks, store.messages, store.metrics, store.groups, store.config, store.events]
        nouns += [store.events.subscribe("a"), store.events.group("b"), Projector]
        verbs = {name for noun in nouns for name in dir(noun) if not name.startswith("_") and callable(getattr(noun, name))}
    missing = sorted(verb for verb in verbs if not re.search(rf"\b{verb}\b", page))
    assert missing == []
