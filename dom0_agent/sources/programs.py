# SPDX-License-Identifier: GPL-2.0-or-later
"""How the programs of LVM and ZFS are run: with an environment of our own, for a limited time, and
with their last words where they fail.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, cast

from common import programs
from common.programs import LastWords
from wire.status import Code, Refused

_MOST = 64 << 20
"""Bytes that a command may print: lvs prints 300 for a volume."""
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
        done = programs.ask(command, TIMEOUT, _MOST, environment())
    except FileNotFoundError:
        raise _not_installed(command[0]) from None
    except subprocess.TimeoutExpired:
        raise Refused(
            Code.SOURCE_FAILED, f"{command[0]} did not end within {TIMEOUT} seconds; stopped"
        ) from None
    except programs.TooMuch:
        raise Refused(
            Code.SOURCE_FAILED, f"{command[0]} printed more than {_MOST >> 20} MiB"
        ) from None
    if done.code:
        lines = [line.strip() for line in done.said.splitlines() if line.strip()]
        words = "; ".join([line for line in lines if "WARNING" not in line] or lines)
        full = "space" in words or "threshold" in words
        raise Refused(
            Code.NO_SPACE if full else Code.SOURCE_FAILED,
            f"{' '.join(command[:1])} failed: {words or done.code}",
        )
    return done.out.decode(errors="replace")


def _started(*command: str) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
        )
    except FileNotFoundError:
        raise _not_installed(command[0]) from None


def _not_installed(program: str) -> Refused:
    return Refused(Code.SOURCE_FAILED, f"{program} is not installed")


@contextmanager
def printed(what: str, *command: str) -> Iterator[BinaryIO]:
    """What a command prints, to be read inside as it comes, and to its end.

    Refused when it fails, or when what it prints raises ValueError inside: ``what`` failed, with
    the command's own words if it has any. The command is killed when anything is raised inside.
    """
    with _started(*command) as process:
        said, wrong = LastWords(cast(IO[bytes], process.stderr)), ""
        try:
            yield cast(BinaryIO, process.stdout)
        except ValueError as error:
            process.kill()
            wrong = str(error)
        except BaseException:
            process.kill()
            raise
        code, words = process.wait(), said.text().strip()
        if code or wrong:
            raise Refused(Code.SOURCE_FAILED, f"{what} failed: {words or wrong or code}")
