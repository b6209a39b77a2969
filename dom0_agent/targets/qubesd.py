# SPDX-License-Identifier: GPL-2.0-or-later
"""Restore on Qubes OS: contents go to qubesd as one stream, so that it keeps the old ones as a
revision (qvm-volume revert).

The one place where a call asks qubesd, for what nobody else can tell or do at that moment: that a
qube is halted and is not started meanwhile, or is not there at all, and to take new contents.

The Admin API takes a volume only whole: a stream that ends early is refused and leaves the volume
as it was (core-admin, ``qubes-rpc/admin.vm.volume.Import``). So nothing takes effect before the
last byte is proven.
"""

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

from common.durable import Busy, lock, make_directory, still_named
from common.override import override
from dom0_agent.config import Volume
from dom0_agent.log import WARNING, log
from dom0_agent.qubesd import asking, connect
from dom0_agent.targets.interface import Replacement
from wire.status import Code, Refused

TAG = "backup-restore-in-progress"
"""While a qube has this tag qubesd does not start it (core-admin, ``qubes/ext/backup_restore.py``),
as when qvm-backup-restore is at work.
"""
RESTORING = "restoring"
"""The folder with a file for each qube that has the tag from us, locked while it is restored.

A qube that kept the tag could not be started any more. So the file is there first, and what a
killed restore left is found by it, and taken away by the next ``sparsebak-agent monitor``.
"""
PATIENCE = 10.0
"""Seconds to wait for a command that takes tags away."""
_ZEROS = bytes(1 << 20)


def require_absent(qube: str) -> None:
    """Refused when a qube exists: a call about it must then name it as its target, which policy
    decides about by its tags.
    """
    with asking():
        if qube in connect().domains:
            raise Refused(
                Code.DENIED, f"{qube} exists, so that the call must name it as its target"
            )


class InProgress:
    """Keeps a qube from being started until ``end``; Refused when qubesd does not set the tag."""

    def __init__(self, domain: Any, state_dir: Path) -> None:
        self._domain, self._path = domain, state_dir / RESTORING / str(domain.name)
        make_directory(self._path.parent)
        self._fd = _shared(self._path)
        try:
            with asking():
                domain.tags.add(TAG)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Let the qube be started again, unless another of its volumes is still being restored."""
        if self._fd < 0:
            return
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # the other one does it
        else:
            take_away(self._domain, self._path)
        os.close(self._fd)
        self._fd = -1


def take_away(domain: Any, path: Path) -> bool:
    """Remove the tag, then its file, which is locked; whether that is done. When it fails the file
    stays, for the next time.
    """
    try:
        with asking():
            domain.tags.discard(TAG)
        path.unlink()
    except (Refused, OSError) as error:
        log(WARNING, f"{domain.name} cannot be started yet, it keeps the tag {TAG}: {error}")
        return False
    return True


def _shared(path: Path) -> int:
    """The file's lock, shared with restores of the qube's other volumes."""
    while True:
        try:
            fd = lock(path, shared=True, patience=PATIENCE)
        except Busy:
            raise Refused(Code.BUSY, f"{path.name} is being restored or cleaned up") from None
        if still_named(fd):
            return fd  # else it was removed just before we had it


def _require_halted(domain: Any) -> None:
    if not domain.is_halted():
        raise Refused(
            Code.NOT_HALTED, f"{domain.name} is running; shut it down before it is restored"
        )


class QubesImport(Replacement):
    """New contents for a volume of a halted qube; see Replacement."""

    ordered = True

    def __init__(self, volume: Volume, size: int, state_dir: Path) -> None:
        if size < 1:
            raise Refused(Code.BAD_REQUEST, f"{volume.name}: qubesd accepts no empty volume")
        with asking():
            domains = connect().domains
            if volume.qube not in domains or volume.volume not in domains[volume.qube].volumes:
                raise Refused(Code.NO_VOLUME, f"qubesd knows no volume {volume.name}")
            domain = domains[volume.qube]
            self._target = domain.volumes[volume.volume]
            if not self._target.save_on_stop:
                raise Refused(Code.NO_VOLUME, f"{volume.name} is not kept when the qube stops")
            self._in_progress = InProgress(domain, state_dir)
            try:
                _require_halted(domain)  # after which it stays so
            except BaseException:
                self._in_progress.end()
                raise
        self._name, self._size, self._at, self._last = volume.name, size, 0, b"\0"
        self._failure: BaseException | None = None
        read, self._fd = os.pipe2(os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._import, args=(read,), daemon=True)
        self._thread.start()

    def _import(self, read: int) -> None:
        try:
            with open(read, "rb", buffering=0) as stream:
                self._target.import_data_with_size(stream, self._size)
        except BaseException as error:
            self._failure = error

    @override
    def write(self, offset: int, parts: list[bytes]) -> None:
        self._pad(offset)
        for part in parts:
            self._put(memoryview(part))

    def _pad(self, until: int) -> None:
        while self._at < until:
            self._put(memoryview(_ZEROS)[: until - self._at])

    def _put(self, view: memoryview) -> None:
        """Send bytes on; the volume's last one waits for ``commit``."""
        if self._at + len(view) >= self._size:
            view, self._last = view[:-1], bytes(view[-1:])
        self._send(view)

    def _send(self, view: memoryview) -> None:
        try:
            while view:
                written = os.write(self._fd, view)
                self._at += written
                view = view[written:]
        except BrokenPipeError:
            self._end()
            raise Refused(
                Code.SOURCE_FAILED, f"{self._name}: qubesd stopped reading: {self._failure}"
            ) from None

    def _end(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._thread.join()
        self._in_progress.end()

    @override
    def commit(self) -> None:
        self._pad(self._size - 1)
        self._send(memoryview(self._last))
        self._end()
        if self._failure is not None:
            raise Refused(
                Code.SOURCE_FAILED, f"{self._name}: qubesd did not accept it: {self._failure}"
            )

    @override
    def discard(self) -> None:
        """The stream ends too early for qubesd to take it."""
        self._end()
