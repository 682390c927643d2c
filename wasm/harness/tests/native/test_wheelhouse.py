"""What is built: our wheel, and the directory that a site hosts. Run where `wheelhouse.py` has just run."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

WASM = Path(__file__).resolve().parents[3]
BUILD = WASM / "build"
LOCKS = [BUILD / "wheelhouse" / "pyodide-lock.json", BUILD / "test-lock.json"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of sqljs-dbapi as it is in the repository, before anything was vendored."""
    copy = tmp_path / "project"
    shutil.copytree(WASM / "sqljs_dbapi", copy / "sqljs_dbapi", ignore=shutil.ignore_patterns("vendor", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "package.json", "README.md", "LICENSE"):
        if (WASM / name).exists():
            shutil.copy(WASM / name, copy / name)
    return copy


def build(project: Path) -> subprocess.CompletedProcess[str]:
    hatchling = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(project / "dist")]
    return subprocess.run(hatchling, cwd=project, check=False, capture_output=True, text=True)


def built(project: Path) -> bytes:
    """The bytes of the wheel that `project` makes."""
    done = build(project)
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "dist").glob("*.whl")
    return wheel.read_bytes()


def lock_of(file: Path) -> dict[str, Any]:
    lock: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return lock


def test_the_wheel_is_pure_small_and_whole() -> None:
    (wheel,) = (BUILD / "wheelhouse").glob("sqljs_dbapi-*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert wheel.stat().st_size <= 700_000
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert b"sql.js authors" in archive.read("sqljs_dbapi/js/vendor/LICENSE")
        assert archive.read("sqljs_dbapi/js/vendor/sql-wasm.wasm").startswith(b"\0asm")
    ours = {path.relative_to(WASM).as_posix() for path in (WASM / "sqljs_dbapi").rglob("*") if path.suffix in {".py", ".mjs"}}
    assert ours <= set(names)
    assert not [name for name in names if "node_modules" in name or name.startswith(("harness", "tests", "js-tests"))]


def test_without_node_modules_sql_js_is_fetched_and_the_wheel_is_the_same(project: Path) -> None:
    if not shutil.which("npm"):
        pytest.skip("there is no npm on this machine")
    fetched = built(project)
    shutil.rmtree(project / "sqljs_dbapi" / "js" / "vendor")
    (project / "node_modules").symlink_to(WASM / "node_modules")
    assert built(project) == fetched


@pytest.mark.parametrize("file", ["dist/sql-wasm-browser.js", "dist/sql-wasm.wasm", "LICENSE"])
def test_one_changed_byte_of_sql_js_stops_the_build(project: Path, file: str) -> None:
    package = project / "node_modules" / "sql.js"
    for name in ("dist/sql-wasm-browser.js", "dist/sql-wasm.wasm", "LICENSE"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(WASM / "node_modules" / "sql.js" / name, package / name)
    changed = bytearray((package / file).read_bytes())
    changed[len(changed) // 2] ^= 1
    (package / file).write_bytes(changed)
    done = build(project)
    assert done.returncode != 0
    assert f"{file} of sql.js has the sha-256" in done.stderr
    assert not list((project / "dist").glob("*.whl"))


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_a_lock_names_files_that_are_there_with_their_digests_and_all_they_need(file: Path) -> None:
    packages = lock_of(file)["packages"]
    for package in packages.values():
        wheel = file.parent / package["file_name"]
        assert hashlib.sha256(wheel.read_bytes()).hexdigest() == package["sha256"], wheel.name
        assert set(package["depends"]) <= packages.keys(), package["name"]
        assert package["imports"], package["name"]


@pytest.mark.parametrize("file", LOCKS, ids=lambda file: file.name)
def test_pyodide_lock_reads_a_lock_and_finds_its_names_and_versions_in_its_files(file: Path) -> None:
    pyodide_lock = pytest.importorskip("pyodide_lock", reason="pyodide-lock, which comes with pyodide-build, needs Python 3.12")
    spec = pyodide_lock.PyodideLockSpec.from_json(file)
    for package in spec.packages.values():
        package.file_name = Path(package.file_name).name  # the test lock names directories too
    spec.check_wheel_filenames()
    stock = pyodide_lock.PyodideLockSpec.from_json(WASM / "node_modules" / "pyodide" / "pyodide-lock.json")
    assert spec.info == stock.info


def test_ours_need_what_they_need_in_the_browser() -> None:
    packages = lock_of(BUILD / "wheelhouse" / "pyodide-lock.json")["packages"]
    assert "sqljs-dbapi" in packages["ruv-swarm-store"]["depends"]  # there alone: its marker says emscripten
    assert packages["sqlalchemy"]["version"].startswith("2.1.")


def test_what_is_published_has_no_test_tool_in_it() -> None:
    published = {path.name for path in (BUILD / "wheelhouse").iterdir()}
    assert not [name for name in published if name.startswith(("pytest", "hypothesis"))]
    locked = {package["file_name"] for package in lock_of(BUILD / "wheelhouse" / "pyodide-lock.json")["packages"].values()}
    assert locked == {name for name in published if name.endswith(".whl")}
    assert {"pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip"} <= published


def test_what_has_not_changed_is_not_made_again() -> None:
    before = {path: path.stat().st_mtime_ns for path in BUILD.glob("*/*.whl")}
    subprocess.run([sys.executable, str(WASM / "harness" / "wheelhouse.py")], check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in BUILD.glob("*/*.whl")} == before


def test_the_npm_lock_names_versions_and_digests_and_no_registry() -> None:
    lock = lock_of(WASM / "package-lock.json")["packages"]
    wanted = lock.pop("")
    for package in lock.values():
        assert package["integrity"].startswith("sha512-")
        assert "resolved" not in package
    for kind in ("dependencies", "devDependencies", "optionalDependencies"):
        for name, version in wanted[kind].items():
            assert version == lock[f"node_modules/{name}"]["version"], "exact pins alone"
