# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/qubes against the real libraries: ``real_qubes.py FOLDER [-- PYTEST ARGUMENT...]``.

FOLDER holds checkouts of Qubes OS' repositories (core-admin-client, core-qrexec, core-admin,
core-agent-linux, with or without ``qubes-`` before the name), or folders of them, one for each
release. One line a release says how it went, and what was skipped.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).resolve().parent.parent
CHECKOUTS = {
    "QUBESADMIN": "core-admin-client",
    "QREXEC": "core-qrexec",
    "COREADMIN": "core-admin",
    "COREAGENT": "core-agent-linux",
}
"""Repositories by the variable that tells the tests of each."""


def releases(folder: Path) -> list[Path]:
    """The folders with checkouts of all repositories: this one, or those in it."""
    for candidates in ([folder], sorted(path for path in folder.iterdir() if path.is_dir())):
        if found := [one for one in candidates if all(place.is_dir() for place in places(one))]:
            return found
    return []


def places(folder: Path) -> list[Path]:
    """Where each repository is, in the order of CHECKOUTS."""
    both = [(folder / f"qubes-{name}", folder / name) for name in CHECKOUTS.values()]
    return [longer if longer.is_dir() else shorter for longer, shorter in both]


def main(folder: str, *arguments: str) -> int:
    """0 when all tests passed with every release."""
    found = releases(Path(folder).resolve())
    if not found:
        wanted = ", ".join(CHECKOUTS.values())
        print(f"{folder}: neither it nor a folder in it has all of: {wanted}", file=sys.stderr)
        return 2
    failed = 0
    for release in found:
        checkouts = dict(zip(CHECKOUTS, map(str, places(release)), strict=True))
        version = (Path(checkouts["COREADMIN"]) / "version").read_text().strip()
        command = [sys.executable, "-m", "pytest", "-q", *(arguments or ["tests/qubes"])]
        with NamedTemporaryFile("r") as skips:
            environment = {**os.environ, **checkouts, "SPARSEBAK_SKIPS": skips.name}
            code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
            skipped = skips.read().strip().replace("\n", "; ")
        result = "passed" if code == 0 else "FAILED"
        said = f", but not run: {skipped}" if skipped else ""
        print(f"Qubes OS {version}: {result}{said}", flush=True)
        failed += code != 0
    return 1 if failed else 0


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--"]
    sys.exit(main(*words) if words else 2)
