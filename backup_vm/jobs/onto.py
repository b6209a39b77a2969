# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembling a session onto an image that is there: what differs is written to a clone of it, which
takes its place.

What is there is read and compared by the ids of its chunks, so that nothing need be known of it.
"""

import errno
import fcntl
import os
import signal
import stat
from contextlib import suppress
from pathlib import Path

from backup_vm import failures
from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image
from backup_vm.errors import SparsebakError
from backup_vm.jobs.reading import THREADS, Proven, open_image, read_chunks
from backup_vm.terminal import output
from backup_vm.terminal.progress import Progress
from backup_vm.unsealing import AnyKeys
from common.clone import clone
from common.differing import differing, runs
from common.durable import closing_fd
from common.image_writer import WRITE_BYTES, ImageWriter
from wire.chunks import ZERO_ID, ChunkIds
from wire.records import Record
from wire.wanted import Wanted

_BLOCK = 4096


def assemble_onto(
    archive: Archive, image: Image, keys: AnyKeys, name: str, target: Path, progress: Progress
) -> tuple[Record, int]:
    """Make an image file what a session is; the record, and how many chunks were written or made
    zeros. As with ``assemble`` a failure leaves the image as it was.

    On a file system that cannot clone all is written.
    """
    require_unused(target)
    proven = open_image(archive, image, keys, name)
    with output.replacing(target) as beside:
        cloned = _clone(target, beside)
        try:
            file = ImageWriter(beside, None if cloned else proven.record.size)
        except OSError as error:
            raise failures.cannot_write(beside, error) from None
        try:
            wanted = None
            if cloned:
                os.ftruncate(file.fd, proven.record.size)
                wanted = _differing(image, proven, file)
                progress.advance((image.chunks - len(wanted)) * proven.record.chunk_size)
            read_chunks(archive, image, proven, progress, file.write, only=wanted)
            _keep_owner(target, file.fd)
            file.sync()
        finally:
            file.close()
        require_unused(target)
    return proven.record, image.chunks if wanted is None else len(wanted)


def require_unused(target: Path) -> None:
    """Refuse an image that anybody has open, a loop device or a virtual machine, say: they would
    keep the file that was there, and what they write to it would be lost.

    By a write lease (fcntl(2)), which is had only of a file that nobody has open; where there are
    none to be had, nothing is known.
    """
    try:
        there = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SparsebakError(
            f"cannot read {target}: {failures.text(error)}", failures.hint(error)
        ) from None
    with closing_fd(there):
        if os.fstat(there).st_nlink > 1:
            raise SparsebakError(
                f"{target} has other names (hard links), and these would keep what was there",
                "remove them first, or write another: -o",
            )
        # Who opens it just now has this sent, not SIGIO, which kills.
        fcntl.fcntl(there, fcntl.F_SETSIG, signal.SIGURG)
        try:
            fcntl.fcntl(there, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EBUSY):
                raise SparsebakError(
                    f"{target} is in use", "close what has it open first, or write another: -o"
                ) from None
            return
        fcntl.fcntl(there, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _keep_owner(target: Path, new: int) -> None:
    """Give the new file the owner and mode of the one whose place it takes; where that may not be
    done, it is for its maker alone.
    """
    found = os.stat(target)
    with suppress(PermissionError):
        os.fchown(new, found.st_uid, found.st_gid)
        os.fchmod(new, stat.S_IMODE(found.st_mode))


def _clone(target: Path, beside: Path) -> bool:
    try:
        with (
            closing_fd(os.open(target, os.O_RDONLY | os.O_CLOEXEC)) as there,
            closing_fd(os.open(beside, os.O_RDWR | os.O_CLOEXEC)) as here,
        ):
            clone(there, here)
    except OSError:  # another kind of file system, say
        return False
    return True


def _differing(image: Image, proven: Proven, file: ImageWriter) -> Wanted:
    """The chunks that are not what the session has there; what it has as zeros is made so."""
    size, wanted = proven.record.chunk_size, Wanted(image.chunks)
    chunk_ids = ChunkIds(proven.keys, size)
    for first, ids in image.windows():
        proven.check(first, ids)
        zeros = [number for number, one in enumerate(ids, first) if one == ZERO_ID]
        for begin, end in runs(zeros):
            _clear(file, begin * size, min(end * size, proven.record.size))
            wanted.add(begin, end)
        rest = [(number, one) for number, one in enumerate(ids, first) if one != ZERO_ID]
        for number in differing(file.read, chunk_ids.of, size, rest, THREADS):
            wanted.add(number, number + 1)
    return wanted


def _clear(file: ImageWriter, start: int, end: int) -> None:
    from backup_vm.archive.storage.libc import punch

    if not punch(file.fd, [(start, -(-end // _BLOCK) * _BLOCK - start)]):
        for at in range(start, end, WRITE_BYTES):
            file.write(at, [bytes(min(WRITE_BYTES, end - at))])
