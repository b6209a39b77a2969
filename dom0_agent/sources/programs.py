# SPDX-License-Identifier: GPL-2.0-or-later
"""How the programs of LVM and ZFS are run: with an environment of our own, for a limited time, and
with their last words where they fail.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from wire.status import Code, Refused

TIMEOUT = 300
"""Seconds after which a command is given up: somebody holds LVM's lock, or a device hangs."""


def environment() -> dict[str, str]:
    """What commands of dom0 get: no locale, no descriptors complained of by LVM, the system's own
    programs.
    """
    kept = {name: os.environ[name] for name in ("LVM_SYSTEM_DIR",) if name in os.environ}
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        **kept,
    }


def run(*command: str) -> str:
    """Run a command and return what it prints; Refused, with its last words, when it fails."""
    try:
        done = subprocess.run(
            command,
            # ours is the caller's data, and whoever asks is answered "no"
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment(),
            check=False,
            timeout=TIMEOUT,
        )
    except FileNotFoundError:
        raise Refused(Code.SOURCE_FAILED, f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Refused(
            Code.SOURCE_FAILED, f"{command[0]} did not end within {TIMEOUT} seconds; stopped"
        ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        words = "; ".join([line for line in lines if "WARNING" not in line] or lines)
        full = "space" in words or "threshold" in words
        raise Refused(
            Code.NO_SPACE if full else Code.SOURCE_FAILED,
            f"{' '.join(command[:1])} failed: {words or done.returncode}",
        )
    return done.stdout


@contextmanager
def printed(what: str, *command: str) -> Iterator[BinaryIO]:
    """What a command prints, to be read inside as it comes, and to its end.

    Refused when it fails, or when what it prints raises ValueError inside: ``what`` failed, with
    the command's own words if it has any. The command is killed when anything is raised inside.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    ) as process:
        wrong = ""
        try:
            yield cast(BinaryIO, process.stdout)
        except ValueError as error:
            process.kill()
            wrong = str(error)
        except BaseException:
            process.kill()
            raise
        words = cast(BinaryIO, process.stderr).read().decode("ascii", "replace").strip()
        if process.wait() or wrong:
            raise Refused(
                Code.SOURCE_FAILED, f"{what} failed: {words or wrong or process.returncode}"
            )
