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

ROOT = Path(__file__).resolve().parent
TOOLS = ROOT / ".tools"
CONSTRAINTS = str(ROOT / "constraints.txt")


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
nox.options.sessions = ["lint", "types", "migrations", "wheel", "tests"]
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
    # The oldest Python here runs every engine; the others leave out PostgreSQL, which would take as long again on each.
    oldest = next((name for name in PYTHONS if shutil.which(f"python{name}")), session.python)
    env = {} if session.posargs or session.python == oldest else {"RUV_SWARM_TEST_POSTGRES": "none"}
    session.run("pytest", *session.posargs, env=env)


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
    install(session, ".[cli,postgres]", "--group", "test")
    database = Path(session.create_tmp()) / "migrations.db"
    database.unlink(missing_ok=True)
    for command in ("upgrade head", "check", "downgrade base", "upgrade head", "check", "current --check-heads"):
        session.run("alembic", "-x", f"url={database}", *command.split())
    if (ROOT / "tests" / "test_migrations.py").exists():
        session.run("pytest", "tests/test_migrations.py", *session.posargs)


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


@nox.session
def bench(session: nox.Session) -> None:
    """Measure the hot paths beside the plain drivers and other task queues (`-- -k claim` to choose)."""
    install(session, ".[cli,postgres]", "--group", "bench")
    try:
        install(session, "--group", "peers")
    except CommandFailed:
        session.warn("not every other task queue can be installed here: the tables say which are missing")
    session.run("pytest", "benchmarks", *session.posargs)


if __name__ == "__main__":
    sys.argv[1:1] = ["--noxfile", __file__]
    nox.main()
