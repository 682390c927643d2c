"""Collect every wheel that the browser edition runs on, with a lock file: a directory that a site can host as it is.

`python wasm/harness/wheelhouse.py` writes, below `wasm/build`:

- `wheelhouse/`: Pyodide itself, ours and its dependencies, `pyodide-lock.json`. `loadPyodide()` of the `pyodide.mjs` in there
  needs no option, no network and no other site.
- `testhouse/`: what only the tests need, and `test-lock.json`, which locks both directories.

What has not changed since the last run is not made again.
"""

import email.parser
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

WASM = Path(__file__).resolve().parents[1]
ROOT = WASM.parent
BUILD = WASM / "build"
CONSTRAINTS = ROOT / "constraints.txt"
PYODIDE = WASM / "node_modules" / "pyodide"
CORE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")

# no wheel for Pyodide is published of these: built without a compiler, since a C extension is all that one of them would lose
FROM_SOURCE = ("markupsafe", "dbapi-compliance")
EXTRAS = ("cli", "cron")  # of ours, beside what it always needs


def main() -> None:
    """Bring `wasm/build` up to date, one at a time, and say what is in it."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        gather()


def gather() -> None:
    """Make what is missing or older than what it is made of."""
    stock = json.loads((PYODIDE / "pyodide-lock.json").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [name for extra in EXTRAS for name in project["project"]["optional-dependencies"][extra]]
    wanted = [*project["project"]["dependencies"], *extras, "micropip", "markupsafe"]
    target = Target(stock["info"])
    wheelhouse, testhouse = BUILD / "wheelhouse", BUILD / "testhouse"

    runtime = collect(wanted, target, BUILD / "runtime")
    tests = collect(project["dependency-groups"]["pyodide-test"], target, BUILD / "test", beside=runtime)
    ours = [ours_built("sqljs-dbapi", WASM), ours_built("ruv-swarm-store", ROOT)]
    known = {wheel.name for wheel in runtime}
    mirror(wheelhouse, [*(PYODIDE / name for name in CORE), PYODIDE / "package.json", *runtime, *ours])
    mirror(testhouse, [wheel for wheel in tests if wheel.name not in known])

    lock(target, sorted(wheelhouse.glob("*.whl")), wheelhouse / "pyodide-lock.json")
    lock(target, sorted(BUILD.glob("*house/*.whl")), BUILD / "test-lock.json")
    for house in (wheelhouse, testhouse):
        wheels = list(house.glob("*.whl"))
        print(f"{house.relative_to(ROOT)}: {len(wheels)} wheels, {sum(wheel.stat().st_size for wheel in wheels) / 1e6:.1f} MB")


class Target:
    """The Python inside Pyodide, as pip and environment markers name it."""

    def __init__(self, info: dict[str, str]) -> None:
        self.info = info
        self.python = ".".join(info["python"].split(".")[:2])
        self.platform = f"pyemscripten_{info['abi_version']}_{info['arch']}"
        self.markers = {
            "implementation_name": "cpython",
            "implementation_version": info["python"],
            "os_name": "posix",
            "platform_machine": info["arch"],
            "platform_python_implementation": "CPython",
            "platform_release": info["platform"].partition("_")[2].replace("_", "."),
            "platform_system": "Emscripten",
            "platform_version": "#1",
            "python_full_version": info["python"],
            "python_version": self.python,
            "sys_platform": "emscripten",
        }

    def pip_options(self) -> list[str]:
        """Make pip look for wheels of this Python, whichever it runs on itself."""
        abi = f"cp{self.python.replace('.', '')}"
        binary = ["--only-binary=:all:", f"--platform={self.platform}"]
        return [*binary, "--implementation=cp", f"--python-version={self.python}", f"--abi={abi}"]


def collect(requirements: Sequence[str], target: Target, directory: Path, beside: Iterable[Path] = ()) -> list[Path]:
    """Download the wheels of `requirements` and of all they need into `directory`, unless it holds them already."""
    beside = list(beside)
    inputs = digest([CONSTRAINTS.read_bytes(), repr((requirements, target.info, sorted(wheel.name for wheel in beside))).encode()])
    if stamp(directory) != inputs:
        with fresh(directory, inputs) as new:
            for name in FROM_SOURCE:
                if name in requirements:
                    pip("wheel", "--no-deps", f"--no-binary={name}", f"--wheel-dir={new}", name, CC="/bin/false")
            found = [f"--find-links={house}" for house in {new, *(wheel.parent for wheel in beside)}]
            pip("download", *target.pip_options(), *found, f"--dest={new}", *requirements)
    return sorted(directory.glob("*.whl"))


def ours_built(name: str, source: Path) -> Path:
    """Build the wheel of the project in `source`, unless its files are those of the wheel that is there."""
    directory = BUILD / name
    inputs = digest(path.relative_to(source).as_posix().encode() + b"\0" + path.read_bytes() for path in sources(source))
    if stamp(directory) != inputs:
        with fresh(directory, inputs) as new:
            hatchling = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(new)]
            done = subprocess.run(hatchling, cwd=source, check=False, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{done.stdout}{done.stderr}")
    (wheel,) = directory.glob("*.whl")
    return wheel


def sources(project: Path) -> Iterator[Path]:
    """Every file that the wheel of `project` is made of."""
    for name in ("pyproject.toml", "hatch_build.py", "package-lock.json", "README.md", "LICENSE"):
        if (project / name).exists():
            yield project / name
    for package in ("ruv_swarm_store", "alembic", "sqljs_dbapi"):
        for path in sorted((project / package).rglob("*")):
            if path.is_file() and path.suffix not in {".pyc", ".pyo"} and "vendor" not in path.parts:
                yield path


def lock(target: Target, wheels: Sequence[Path], file: Path) -> None:
    """Write the lock file of `wheels`, with paths relative to it. Every dependency has to be among them.

    pyodide-lock would do this, were it not that it takes pyemscripten wheels for foreign and needs Python 3.12.
    """
    described = {wheel: metadata(wheel) for wheel in wheels}
    names = {name for name, _ in described.values()}
    packages = {}
    for wheel, (name, requirements) in described.items():
        markers = {**target.markers, "extra": ""}
        depends = {canonicalize_name(each.name) for each in requirements if each.marker is None or each.marker.evaluate(markers)}
        if missing := depends - names:
            sys.exit(f"{file.name}: {name} needs {', '.join(sorted(missing))}, and there is no wheel of it here.")
        packages[name] = {
            "name": name,
            "version": str(parse_wheel_filename(wheel.name)[1]),
            "file_name": wheel.relative_to(file.parent).as_posix(),
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
            "install_dir": "site",
            "package_type": "package",
            "imports": imports(wheel),
            "depends": sorted(depends),
            "unvendored_tests": False,
        }
    file.write_text(json.dumps({"info": target.info, "packages": packages}, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def imports(wheel: Path) -> list[str]:
    """What can be imported from a wheel: the modules and packages at its top."""
    with zipfile.ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if name.endswith((".py", ".so"))]
    tops = {file.parts[0] if len(file.parts) > 1 else file.name.partition(".")[0] for file in files}
    return sorted(top for top in tops if top.isidentifier())


def metadata(wheel: Path) -> tuple[str, list[Requirement]]:
    """Name and requirements of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA"))
        parsed = email.parser.BytesParser().parsebytes(archive.read(name))
    return canonicalize_name(str(parsed["Name"])), [Requirement(each) for each in parsed.get_all("Requires-Dist", [])]


def mirror(directory: Path, files: Sequence[Path]) -> None:
    """Make `directory` hold just these files; those that are there and equal are left alone."""
    directory.mkdir(parents=True, exist_ok=True)
    names = {file.name for file in files}
    for stranger in directory.iterdir():
        if stranger.name not in names and stranger.name != "pyodide-lock.json":
            stranger.unlink()
    for file in files:
        copy = directory / file.name
        if not copy.exists() or copy.stat().st_mtime_ns != file.stat().st_mtime_ns or copy.stat().st_size != file.stat().st_size:
            whole = copy.with_suffix(".new")
            shutil.copy2(file, whole)
            whole.replace(copy)  # at once: somebody may be reading it


class fresh:  # noqa: N801 - a context manager
    """A directory beside `directory` that takes its place when the block ends well, stamped with what it was made of."""

    def __init__(self, directory: Path, inputs: str) -> None:
        self.directory, self.inputs = directory, inputs

    def __enter__(self) -> Path:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.new = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}-", dir=self.directory.parent))
        return self.new

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            (self.new / "inputs").write_text(self.inputs, encoding="ascii")
            shutil.rmtree(self.directory, ignore_errors=True)
            self.new.rename(self.directory)
        else:
            shutil.rmtree(self.new)


def stamp(directory: Path) -> str | None:
    """What `directory` was made of, as `digest` says it."""
    file = directory / "inputs"
    return file.read_text(encoding="ascii") if file.exists() else None


def digest(parts: Iterable[bytes]) -> str:
    """The sha-256 of `parts`, each told from the next."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def pip(command: str, *arguments: object, **environment: str) -> None:
    """Run the pip of this Python, with the versions that CI installs."""
    options = ["-qq", "--disable-pip-version-check", f"--constraint={CONSTRAINTS}"]
    subprocess.run([sys.executable, "-m", "pip", command, *options, *map(str, arguments)], check=True, env={**os.environ, **environment})


if __name__ == "__main__":
    main()
