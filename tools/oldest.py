# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs tests with the oldest releases of the libraries that sparsebak has to work with: those of
tests/oldest.txt.

    python tools/oldest.py TESTS... [pytest's options]

They are in front of the ones installed, so that the rest of the environment is as it is.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests/oldest.txt"
FOLDER = ROOT / "build/oldest"
PYTHON = (3, 11)
"""The Python of the distributions that have them, and the one there are wheels for."""


def main(arguments: list[str]) -> int:
    if sys.version_info[:2] != PYTHON:
        version = ".".join(map(str, PYTHON))
        reason = f"the oldest libraries: make PYTHON=python{version} test, after make clean"
        print(f"oldest: not run: {reason}")
        if skips := os.environ.get("SPARSEBAK_SKIPS"):
            with open(skips, "a") as file:
                print(reason, file=file)
        return 1 if os.environ.get("CI") == "true" else 0
    ready = FOLDER / ".ready"
    if not ready.exists() or ready.read_text() != LIST.read_text():
        shutil.rmtree(FOLDER, ignore_errors=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        # there is no wheel of the oldest construct, which is Python alone
        wheels = ["--only-binary", ":all:", "--no-binary", "construct"]
        subprocess.run([*pip, *wheels, "--target", FOLDER, "-r", LIST], check=True)
        ready.write_text(LIST.read_text())
    environment = {**os.environ, "PYTHONPATH": str(FOLDER)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *arguments], cwd=ROOT, env=environment, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
