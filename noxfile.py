"""Every chore of this project, one session each.

`nox --list` names them and `nox` alone runs what CI runs. `python3 noxfile.py` takes the same arguments and needs only
Python 3.11 and pip: it brings a nox of its own, kept in `.tools`.
"""

import contextlib
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / ".tools"
CONSTRAINTS = str(ROOT / "constraints.txt")
WASM = ROOT / "wasm"
INSIDE_PYODIDE = ["wasm/harness/tests/inside", "wasm/tests", "tests/conformance", "tests/test_sqljs.py"]  # what runs there
SHARES = str(min(4, os.cpu_count() or 1))  # tests that run side by side
JOBS = ["--jobs", SHARES]


def bring_own_nox() -> None:
    """Make the nox in `.tools` the one that is imported here and below, fetching it first if it is not there."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this is the one file an older Python may be asked to run
        sys.exit(f"ruv_swarm_store needs Python 3.11 or newer, and this is {sys.version.split()[0]} ({sys.executable}).")
    if not TOOLS.exists():
        # `--target` is what works where the system Python refuses installs and has neither venv nor ensurepip. The rename
        # comes last, so an interrupted download is not taken for a nox; where it fails another run was faster.
        with tempfile.TemporaryDirectory(prefix=".tools-", dir=ROOT) as download:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--root-user-action", "ignore"]
            if failed := subprocess.call([*pip, "--constraint", CONSTRAINTS, "--target", f"{download}/tools", "nox"]):
                sys.exit(failed)
            with contextlib.suppress(OSError):
                Path(download, "tools").rename(TOOLS)
    sys.path.insert(0, str(TOOLS))
    os.environ["PYTHONPATH"] = str(TOOLS)


if __name__ == "__main__":
    bring_own_nox()

import nox  # noqa: E402
from nox.command import CommandFailed  # noqa: E402

nox.needs_version = ">=2025.5.1"
nox.options.sessions = ["lint", "types", "migrations", "wheel", "tests", "wheelhouse", "pyodide", "browser", "gate"]
nox.options.default_venv_backend = "virtualenv"  # one way on every machine: it obeys the pip configuration it finds
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
if (running := f"{sys.version_info.major}.{sys.version_info.minor}") not in PYTHONS:
    PYTHONS.append(running)


def show_pyenv_versions() -> None:
    """Put every Python that pyenv holds at the end of PATH: its shims only answer for the version that is switched on."""
    root = os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")
    found = [path for name in PYTHONS for path in sorted(glob.glob(f"{root}/versions/{name}.*/bin"))]  # noqa: PTH207 - forgives
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *found])


show_pyenv_versions()


def newest_python() -> str:
    """The newest Python here that a test session runs on: Pyodide's own tools need 3.12."""
    return next((name for name in reversed(PYTHONS) if shutil.which(f"python{name}")), running)


def install(session: nox.Session, *what: str) -> None:
    """Install into the session's environment: pinned, and blind to `.tools`."""
    session.env["PYTHONPATH"] = None
    session.install("--constraint", CONSTRAINTS, "--build-constraint", CONSTRAINTS, *what)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demo swarm: several worker processes index a source tree (`-- PATH` for another one)."""
    install(session, ".[cli]")
    session.run("ruv-swarm", "demo", *session.posargs)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests on every Python from 3.11 up that this machine has (`-- -k name` to choose)."""
    install(session, ".[cli,postgres]", "--group", "test")
    # The oldest Python here runs everything; the others leave out PostgreSQL, the engine in memory and what takes long.
    oldest = next((name for name in PYTHONS if shutil.which(f"python{name}")), session.python)
    in_shares = ["python", "tests/programs/in_shares.py", SHARES]
    if session.posargs:
        session.run("pytest", *session.posargs)
    elif session.python == oldest:
        session.run(*in_shares)
    else:
        session.run(*in_shares, "-m", "not long", env={"RUV_SWARM_TEST_POSTGRES": "none"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the floors of the house (ruff, import-linter)."""
    install(session, "--group", "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports", "--no-cache")


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy --strict and pyright, including the errors that must be reported."""
    install(session, ".[cli,postgres]", "--group", "types")
    session.run("mypy")
    session.run("pyright")


@nox.session
def migrations(session: nox.Session) -> None:
    """Upgrade, compare with the schema, downgrade and upgrade again with the alembic command."""
    install(session, ".[cli,postgres]")
    database = Path(session.create_tmp()) / "migrations.db"
    database.unlink(missing_ok=True)
    for command in ("upgrade head", "check", "downgrade base", "upgrade head", "check", "current --check-heads"):
        session.run("alembic", "-x", f"url={database}", *command.split())


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it alone and run the README's example far from the checkout."""
    install(session, "build", "hatchling", "virtualenv")
    with tempfile.TemporaryDirectory() as elsewhere:
        away = Path(elsewhere)
        # the sdist first and the wheel from it: what is published can be built again
        session.run("python", "-m", "build", "--no-isolation", "--outdir", f"{away}/dist")
        session.run("virtualenv", "--quiet", "--no-periodic-update", f"{away}/fresh")
        python = str(away / "fresh" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
        (built,) = (away / "dist").glob("*.whl")
        session.run(python, "-m", "pip", "install", "--constraint", CONSTRAINTS, str(built), silent=True, external=True)

        source, expected = readme_example()
        (away / "example.py").write_text(source, encoding="utf-8")
        with session.chdir(away):
            printed = session.run(python, "-I", "example.py", silent=True, external=True)
        if str(printed).strip() != expected.strip():
            session.error(f"README.md says its example prints\n{expected}\nbut it printed\n{printed}")
        session.log(f"{built.name} runs the README's example as printed there")


def readme_example() -> tuple[str, str]:
    """The first python block of README.md and the block after it, which is what the first one prints."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    first = next(index for index, (language, _) in enumerate(blocks) if language == "python")
    return blocks[first][1], blocks[first + 1][1]


@nox.session(python=newest_python())
def wheelhouse(session: nox.Session) -> None:
    """Gather what the browser edition runs on in wasm/build/wheelhouse, which a site can host as it is."""
    gather_wheelhouse(session)
    install(session, "--group", "pyodide", "pytest>=9")
    session.run("pytest", *(session.posargs or ["wasm/harness/tests/native"]))


@nox.session
def pyodide(session: nox.Session) -> None:
    """Run the tests inside Pyodide on Node, and those of the JavaScript beside it (`-- PATH -k name` to choose)."""
    gather_wheelhouse(session)
    if session.posargs:
        session.run(node(session), "wasm/harness/node.mjs", *pytest_words(session.posargs), external=True)
        return
    for file in javascript("*.mjs"):
        session.run(node(session), "--check", file, external=True, silent=True)
    session.run(node(session), "--test", *javascript("tests/*.test.mjs"), *javascript("js-tests/*.test.mjs"), external=True)
    session.run(node(session), "wasm/harness/node.mjs", *JOBS, *INSIDE_PYODIDE, external=True)
    session.run(node(session), "wasm/harness/node.mjs", "--file", "wasm/tests/compliance/sqlalchemy_suite.py", external=True)
    if oldest := shutil.which("node"):  # without JSPI, more likely than not
        session.run(oldest, "wasm/harness/node.mjs", "wasm/harness/tests/inside", external=True)


@nox.session
def browser(session: nox.Session) -> None:
    """Run the tests inside Pyodide in Chromium and, where it is installed, Firefox (`-- PATH -k name` to choose)."""
    gather_wheelhouse(session)
    run = [node(session), "wasm/harness/browser.mjs"]
    if session.posargs:
        session.run(*run, *pytest_words(session.posargs), external=True)
        return
    install(session, ".")
    session.run("python", "wasm/playground/build.py")
    python = {"PYTHON": str(Path(session.bin) / "python")}
    timed = javascript("js-tests/*.browser.mjs")  # they measure, or kill at a time that counts: one after the other
    beside = [*javascript("playground/*.test.mjs"), *(file for file in javascript("*.browser.mjs") if file not in timed)]
    session.run(node(session), "--test", f"--test-concurrency={SHARES}", *beside, env=python, external=True)
    session.run(node(session), "--test", "--test-concurrency=1", *timed, external=True)
    session.run(*run, "--browser", "chromium", *JOBS, *INSIDE_PYODIDE, "--", "-m", "not in_memory", external=True)
    session.run(*run, "--browser", "firefox", "wasm/harness/tests/inside", external=True)


@nox.session
def playground(session: nox.Session) -> None:
    """Build the playground in wasm/build/playground and serve it on 127.0.0.1 (`-- --port 8080` for another port than 8000)."""
    gather_wheelhouse(session)
    session.run("python", "wasm/playground/build.py", "--serve", *session.posargs)


def gather_wheelhouse(session: nox.Session) -> None:
    """Install what package-lock.json names, without a script of theirs, and bring wasm/build up to date."""
    npm = shutil.which("npm")
    if not npm:
        absent(session, "there is no npm on this machine")
    install(session, "--group", "wheelhouse")
    lock, installed = WASM / "package-lock.json", WASM / "node_modules" / ".package-lock.json"
    if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
        session.run(str(npm), "ci", "--prefix", str(WASM), "--ignore-scripts", "--no-audit", "--no-fund", external=True)
    session.run("python", "wasm/harness/wheelhouse.py")


def javascript(pattern: str) -> list[str]:
    """Our own JavaScript, of what is in wasm. Of the tests, `*.browser.mjs` and the playground's start browsers."""
    foreign = {"node_modules", "build", "vendor"}
    return [str(path.relative_to(ROOT)) for path in sorted(WASM.rglob(pattern)) if not foreign.intersection(path.relative_to(WASM).parts)]


def node(session: nox.Session) -> str:
    """The Node that npm brought, which can suspend Python (JSPI); another one where it has none for this machine."""
    found = next(iter(WASM.glob("node_modules/node-*/bin/node")), None) or shutil.which("node")
    if not found:
        absent(session, "there is no Node on this machine")
    return str(found)


def absent(session: nox.Session, reason: str) -> NoReturn:
    """Leave the session out, loudly; where every engine has to be there, fail."""
    if os.environ.get("RUV_SWARM_ALL_ENGINES"):
        session.error(f"{reason}, and RUV_SWARM_ALL_ENGINES is set")
    session.skip(reason)


def pytest_words(words: list[str]) -> list[str]:
    """Words as pytest takes them, as the runners do: paths first, the rest after `--`."""
    paths = [word for word in words if (ROOT / word.partition("::")[0]).exists()]
    return [*(paths or INSIDE_PYODIDE), "--", *(word for word in words if word not in paths)]


@nox.session
def gate(session: nox.Session) -> None:
    """Compare the hot paths with the plain driver, and fail where one has become slower (`-- --renew` writes down today's ratios)."""
    install(session, ".")
    session.run("python", "benchmarks/gate.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the hot paths beside the plain drivers and other libraries, for docs/ (`-- -k claim` to choose, and only print)."""
    install(session, ".[cli,postgres,backup]", "--group", "bench")
    try:
        install(session, "--group", "peers")
    except CommandFailed:
        session.warn("not every other task queue can be installed here: the tables say which are missing")
    session.run("pytest", "benchmarks", *(session.posargs or ["--json", "docs/benchmarks.json", "--plots", "docs"]))


@nox.session
def growth(session: nox.Session) -> None:
    """Measure how the hot paths grow with the rows there are, for docs/ (`-- 10k 100k 1m 10m` for other sizes, and only print)."""
    install(session, ".[cli]", "--group", "bench")
    session.run("python", "benchmarks/growth.py", *(session.posargs or ["--json", "docs/growth.json", "--plots", "docs"]))


if __name__ == "__main__":
    sys.argv[1:1] = ["--noxfile", __file__]
    nox.main()
