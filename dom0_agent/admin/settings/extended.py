# SPDX-License-Identifier: GPL-2.0-or-later
"""Extended attributes of files, POSIX ACLs among them, in a tar archive: records of its pax headers
named ``SCHILY.xattr.NAME``, which is what GNU tar, bsdtar and star read and write (tar(5)).

``%`` and ``=`` in a name are ``%25`` and ``%3D``, as GNU tar has them: ``=`` ends a record's name.
"""

import errno
import os
from collections.abc import Iterator, Mapping

_RECORD = "SCHILY.xattr."
_NONE_HERE = (errno.ENOTSUP, errno.ENODATA)
"""A file system that has none, and one that went since it was listed."""


def records(where: int | os.PathLike[str]) -> dict[str, str]:
    """Those of an open file, or of what stands at a path (of a link, itself). OSError when they
    cannot be read.
    """
    found = {}
    follow = isinstance(where, int)  # an open file has nothing to follow, and takes no other value
    try:
        names = os.listxattr(where, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NONE_HERE:
            return {}
        raise
    for name in sorted(names):
        try:
            value = os.getxattr(where, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno in _NONE_HERE:
                continue
            raise
        escaped = name.replace("%", "%25").replace("=", "%3D")
        found[_RECORD + escaped] = value.decode("utf-8", "surrogateescape")
    return found


def put_back(fd: int, headers: Mapping[str, str]) -> None:
    """Give an open file the attributes that a member's headers have. OSError when it cannot be: a
    file without its ACL may be one that more can read.
    """
    for name, value in _attributes(headers):
        os.setxattr(fd, name, value)


def _attributes(headers: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    for record, value in headers.items():
        if record.startswith(_RECORD):
            name = record.removeprefix(_RECORD).replace("%3D", "=").replace("%25", "%")
            yield name, value.encode("utf-8", "surrogateescape")
