# SPDX-License-Identifier: GPL-2.0-or-later
"""What a restored archive of dom0's configuration has: ``config_tar`` has written it, and it came
back by a Restore, proven.
"""

import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from common.durable import UNREADABLE
from dom0_agent.admin.settings.config_tar import LEFT_OUT
from dom0_agent.admin.settings.machine import FOLDER
from dom0_agent.targets.dropbox import unreadable
from wire.status import Code, Refused

_MACHINE_NAME = re.compile(
    r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?", re.ASCII
)


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        raise Refused(Code.BAD_REQUEST, f"{path} is not what sparsebak writes: {error}") from None
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise unreadable(path, error) from None


def files(path: Path) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """Each regular file of a restored archive: absolute name, what tar says of it, contents. One
    pass, one file at a time.
    """
    headers = dict[str, Mapping[str, str]]()
    with _opened(path) as tar:
        for member in tar:
            # A file's attributes are with the first of its names: without its ACL the mode says
            # more than is allowed.
            if member.islnk():
                member.pax_headers = headers.get(member.linkname, {})
            headers[member.name] = member.pax_headers
            ours = member.name == LEFT_OUT or member.name.startswith(f"{FOLDER}/")
            if not ours and (contents := _contents(tar, member)) is not None:
                yield f"/{member.name}", member, contents


def machine(path: Path) -> Iterator[tuple[str, bytes]]:
    """What a restored archive says of the machine: names below FOLDER, contents. Refused for a name
    that leads elsewhere.
    """
    with _opened(path) as tar:
        for member in tar:
            if not member.name.startswith(f"{FOLDER}/") or not member.isreg():
                continue
            name = member.name.removeprefix(f"{FOLDER}/")
            if not _MACHINE_NAME.fullmatch(name):
                raise Refused(Code.BAD_REQUEST, f"{path}: {name!r} is no name that sparsebak gives")
            yield name, _contents(tar, member) or b""


def _contents(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | None:
    """A regular file's bytes, under whichever of its names; None of anything else."""
    if not member.isreg() and not member.islnk():
        return None
    try:
        contents = tar.extractfile(member)
    except KeyError:  # a link to what is not there
        raise tarfile.ReadError(f"{member.name} refers to what is not there") from None
    return contents.read() if contents is not None else None


def left_out(path: Path) -> list[str]:
    """What a restored archive says was left out of it."""
    with _opened(path) as tar:
        found = next((member for member in tar if member.name == LEFT_OUT), None)
        contents = tar.extractfile(found) if found is not None else None
        return contents.read().decode("utf-8", "replace").splitlines() if contents else []
