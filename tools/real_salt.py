# SPDX-License-Identifier: GPL-2.0-or-later
"""tests/system/test_salt.py with the real Salt: ``real_salt.py FOLDER [-- PYTEST ARGUMENT...]``.

FOLDER holds checkouts of Qubes OS' repositories (core-admin-client, mgmt-salt, mgmt-salt-base,
mgmt-salt-dom0-qvm, with or without ``qubes-`` before the name). Salt itself is installed under
``build/salt``, once, in the release that Qubes OS 4.3 has.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SALT = ROOT / "build" / "salt"
RELEASE = "salt>=3007,<3008"
CHECKOUTS = ("core-admin-client", "mgmt-salt", "mgmt-salt-base", "mgmt-salt-dom0-qvm")


def main(folder: str, *arguments: str) -> int:
    """pytest's exit code; 2 where a checkout is missing."""
    given = Path(folder).resolve()
    missing = [
        name
        for name in CHECKOUTS
        if not any((given / one).is_dir() for one in (name, f"qubes-{name}"))
    ]
    if missing:
        print(f"{folder}: there is no checkout of: {', '.join(missing)}", file=sys.stderr)
        return 2
    if not SALT.exists():
        new = SALT.with_suffix(".making")
        command = [sys.executable, "-m", "pip", "install", "-q", "--target", new, RELEASE]
        subprocess.run(["rm", "-rf", new], check=True)
        subprocess.run(command, check=True)
        new.rename(SALT)
    command = [sys.executable, "-m", "pytest", *(arguments or ["-v", "tests/system/test_salt.py"])]
    environment = {**os.environ, "SALT_LIBRARY": str(SALT), "QUBES_SOURCES": str(given)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--"]
    sys.exit(main(*words) if words else 2)
