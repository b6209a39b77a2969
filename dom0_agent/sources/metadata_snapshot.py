# SPDX-License-Identifier: GPL-2.0-or-later
"""The metadata snapshot of one LVM thin pool: the tools that read the pool's metadata read it, for
what is in use changes under them.

The kernel keeps at most one for a pool and does not say whose it is (Linux,
Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Messages" and "Status"): it tells
only the block that its root is at. So ours is marked in a file, locked while we hold it:

  mark        written                    what a held metadata snapshot is, when the mark is found
                                         by who just took the lock
  (empty)     after release              another program's: waited for, never touched
  unsure      before reserve, release    perhaps ours, perhaps not: waited for, then released; a
                                         crash came between the message and the mark after it,
                                         or the disk cannot read the mark
  a block     after reserve              ours, if its root is that block, left over from a crash:
                                         released at once; at any other block another program's
"""

import os
import time
from pathlib import Path
from types import TracebackType

from common.durable import UNREADABLE, Busy, closing_fd, lock, make_directory
from dom0_agent.log import WARNING, log
from dom0_agent.sources import lvm, programs
from wire.status import Code, Refused

PATIENCE = 30.0
"""Seconds to wait for a metadata snapshot that somebody else holds."""
_IN_LINE = 4
"""Times as long, to wait for other calls of ours."""
_POLL = 0.5
"""Seconds between two looks at whether it is gone."""
_NONE, _UNSURE = "", "unsure"
_MARK_SIZE = 32
_HELD_ROOT, _NO_ROOT = 6, "-"
"""The word of a pool's status that tells the held root, and what stands there without one."""


class ThinDevice:
    """The device that stands for a pool itself, as device-mapper knows it."""

    def __init__(self, group: str, name: str) -> None:
        self.title = f"{group}/{name}"
        self._device = lvm.device_name(group, name)
        self.name = f"{self._device}-tpool"
        self.metadata = f"/dev/mapper/{self._device}_tmeta"
        """Path of the device that holds the pool's metadata."""

    def status(self) -> list[str]:
        """Words of the pool's status line; thin-provisioning.rst, "Status"."""
        words = programs.run("dmsetup", "status", self.name).split()
        if len(words) < 8 or words[2] != "thin-pool":
            raise Refused(
                Code.SOURCE_FAILED,
                f"pool {self.title} is not usable: unexpected status {' '.join(words)}",
            )
        return words

    def message(self, text: str) -> None:
        """Send the pool a message; thin-provisioning.rst, "Messages"."""
        programs.run("dmsetup", "message", self.name, "0", text)


class MetadataSnapshot:
    """The pool's metadata snapshot, ours inside ``with``. Refused while another has it."""

    def __init__(self, device: ThinDevice, mark: Path) -> None:
        self._device, self._mark = device, mark
        self._fd = -1

    def __enter__(self) -> None:
        make_directory(self._mark.parent)
        try:
            # A backup run asks for several volumes at once, whose calls take turns here.
            fd = lock(self._mark, patience=_IN_LINE * PATIENCE)
        except Busy:
            raise Refused(
                Code.BUSY, f"pool {self._device.title}: another call reads its metadata"
            ) from None
        try:
            self._wait_for_turn(fd)
            # Before the message, not after it: a crash in between must leave a trace of it.
            _write_mark(fd, _UNSURE)
            self._device.message("reserve_metadata_snap")
            _write_mark(fd, self._device.status()[_HELD_ROOT])
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with closing_fd(self._fd):
            _write_mark(self._fd, _UNSURE)
            self._device.message("release_metadata_snap")
            _write_mark(self._fd, _NONE)

    def _wait_for_turn(self, fd: int) -> None:
        """Until nobody holds the metadata snapshot. One of ours, left over from a crash, is
        released.
        """
        deadline = time.monotonic() + PATIENCE
        mark = _read_mark(fd)
        while (root := self._device.status()[_HELD_ROOT]) != _NO_ROOT:
            late = time.monotonic() >= deadline
            if mark == root or (mark == _UNSURE and late):
                log(
                    WARNING,
                    f"pool {self._device.title}: releasing a metadata snapshot left over from a"
                    " crash",
                )
                self._device.message("release_metadata_snap")
                return
            if late:
                raise Refused(
                    Code.BUSY,
                    f"pool {self._device.title}: another program holds the metadata snapshot; try"
                    " again when it is done, or, if none is running, release it: dmsetup message"
                    f" {self._device.name} 0 release_metadata_snap",
                )
            time.sleep(_POLL)


def _read_mark(fd: int) -> str:
    """What the file says; that nobody knows, where it cannot be read any more or says nothing
    that was written there.
    """
    try:
        found = os.pread(fd, _MARK_SIZE, 0).decode("ascii", "replace").strip()
        return found if found.isdecimal() or found == _NONE else _UNSURE
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
    os.ftruncate(fd, 0)  # what is written to a part of such a block is refused as well
    _write_mark(fd, _UNSURE)
    return _UNSURE


def _write_mark(fd: int, text: str) -> None:
    os.pwrite(fd, text.encode().ljust(_MARK_SIZE), 0)  # one write: whole or not at all
    os.fsync(fd)
