# SPDX-License-Identifier: GPL-2.0-or-later
"""What sources share whose volumes are image files in a directory: snapshots are files in
``.sparsebak`` beside them.
"""

import errno
import os
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from common.durable import closing_fd, make_directory, sync_directory
from common.existing import is_dir
from common.override import override
from dom0_agent.config import Volume
from dom0_agent.sources import Range, Source, snapshot_name, snapshot_numbers
from dom0_agent.sources.files import failed, open_regular
from wire.status import Code, Refused

STORE = ".sparsebak"
_SUFFIX = ".snap"


@contextmanager
def whole_or_absent(path: Path, text: str) -> Iterator[None]:
    """Remove the file if writing it fails, whatever the reason; an error of the storage becomes
    Refused.
    """
    try:
        yield
    except BaseException as error:
        with suppress(OSError):
            # The first error is the one to tell of; what stays is dropped later.
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise failed(text, error) from None
        raise


def remove(path: Path, text: str) -> None:
    """Remove a file of ours; nothing happens when it is gone, even where nothing may be written."""
    try:
        if os.path.lexists(path):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise failed(text, error) from None


class DirectorySource(Source):
    """A volume that is an image file; see Source for the methods."""

    _grain = 1
    """Bytes: behind data a hole counts only from the next multiple of this on."""

    def __init__(self, volume: Volume) -> None:
        self.name, self._pool = volume.name, volume.pool
        self.image = volume.pool.path / volume.vid
        self._live_image = volume.pool.path / volume.live if volume.live else self.image
        self._store = volume.pool.path / STORE / volume.identity / volume.volume

    def _path(self, number: int) -> Path:
        return self._store / (snapshot_name(number) + _SUFFIX)

    def _open_image(self) -> int:
        image = self._live_image
        try:
            if image != self.image:
                # Not there, or not any more: the qube is off, or is being shut down just now, by
                # which this file takes the other's place.
                with suppress(FileNotFoundError):
                    return open_regular(image, self.name)
                image = self.image
            return open_regular(image, self.name)
        except OSError as error:
            raise failed(f"{self.name}: cannot open {image}", error) from None

    @override
    def together(self) -> AbstractContextManager[None]:
        """Image files have nothing to share."""
        return nullcontext()

    @override
    def require_room(self) -> None:
        """What the file system does not tell is not held against it; that nothing can
        be written is.
        """
        try:
            found = os.statvfs(self._pool.path)
        except OSError as error:
            raise failed(f"{self.name}: cannot ask {self._pool.path} for its room", error) from None
        if found.f_flag & os.ST_RDONLY:
            # As the kernel makes it after an error of its disk: reported, not overlooked.
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: the pool is read-only")
        used = found.f_blocks - found.f_bfree
        total = used + found.f_bavail  # as df(1) counts
        known = found.f_blocks > 0 and used >= 0 and total > 0  # some tell numbers that none has
        if known and used * 100 >= self._pool.data_limit * total:
            raise Refused(
                Code.NO_SPACE,
                f"pool {self._pool.path} is {100 * used // max(total, 1)} % full; make room in it, "
                "or allow more with data_limit in agent.toml",
            )

    @override
    def live_size(self) -> int:
        with closing_fd(self._open_image()) as fd:
            return os.fstat(fd).st_size

    @override
    def snapshots(self) -> set[int]:
        try:
            if not is_dir(self._store):
                return set()
            with os.scandir(self._store) as found:
                names = [one.name for one in found if not one.is_dir(follow_symlinks=False)]
        except OSError as error:
            raise failed(f"{self.name}: cannot list its snapshots", error) from None
        return snapshot_numbers(
            name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)
        )

    @override
    def snapshot(self, number: int) -> None:
        path, text = self._path(number), f"{self.name}: cannot take a snapshot"
        with closing_fd(self._open_image()) as image, whole_or_absent(path, text):
            make_directory(self._store)
            with closing_fd(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            ) as copy:
                self._copy(image, copy)
                os.fsync(copy)
            sync_directory(self._store)

    @override
    def unchanged(self, number: int) -> bool:
        return False

    @abstractmethod
    def _copy(self, image: int, copy: int) -> None:
        """Make an empty file what an open image is, or a clone of it."""

    @override
    def drop(self, number: int) -> None:
        remove(self._path(number), f"{self.name}: cannot remove a snapshot")

    @property
    def unfinished(self) -> Path:
        """Where a restore has its new contents for the moment before they take the image's
        place.
        """
        return self.image.with_name(self.image.name + ".sparsebak-restore")

    @override
    def drop_unfinished(self) -> None:
        remove(self.unfinished, f"{self.name}: cannot remove what a restore left")

    @override
    def size(self, number: int) -> int:
        try:
            return os.stat(self._path(number), follow_symlinks=False).st_size
        except OSError as error:
            raise failed(f"{self.name}: snapshot {number}", error) from None

    @override
    def open(self, number: int, direct: bool = False) -> int:
        # Not to wait for whoever writes to a FIFO that somebody put there.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self._path(number), flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if direct and error.errno == errno.EINVAL:
                return self.open(number)
            raise failed(f"{self.name}: snapshot {number}", error) from None

    @override
    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """Asked of the file system by SEEK_DATA and SEEK_HOLE; what it cannot tell
        counts as data.
        """
        while start < end:
            try:
                data = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                    return
                raise failed(f"{self.name}: cannot tell its holes", error) from None
            if data >= end:
                return
            whole = (data // self._grain + 1) * self._grain
            hole = min(max(os.lseek(fd, data, os.SEEK_HOLE), whole), end)
            yield data, hole
            start = hole
