"""Put the playground into one directory that any web server can host: page, Python, wheels, a sample, and a list of it all.

`python wasm/playground/build.py` writes `wasm/build/playground`; `--serve` hosts it on 127.0.0.1 too, and prints where.
It needs what `wasm/harness/wheelhouse.py` needs, which it runs first.
"""

import argparse
import functools
import hashlib
import http.server
import io
import json
import mimetypes
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

PLAYGROUND = Path(__file__).resolve().parent
WASM = PLAYGROUND.parent
ROOT = WASM.parent
WHEELHOUSE = WASM / "build" / "wheelhouse"
SITE = WASM / "build" / "playground"

PAGE = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.mjs",
    "chart.mjs",
    "files.mjs",
    "offline.mjs",
    "panels.mjs",
    "worker.mjs",
    "session.py",
)
PYTHON = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
NEEDED = "ruv-swarm-store"  # and all that it needs: the command's and the tests' packages stay out
SAMPLE = ("ruv_swarm_store", "alembic", "benchmarks", "tests", "wasm/sqljs_dbapi", "wasm/harness", "wasm/playground")
LIST = "const FILES = {};"
TYPES = {
    ".mjs": "text/javascript",
    ".js": "text/javascript",
    ".py": "text/x-python",
    ".whl": "application/zip",
    ".wasm": "application/wasm",
}


def main() -> None:
    """Build, and serve if that is asked for."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--serve", action="store_true", help="serve it on 127.0.0.1 until interrupted")
    options.add_argument("--port", type=int, default=8000, help="to serve at; 0 for any (default: %(default)s)")
    given = options.parse_args()
    subprocess.run([sys.executable, str(WASM / "harness" / "wheelhouse.py")], check=True)
    total = build(SITE)
    print(f"{SITE.relative_to(ROOT)}: {total / 1e6:.1f} MB, to be hosted by any web server")
    if given.serve:
        serve(SITE, given.port)


def build(site: Path) -> int:
    """Write the whole site into a directory, which holds nothing else afterwards; its size in bytes."""
    lock = json.loads((WHEELHOUSE / "pyodide-lock.json").read_text(encoding="utf-8"))
    lock["packages"] = {name: lock["packages"][name] for name in closure(NEEDED, lock["packages"])}
    contents = {name: (PLAYGROUND / name).read_bytes() for name in PAGE}
    for name in (*PYTHON, *(package["file_name"] for package in lock["packages"].values())):
        contents[f"wheelhouse/{name}"] = (WHEELHOUSE / name).read_bytes()
    contents["wheelhouse/pyodide-lock.json"] = json.dumps(lock, sort_keys=True).encode()
    contents["sample.zip"] = sample()
    files = {
        name: {"hash": hashlib.sha256(content).hexdigest(), "size": len(content), "type": media_type(name)}
        for name, content in sorted(contents.items())
    }
    worker = (PLAYGROUND / "service-worker.js").read_text(encoding="utf-8")
    if worker.count(LIST) != 1:
        sys.exit(f"service-worker.js has no {LIST!r} to put the list of files in place of.")
    contents["service-worker.js"] = worker.replace(LIST, f"const FILES = {json.dumps(files, indent=1)};").encode()

    shutil.rmtree(site, ignore_errors=True)
    for name, content in contents.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(content)
    return sum(map(len, contents.values()))


def closure(name: str, packages: dict[str, dict[str, list[str]]]) -> list[str]:
    """A package and all that it needs, by name."""
    found: list[str] = []
    pending = [name]
    while pending:
        if (each := pending.pop()) not in found:
            found.append(each)
            pending += packages[each]["depends"]
    return sorted(found)


def sample() -> bytes:
    """Our own Python source as a zip file: the same bytes for the same source."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sources():
            entry = zipfile.ZipInfo(path.relative_to(ROOT).as_posix(), (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, path.read_bytes())
    return packed.getvalue()


def sources() -> Iterable[Path]:
    """Every file of the sample."""
    for directory in SAMPLE:
        for path in sorted((ROOT / directory).rglob("*.py")):
            if not {"node_modules", "__pycache__"} & set(path.parts):
                yield path


def media_type(name: str) -> str:
    """What a server should say that a file is."""
    return TYPES.get(Path(name).suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files with the right types, and asks to be asked again."""

    def guess_type(self, path: str | os.PathLike[str]) -> str:
        """What to say that a file is."""
        return media_type(os.fspath(path))

    def end_headers(self) -> None:
        """Add what every answer says."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def serve(site: Path, port: int) -> None:
    """Host a directory on 127.0.0.1 until interrupted."""
    handler = functools.partial(Quiet, directory=os.fspath(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


if __name__ == "__main__":
    main()
