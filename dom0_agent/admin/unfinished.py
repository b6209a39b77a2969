# SPDX-License-Identifier: GPL-2.0-or-later
"""Disposables that ``open`` has made and does not show yet: whatever ends it, a killed process too,
none stays.

A file for each, below the state directory, is locked by the process that makes it. One that nobody
locks is of a process that died, and the next ``monitor`` or ``open`` removes its disposable. After
a crash of dom0 Qubes OS has done so at boot (core-admin, ``cleanup-dispvms``), and another
disposable may have the name: so the file has the UUID.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.durable import (
    UNREADABLE,
    Busy,
    closing_fd,
    lock,
    lock_fd,
    make_directory,
    pwrite_all,
    still_named,
)
from common.existing import children
from dom0_agent.admin.tags import READER_TAG
from dom0_agent.log import WARNING, log
from dom0_agent.qubesd import asking, connect
from wire.status import Code, Refused

OPENING = "opening"
"""The folder of these files, each named as the disposable is."""
_PATIENCE = 5.0
"""Seconds to wait for a removal of another disposable of the same name."""
_UUID = 36
"""Characters of a UUID."""


@contextmanager
def making(state_dir: Path, app: Any, name: str) -> Iterator[None]:
    """Remove the disposable, which was just made, when what is done inside fails or is killed."""
    path, fd = state_dir / OPENING / name, -1
    try:
        make_directory(path.parent)
        fd = _new(path)
        with asking():
            app.domains.clear_cache()
            pwrite_all(fd, str(app.domains[name].uuid).encode("ascii", "replace"), 0)
        yield
    except BaseException:
        if remove(app, name):
            path.unlink(missing_ok=True)
        raise
    else:
        path.unlink(missing_ok=True)
    finally:
        if fd >= 0:
            os.close(fd)


def _new(path: Path) -> int:
    """The file's lock; whoever looks for left ones may have had it for a moment, and removed it.
    Raises Refused where that takes longer.
    """
    while True:
        try:
            fd = lock(path, patience=_PATIENCE)
        except Busy:
            text = f"{path.name}, which has the name of one that 'open' did not finish: try again"
            raise Refused(Code.BUSY, text) from None
        if still_named(fd):
            os.ftruncate(fd, 0)
            return fd


def sweep(state_dir: Path) -> list[str]:
    """Remove the disposables of those that died while they made one: their names. What qubesd
    refuses is logged and tried again the next time.
    """
    removed = []
    for path, fd in abandoned(state_dir / OPENING):
        try:
            with asking():
                app = connect()
                there = _is_the_one(app, path.name, _uuid(fd))
        except Refused as refused:
            log(WARNING, f"{path.name}, which 'open' did not finish: {refused}")
            continue
        if there and not remove(app, path.name):
            continue
        path.unlink()
        if there:
            removed.append(path.name)
    return removed


def abandoned(folder: Path) -> Iterator[tuple[Path, int]]:
    """The files of a folder whose processes have died, each open and locked meanwhile. What is no
    such file, or cannot be opened, keeps nobody from the others; the log says so.
    """
    for path in children(folder):
        try:
            fd = lock_fd(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
        except (Busy, FileNotFoundError):  # it continues, or has just ended
            continue
        except OSError as error:
            log(WARNING, f"{path} cannot be opened: {error.strerror}")
            continue
        with closing_fd(fd):
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_nlink:
                yield path, fd


def _uuid(fd: int) -> bytes:
    """What is in a file; nothing where nothing could be written, or can be read any more."""
    try:
        return os.pread(fd, _UUID, 0)
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        return b""


def _is_the_one(app: Any, name: str, uuid: bytes) -> bool:
    """Whether the disposable is still there: by its UUID; where that could not be written any more,
    or be read, by the tag that it got next.
    """
    if name not in app.domains:
        return False
    domain = app.domains[name]
    if str(domain.klass) != "DispVM":
        return False
    return str(domain.uuid).encode() == uuid if uuid else READER_TAG in domain.tags


def remove(app: Any, name: str) -> bool:
    """Let a disposable that shows nothing go, and with it its tag; whether it is gone."""
    domains = app.domains
    try:
        with asking():
            domains.clear_cache()
            if name not in domains:  # qubesd removes one that does not start
                return True
            with suppress(Refused), asking():
                domains[name].kill()  # and one that has ended
                return True
            domains.clear_cache()
            if name in domains:  # but not one that never ran
                del domains[name]
    except Refused as refused:
        log(WARNING, f"{name} shows nothing and stays for now: {refused}")
        return False
    return True
