"""Put sql.js into the wheel: from the npm package that package.json pins, each file known by its sha-256."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# what is taken from the package -> its name beside driver.mjs, its sha-256
VENDORED = {
    "dist/sql-wasm-browser.js": ("sql-wasm-browser.js", "eb000b8422ead1cce9b4ef183f6af2e115877e37649a44e38f115561cc3f1a8a"),
    "dist/sql-wasm.wasm": ("sql-wasm.wasm", "43bbcdd44287e5a2db3b6b5af34b1a3485a7a441285d247976c1ebe3c61f8dbf"),
    "LICENSE": ("LICENSE", "60a3f6e4d7b29b4321359e683b36cf198d24f58e24582070f56e6fa89d5ee2be"),
}


class VendorSqlJs(BuildHookInterface[Any]):
    """Copies sql.js to sqljs_dbapi/js/vendor, which is no part of the repository, before a wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Vendor the files and stop the build where one of them is not what it should be."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        vendor = root / "sqljs_dbapi" / "js" / "vendor"
        if all(digest(vendor / name) == sha256 for name, sha256 in VENDORED.values()):
            return
        installed = root / "node_modules" / "sql.js"
        with tempfile.TemporaryDirectory() as elsewhere:
            package = installed if installed.is_dir() else fetched(root, Path(elsewhere))
            vendor.mkdir(parents=True, exist_ok=True)
            for source, (name, sha256) in VENDORED.items():
                if (found := digest(package / source)) != sha256:
                    raise RuntimeError(f"{source} of sql.js has the sha-256 {found}, and it should be {sha256}")
                shutil.copyfile(package / source, vendor / name)


def fetched(root: Path, directory: Path) -> Path:
    """Fetch the pinned sql.js by name with npm; the unpacked package."""
    pinned = json.loads((root / "package.json").read_text(encoding="utf-8"))["dependencies"]["sql.js"]
    subprocess.run(["npm", "pack", "--silent", f"sql.js@{pinned}"], cwd=directory, check=True, stdout=subprocess.DEVNULL)
    (archive,) = directory.glob("*.tgz")
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")
    return directory / "package"


def digest(file: Path) -> str | None:
    """The sha-256 of a file, or None where there is none."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None
