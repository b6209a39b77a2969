# SPDX-License-Identifier: GPL-2.0-or-later
"""Copying files out of a session into a folder, and nowhere else.

Each folder is made new and held open, and what is in it is made relative to that, as new: no name
or link that the image brings, or that somebody else puts there meanwhile, leads out of it.
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.files.answers import FileSystemError
from backup_vm.files.session import DEEPEST, Found, SessionFiles, shown

SPECIAL_MODE = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX
"""Bits of a mode that let a file be run as its owner, or keep others from a folder."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
PLAIN = ("user.", "system.posix_acl_")
"""Attributes that give nobody more than the file's mode does."""
_OF_ONE_FILE = frozenset(
    {
        errno.EEXIST,  # where upper and lower case are the same
        errno.EFBIG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.ENAMETOOLONG,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
    }
)
"""Why the target's file system takes one file or property not, and may take the next. Any other
error is of the target as a whole.
"""


@dataclass
class Copied:
    """What was done."""

    files: int = 0
    size: int = 0
    troubles: int = 0
    left_out: int = 0
    """Devices and the like, and rights that were not given."""
    damaged: bool = False
    """Whether the archive is damaged where some of it is."""
    limited: set[str] = field(default_factory=set)
    """What of files could not be kept here."""


class Copier:
    """Copies what is in one session. A trouble with a single file is reported, and does not stop
    it.
    """

    def __init__(
        self,
        files: SessionFiles,
        tell: Callable[[str], None],
        privileged: bool,
        ticks: Callable[[int], None],
    ) -> None:
        self._files, self._tell, self._privileged, self._ticks = files, tell, privileged, ticks
        self._root = os.geteuid() == 0
        self._names: dict[int, tuple[bytes, ...]] = {}
        """Where files with several names are, below the target's folder."""
        self.done = Copied()

    def copy(self, source: Found, target: Path) -> Copied:
        """Copy a file, or a folder with all that is in it, to ``target``, which must not exist.

        Raises SparsebakError where nothing can be written.
        """
        try:
            base = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SparsebakError(f"{target.parent}: {error.strerror}") from None
        self._base = base
        name = os.fsencode(target.name)
        beside = name[:200] + b".part-" + os.urandom(4).hex().encode()
        try:
            if _is_there(base, name):
                raise SparsebakError(f"{target} exists", "choose another name")
            try:
                self._tree(base, beside, source)
                if _is_there(base, beside):
                    _rename(base, beside, name)
            except BaseException as error:
                _remove_all(base, beside)
                if not isinstance(error, OSError):
                    raise
                reason = error.strerror or str(error)
                raise SparsebakError(f"cannot write {target}: {reason}") from None
        finally:
            os.close(base)
        self.done.damaged = self.done.damaged or self._files.damaged
        return self.done

    def _tree(self, base: int, name: bytes, source: Found) -> None:
        if not stat.S_ISDIR(source.stat.mode):
            self._one(base, (name,), source)
            return
        open_folders = [(self._folder(base, name), source)]
        trail = [name]
        left_out = DEEPEST + 1  # how deep what is in a folder is that could not be made
        try:
            for depth, found in self._files.walk(source, self._trouble):
                while len(open_folders) > depth:
                    self._end_folder(*open_folders.pop())
                    trail.pop()
                if depth >= left_out:
                    continue
                left_out = DEEPEST + 1
                here = open_folders[-1][0]
                last = found.path.rpartition(b"/")[2]
                if stat.S_ISDIR(found.stat.mode):
                    try:
                        folder = self._folder(here, last)
                    except OSError as error:
                        self._refused(found, error)
                        left_out = depth + 1
                        continue
                    open_folders.append((folder, found))
                    trail.append(last)
                    self.done.files += 1
                else:
                    self._one(here, (*trail, last), found)
        finally:
            while open_folders:
                self._end_folder(*open_folders.pop())

    def _folder(self, above: int, name: bytes) -> int:
        os.mkdir(name, 0o700, dir_fd=above)
        return os.open(name, _FOLDER, dir_fd=above)

    def _end_folder(self, folder: int, found: Found) -> None:
        """Rights and times, when nothing more is put into it."""
        try:
            self._attributes(folder, found)
        except (DamagedError, FileSystemError, OSError) as error:
            self.done.damaged = self.done.damaged or isinstance(error, DamagedError)
            self._trouble(found.path, _reason(error))
        finally:
            os.close(folder)

    def _one(self, folder: int, names: tuple[bytes, ...], found: Found) -> None:
        name = names[-1]
        try:
            if self._linked(folder, names, found) or self._made(folder, name, found):
                self.done.files += 1
                if found.stat.links > 1:
                    self._names.setdefault(found.node, names)
        except (DamagedError, FileSystemError) as error:
            self.done.damaged = self.done.damaged or isinstance(error, DamagedError)
            self._trouble(found.path, str(error))
        except OSError as error:
            self._refused(found, error)

    def _refused(self, found: Found, error: OSError) -> None:
        """One file cannot be made: it is reported, unless no other can."""
        if error.errno not in _OF_ONE_FILE:
            raise error
        self._trouble(found.path, f"cannot be made here: {_reason(error)}")

    def _set(self, what: str, act: Callable[[], None]) -> bool:
        """Whether something of a file could be set, for which there may be no place here."""
        try:
            act()
        except OverflowError:
            pass
        except OSError as error:
            if error.errno not in _OF_ONE_FILE:
                raise
        else:
            return True
        self.done.limited.add(what)
        return False

    def _linked(self, folder: int, names: tuple[bytes, ...], found: Found) -> bool:
        """Whether it is another name of a file that is there already."""
        first = self._names.get(found.node) if found.stat.links > 1 else None
        if first is None:
            return False
        there = os.dup(self._base)
        try:
            for part in first[:-1]:
                below = os.open(part, _FOLDER, dir_fd=there)
                os.close(there)
                there = below
            os.link(
                first[-1], names[-1], src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False
            )
        except OSError:
            return False  # a file of its own then, as where no links can be made
        finally:
            os.close(there)
        return True

    def _made(self, folder: int, name: bytes, found: Found) -> bool:
        mode = found.stat.mode
        if stat.S_ISREG(mode):
            self._regular(folder, name, found)
        elif stat.S_ISLNK(mode):
            os.symlink(self._files.link(found.node), name, dir_fd=folder)
            self._owned(folder, name, found)
            self._timed(folder, name, found)
        elif self._privileged and stat.S_IFMT(mode) in (
            stat.S_IFIFO,
            stat.S_IFCHR,
            stat.S_IFBLK,
            stat.S_IFSOCK,
        ):
            device = os.makedev(found.stat.major, found.stat.minor)
            os.mknod(name, stat.S_IFMT(mode) | 0o600, device, dir_fd=folder)
            if self._owned(folder, name, found):
                self._set("modes", lambda: os.chmod(name, stat.S_IMODE(mode), dir_fd=folder))
            self._timed(folder, name, found)
        else:
            self.done.left_out += 1
            return False
        return True

    def _owned(self, folder: int, name: bytes, found: Found) -> bool:
        """Give what is no file or folder its owner; whether it has that or needs none."""
        uid, gid = found.stat.uid, found.stat.gid
        return not self._root or self._set(
            "owners",
            lambda: os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False),
        )

    def _timed(self, folder: int, name: bytes, found: Found) -> None:
        times = (found.stat.atime, found.stat.mtime)
        self._set("times", lambda: os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False))

    def _regular(self, folder: int, name: bytes, found: Found) -> None:
        out = os.open(name, _NEW, 0o600, dir_fd=folder)
        try:
            os.ftruncate(out, found.stat.size)
            for offset, data in self._files.contents(found):
                done = 0
                while done < len(data):
                    done += os.pwrite(out, memoryview(data)[done:], offset + done)
                self.done.size += len(data)
                self._ticks(len(data))
            self._attributes(out, found)
        except BaseException:  # no half of a file stays
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(out)

    def _attributes(self, out: int, found: Found) -> None:
        """Owner, extended attributes, mode and times, in this order: each of them changes those
        after it.
        """
        mode, uid, gid = stat.S_IMODE(found.stat.mode), found.stat.uid, found.stat.gid
        if self._root and not self._set("owners", lambda: os.fchown(out, uid, gid)):
            mode &= ~SPECIAL_MODE  # what was to run as its owner is not to run as root
        for name, value in self._files.attributes(found.node).items():
            if not self._privileged and not name.startswith(PLAIN):
                self.done.left_out += 1
                continue
            try:
                os.setxattr(out, name.encode("utf-8", "surrogateescape"), value)
            except OSError:
                self.done.limited.add("extended attributes")
        if not self._privileged and mode & SPECIAL_MODE:
            self.done.left_out += 1
            mode &= ~SPECIAL_MODE
        self._set("modes", lambda: os.fchmod(out, mode))
        times = (found.stat.atime, found.stat.mtime)
        self._set("times", lambda: os.utime(out, ns=times))

    def _trouble(self, path: bytes, text: str) -> None:
        self.done.troubles += 1
        self._tell(f"{shown(path)}: {text}")


def _is_there(folder: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _rename(folder: int, old: bytes, new: bytes) -> None:
    """Give what was made its name, which nothing has; raises OSError if something has it now."""
    at = {"src_dir_fd": folder, "dst_dir_fd": folder}
    try:
        os.link(old, new, follow_symlinks=False, **at)  # which replaces nothing, as a rename would
    except FileExistsError:
        raise
    except OSError:  # a folder, which replaces an empty one at most, or no links here
        os.rename(old, new, **at)
    else:
        os.unlink(old, dir_fd=folder)


def _remove_all(folder: int, name: bytes) -> None:
    """Remove what was begun, without following links."""
    import shutil

    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        _open_up(folder, name)
        shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
    except OSError:
        pass


def _open_up(folder: int, name: bytes) -> None:
    """Let what is in folders be removed, which have the modes of the image already."""
    path_only = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    for _, below, _, here in os.fwalk(os.fsdecode(name), dir_fd=folder):
        for one in below:
            with suppress(OSError):  # a link to a folder
                handle = os.open(one, path_only, dir_fd=here)
                try:
                    os.chmod(f"/proc/self/fd/{handle}", 0o700)
                finally:
                    os.close(handle)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
