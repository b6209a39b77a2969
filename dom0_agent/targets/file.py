# SPDX-License-Identifier: GPL-2.0-or-later
"""Images in folders: new contents in a file beside the image, which takes its place at the end.

On Btrfs and XFS that file can begin as a clone of the image, so that what does not differ is
neither written nor stored a second time. ``FS_IOC_UNRESVSP64`` is from Linux,
``include/uapi/linux/falloc.h``; it makes a hole, as fallocate(2) does, which Python does not offer.
"""

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from common.clone import clone
from common.durable import closing_fd, sync_directory
from common.image_writer import WRITE_BYTES, ImageWriter
from common.override import override
from dom0_agent.bitmap import Bitmap
from dom0_agent.kernel import FileSpace
from dom0_agent.log import WARNING, log
from dom0_agent.sources.directory import DirectorySource
from dom0_agent.sources.files import CHECK_ROOM, failed, open_regular
from dom0_agent.sources.flags import NOT_HERE
from dom0_agent.targets import attributes
from dom0_agent.targets.interface import Replacement
from wire.status import Code, Refused

_UNRESVSP = 0x4030582B
_BLOCK = 4096
"""Bytes that a hole is a multiple of, on the file systems that clone."""


class FileReplacement(Replacement):
    """New contents written to a file without a name, which then takes the image's place; see
    Replacement.

    A crash leaves nothing of it, but between getting the name ``beside`` and the image's.
    """

    ordered = False

    def __init__(self, source: DirectorySource, size: int, base: int | None = None) -> None:
        self._image, self._require_room = source.image, source.require_room
        self._require_room()  # a small one is not looked after again
        self._beside = beside = source.unfinished
        self._unchecked = 0
        self._old = self._new = -1
        try:
            self._look()
            beside.unlink(missing_ok=True)
            self._new = self._nameless()
            if self._old >= 0:
                attributes.keep(self._old, self._new)
                if base is not None:
                    self.changed = self._clone(source, base, size)
            if self.changed is None:
                os.ftruncate(self._new, 0)
                os.ftruncate(self._new, size)
            self._file = ImageWriter(Path(f"/proc/self/fd/{self._new}"), None)
        except BaseException as error:
            if self._new >= 0:
                self._remove_name()
            self._close()
            if isinstance(error, OSError):
                raise failed(f"cannot write beside {self._image}", error) from None
            raise

    def _look(self) -> None:
        """Open what is there now, if anything, and make sure that it may be replaced."""
        with suppress(FileNotFoundError):
            self._old = open_regular(self._image, "restore")
            attributes.require_replaceable(str(self._image), self._old)

    def _clone(self, source: DirectorySource, base: int, size: int) -> Bitmap | None:
        """Begin as the image, if it has that size; what that may differ in from a snapshot, None
        where that cannot be told.
        """
        from dom0_agent.sources.reflink import ReflinkSource

        if not isinstance(source, ReflinkSource):
            return None
        try:
            if base not in source.snapshots() or os.fstat(self._old).st_size != size:
                return None
            try:
                clone(self._old, self._new)
            except OSError:  # with its snapshots it is on a file system that clones, it seems not
                return None
            # The clone is compared, not the image, which somebody may open meanwhile.
            os.fsync(self._new)
            return source.differing(base, self._new)
        except Refused as error:  # a snapshot that cannot be read is no reason not to restore
            log(WARNING, f"{source.name}: cannot tell what changed, so all is restored: {error}")
            return None

    def _nameless(self) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(self._image.parent, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
        # A file system that has no files without a name.
        return os.open(self._beside, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    @override
    def write(self, offset: int, parts: list[bytes]) -> None:
        """Looks at the pool's room every now and then: a full one would harm every
        qube that writes.
        """
        self._unchecked += sum(map(len, parts))
        if self._unchecked >= CHECK_ROOM:
            self._unchecked = 0
            self._require_room()
        try:
            self._file.write(offset, parts)
        except OSError as error:
            raise failed(f"cannot write beside {self._image}", error) from None

    @override
    def read(self, offset: int, length: int) -> memoryview:
        return self._file.read(offset, length)

    @override
    def clear(self, start: int, end: int) -> None:
        whole = -(-end // _BLOCK) * _BLOCK  # the last block of the file, too
        try:
            fcntl.ioctl(self._new, _UNRESVSP, _hole(start, whole - start))
        except OSError as error:
            if error.errno not in NOT_HERE:
                raise failed(f"cannot write beside {self._image}", error) from None
            for at in range(start, end, WRITE_BYTES):
                self.write(at, [bytes(min(WRITE_BYTES, end - at))])

    @override
    def commit(self) -> None:
        """Refused when somebody opened the image meanwhile, or another took its
        place.
        """
        try:
            self._file.sync()
            self._require_the_same()
            if os.fstat(self._new).st_nlink == 0:
                self._give_name()
            os.replace(self._beside, self._image)
            sync_directory(self._image.parent)
        except BaseException as error:
            self._remove_name()
            if isinstance(error, OSError):
                raise failed(f"cannot replace {self._image}", error) from None
            raise
        finally:
            self._file.close()
            self._close()

    def _give_name(self) -> None:
        # Python calls linkat(2), which follows the link, only if it is given a folder.
        with closing_fd(os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)) as fds:
            os.link(str(self._new), self._beside, src_dir_fd=fds, follow_symlinks=True)

    def _require_the_same(self) -> None:
        if self._old < 0:
            if os.path.lexists(self._image):
                raise Refused(Code.BUSY, f"{self._image} was made meanwhile")
            return
        here, then = os.stat(self._image, follow_symlinks=False), os.fstat(self._old)
        if (here.st_dev, here.st_ino) != (then.st_dev, then.st_ino):
            raise Refused(Code.BUSY, f"another file took the place of {self._image} meanwhile")
        attributes.require_replaceable(str(self._image), self._old)

    @override
    def discard(self) -> None:
        self._file.close()
        self._close()
        self._remove_name()

    def _remove_name(self) -> None:
        with suppress(OSError):
            self._beside.unlink(missing_ok=True)

    def _close(self) -> None:
        for fd in (self._old, self._new):
            if fd >= 0:
                os.close(fd)
        self._old = self._new = -1


def _hole(start: int, span: int) -> bytes:
    return FileSpace.row().pack(0, 0, bytes(4), start, span, bytes(24))
