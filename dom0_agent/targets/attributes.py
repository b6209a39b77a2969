# SPDX-License-Identifier: GPL-2.0-or-later
"""Attributes of image files beside their bytes: what a restored image keeps of the one before it,
and which one must not be replaced.

Numbers: Linux, ``include/uapi/linux/fs.h`` (FS_IOC_FSGETXATTR).
"""

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

from dom0_agent.kernel import FileAttributes
from dom0_agent.log import WARNING, log
from dom0_agent.sources.flags import APPEND, COPYING, IMMUTABLE, NOT_HERE, change_flags, flags
from wire.status import Code, Refused

_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820
_KEPT = COPYING | 0x8 | 0x40 | 0x80
"""Kept by a restore: no copy on write; compressed, synchronous, not dumped, no access times, not
compressed.
"""
_OF_CONTENTS = frozenset({"security.ima", "security.evm"})
"""Attributes that are digests of a file: wrong for another's contents."""
_PROJECT = FileAttributes.row()


def require_replaceable(name: str, fd: int) -> None:
    """Refused when another file in this one's place would not be the same to everybody, or somebody
    has it open.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise Refused(Code.SOURCE_FAILED, f"{name} is not a regular file")
    if flags(fd) & (IMMUTABLE | APPEND):
        raise Refused(
            Code.SOURCE_FAILED,
            f"{name} may not be changed; take that off with: chattr -i -a {name}",
        )
    if found.st_nlink > 1:
        raise Refused(
            Code.SOURCE_FAILED,
            f"{name} has {found.st_nlink} names (hard links), of which the others would keep the"
            " old contents; remove them first",
        )
    require_unused(name, fd)


def require_unused(name: str, fd: int) -> None:
    """Refused when anybody but ``fd`` has the file open or mapped, loop devices included.

    The kernel gives a write lease to nobody else (fcntl(2)). It is given back at once: who opens
    the file must not wait.
    """
    # Whoever opens it at this moment has the kernel send this, and not SIGIO, which kills.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            raise Refused(
                Code.BUSY, f"{name} is in use; shut down the qube, or close what has it open, first"
            ) from None
        if loop := _loop_device(fd):
            raise Refused(
                Code.BUSY, f"{name} is in use by {loop}; detach it first: losetup --detach {loop}"
            ) from None
        # Neither its owner nor CAP_LEASE; or a file system without leases.
        log(WARNING, f"{name}: cannot tell whether anybody has it open: {error.strerror}")
        return
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _loop_device(fd: int) -> str:
    """A loop device that a file is behind, or nothing."""
    found = os.fstat(fd)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            other = os.stat(os.fsdecode(backing.read_bytes().removesuffix(b"\n")))
        except (OSError, ValueError):  # detached just now, or of a file that was removed
            continue
        if (other.st_dev, other.st_ino) == (found.st_dev, found.st_ino):
            return f"/dev/{backing.parent.parent.name}"
    return ""


def keep(old: int, new: int) -> None:
    """Give an empty new file what the old one has: owner, mode, ACL and other extended attributes,
    flags, project.

    Raises OSError where that cannot be, rather than lose any of it.
    """
    found = os.fstat(old)
    wanted, has = flags(old) & _KEPT, flags(new)
    if has & _KEPT != wanted:
        change_flags(new, has & ~_KEPT | wanted)
    if (found.st_uid, found.st_gid) != (os.fstat(new).st_uid, os.fstat(new).st_gid):
        os.fchown(new, found.st_uid, found.st_gid)
    os.fchmod(new, stat.S_IMODE(found.st_mode))
    _keep_extended(old, new)
    _keep_project(old, new)


def _keep_extended(old: int, new: int) -> None:
    for name in _names(new):  # a default ACL of the folder, say
        if name not in _names(old) and name.startswith("system.posix_acl"):
            os.removexattr(new, name)
    for name in _names(old):
        value = os.getxattr(old, name)
        if name not in _names(new) or os.getxattr(new, name) != value:
            os.setxattr(new, name, value)


def _names(fd: int) -> list[str]:
    try:
        return [name for name in os.listxattr(fd) if name not in _OF_CONTENTS]
    except OSError as error:
        if error.errno in NOT_HERE:
            return []
        raise


def _keep_project(old: int, new: int) -> None:
    """The project that quotas count the file to (xfs_quota(8))."""
    theirs, ours = bytearray(_PROJECT.size), bytearray(_PROJECT.size)
    try:
        fcntl.ioctl(old, _FSGETXATTR, theirs)
        fcntl.ioctl(new, _FSGETXATTR, ours)
    except OSError as error:
        if error.errno in NOT_HERE:
            return
        raise
    project, fields = _PROJECT.unpack(theirs)[3], list(_PROJECT.unpack(ours))
    if project != fields[3]:
        fields[3] = project
        fcntl.ioctl(new, _FSSETXATTR, _PROJECT.pack(*fields))
