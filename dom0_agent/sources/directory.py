"""What sources share whose volumes are image files in a directory: snapshots are files in ``.sparsebak`` beside them."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from dom0_agent.config import Volume
from dom0_agent.sources import Range, snapshot_name, snapshot_number
from wire.durable import closing_fd, make_directory, sync_directory
from wire.image import ImageWriter
from wire.status import Code, Refused

STORE = ".sparsebak"
_SUFFIX = ".snap"


def failed(text: str, error: OSError) -> Refused:
    """The refusal for an error of the storage."""
    code = Code.NO_SPACE if error.errno in (errno.ENOSPC, errno.EDQUOT) else Code.SOURCE_FAILED
    return Refused(code, f"{text}: {error.strerror}")


@contextmanager
def whole_or_absent(path: Path, text: str) -> Iterator[None]:
    """Remove the file if writing it fails, whatever the reason; an error of the storage becomes Refused."""
    try:
        yield
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise failed(text, error) from None
        raise


class DirectorySource:
    """A volume that is an image file; see Source for the methods."""

    def __init__(self, volume: Volume) -> None:
        self.name = volume.name
        self.image = volume.pool.path / volume.vid
        self._live_image = volume.pool.path / volume.live if volume.live else self.image
        self._store = volume.pool.path / STORE / volume.qube / volume.volume
        self._beside = self.image.with_name(self.image.name + ".sparsebak-restore")

    def _path(self, number: int) -> Path:
        return self._store / (snapshot_name(number) + _SUFFIX)

    def _open_image(self) -> int:
        image = self._live_image if self._live_image.exists() else self.image
        try:
            fd = os.open(image, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise failed(f"{self.name}: cannot open {image}", error) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(Code.SOURCE_FAILED, f"{self.name}: {image} is not a regular file")
        return fd

    def together(self) -> AbstractContextManager[None]:
        """See Source. Image files have nothing to share."""
        return nullcontext()

    def require_room(self) -> None:
        """See Source. A snapshot that does not fit fails by itself and leaves nothing."""

    def live_size(self) -> int:
        """See Source."""
        with closing_fd(self._open_image()) as fd:
            return os.fstat(fd).st_size

    def snapshots(self) -> set[int]:
        """See Source."""
        if not self._store.is_dir():
            return set()
        names = (path.name for path in self._store.iterdir() if path.name.endswith(_SUFFIX))
        numbers = (snapshot_number(name.removesuffix(_SUFFIX)) for name in names)
        return {number for number in numbers if number is not None}

    def snapshot(self, number: int) -> None:
        """See Source."""
        path = self._path(number)
        with (
            closing_fd(self._open_image()) as image,
            whole_or_absent(path, f"{self.name}: cannot take a snapshot"),
        ):
            make_directory(self._store)
            with closing_fd(
                os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            ) as copy:
                self._copy(image, copy)
                os.fsync(copy)
            sync_directory(self._store)

    def unchanged(self, number: int) -> bool:
        """See Source."""
        return False

    def _copy(self, image: int, copy: int) -> None:
        raise NotImplementedError

    def drop(self, number: int) -> None:
        """See Source."""
        self._path(number).unlink(missing_ok=True)

    def size(self, number: int) -> int:
        """See Source."""
        return os.stat(self._path(number)).st_size

    def open(self, number: int, direct: bool = False) -> int:
        """See Source."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(self._path(number), flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if direct and error.errno == errno.EINVAL:
                return self.open(number)
            raise failed(f"{self.name}: snapshot {number}", error) from None

    def data_ranges(self, fd: int, start: int, end: int) -> Iterator[Range]:
        """See Source. Asked of the file system by SEEK_DATA and SEEK_HOLE; what it cannot tell counts as data."""
        while start < end:
            try:
                data = os.lseek(fd, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end of the file
                    return
                raise
            if data >= end:
                return
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            yield data, hole
            start = hole

    def replace(self, size: int) -> "FileReplacement":
        """See Source."""
        return FileReplacement(self.image, self._beside, size)

    def clean(self) -> None:
        """See Source."""
        self._beside.unlink(missing_ok=True)

    def held(self) -> int:
        """See Source."""
        return sum(os.stat(self._path(number)).st_blocks * 512 for number in self.snapshots())


class FileReplacement:
    """New contents written to a file beside the image, then renamed over it; see Replacement."""

    ordered = False

    def __init__(self, image: Path, beside: Path, size: int) -> None:
        self._image, self._beside = image, beside
        try:
            beside.unlink(missing_ok=True)
            self._file = ImageWriter(beside, size)
        except OSError as error:
            raise failed(f"cannot write beside {image}", error) from None

    def write(self, offset: int, parts: list[bytes]) -> None:
        """See Replacement."""
        try:
            self._file.write(offset, parts)
        except OSError as error:
            raise failed(f"cannot write beside {self._image}", error) from None

    def commit(self) -> None:
        """See Replacement. The new file gets the old one's owner and mode."""
        try:
            try:
                old = os.stat(self._image)
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(self._file.fd, old.st_uid, old.st_gid)
                os.fchmod(self._file.fd, stat.S_IMODE(old.st_mode))
            except FileNotFoundError:
                pass
            self._file.sync()
            os.replace(self._beside, self._image)
            sync_directory(self._image.parent)
        except OSError as error:
            raise failed(f"cannot replace {self._image}", error) from None
        finally:
            self._file.close()

    def discard(self) -> None:
        """See Replacement."""
        self._file.close()
        self._beside.unlink(missing_ok=True)
