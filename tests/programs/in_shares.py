"""Runs pytest as several processes side by side, each with its share of the test files: `in_shares.py N [ARGUMENT...]`.

What the first prints is seen as it comes, the others' after it. The exit code is one that is not 0, if there is any.
"""

import subprocess
import sys
import tempfile
from contextlib import ExitStack


def main(shares: int, arguments: list[str]) -> int:
    """Run so many processes."""
    failed = 0
    with ExitStack() as until:
        directory = until.enter_context(tempfile.TemporaryDirectory())
        running = []
        for index in range(shares):
            words = [sys.executable, "-m", "pytest", "--share", f"{index}/{shares}", "--basetemp", f"{directory}/{index}", *arguments]
            output = until.enter_context(tempfile.TemporaryFile()) if index else None
            running.append((output, subprocess.Popen([*words, "-p", "no:cacheprovider"], stdout=output, stderr=output)))
        for output, process in running:
            failed = process.wait() or failed
            if output is not None:
                output.seek(0)
                sys.stdout.write(output.read().decode(errors="replace"))
    return failed


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
