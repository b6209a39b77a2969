# SPDX-License-Identifier: GPL-2.0-or-later
"""Files and folders that the user names: ``~``, small files read whole, and larger ones."""

import os
import stat
from pathlib import Path
from typing import IO

from backup_vm import failures
from backup_vm.errors import UsageError

QREXEC_CLIENT = Path("/usr/bin/qrexec-client-vm")
"""Where this is, the machine is a qube."""
SYSTEMD = Path("/run/systemd/system")
"""Where this is, systemd runs (sd_booted(3))."""


def home() -> Path | None:
    """The home folder; None where there is neither HOME nor a line of this user in passwd, as in a
    container.
    """
    if os.environ.get("HOME"):
        return Path(os.environ["HOME"])
    import pwd

    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return None


def state_folder() -> Path | None:
    """Where this program remembers what must outlive a cache: ``$XDG_STATE_HOME/sparsebak``; None
    where there is no home.
    """
    base, own = os.environ.get("XDG_STATE_HOME", ""), home()
    if base.startswith("/"):
        return Path(base) / "sparsebak"
    return None if own is None else own / ".local/state/sparsebak"


def expanded(text: str) -> str:
    """A path with ``~`` or ``~USER`` at its beginning replaced. Raise UsageError where that stands
    for nothing.

    A shell does this for what is not quoted; settings, the environment and ``--option=~/x`` come as
    they are.
    """
    if not text.startswith("~"):
        return text
    first, slash, rest = text.partition("/")
    found = home() if first == "~" else Path(os.path.expanduser(first))
    if found is None or str(found).startswith("~"):
        raise UsageError(
            f"{text}: there is no home folder for {first}", "give the whole path, or ./~ for a file"
        )
    return f"{found}{slash}{rest}"


def read_small(file: Path, limit: int, what: str, pipes: bool = False) -> bytes:
    """A small file, read whole. Raise UsageError for one that is no file, or too large to be
    ``what``; OSError.

    ``pipes``: whether it may be a pipe or a terminal, as ``<(...)`` of a shell is; else nothing
    here waits.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | (0 if pipes else os.O_NONBLOCK))
    with failures.naming(str(file)), open(fd, "rb") as stream:
        mode = os.fstat(fd).st_mode
        piped = pipes and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))
        if not (stat.S_ISREG(mode) or piped or str(file) == os.devnull):
            raise UsageError(f"{file} is not a regular file")
        data = stream.read(limit + 1) or b""  # None, of a file of the kernel's that has nothing now
    if len(data) > limit:
        raise UsageError(f"{file} is too large to be {what}")
    return data


def open_regular(file: Path) -> IO[bytes]:
    """A file to be read more than once. Raise UsageError for one that is no regular file, which
    nothing here waits for; OSError.
    """
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, "rb")
    os.close(fd)
    raise UsageError(f"{file} is not a regular file", "write what it gives to a file first")
