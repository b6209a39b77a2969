# SPDX-License-Identifier: GPL-2.0-or-later
"""ZFS volumes: new contents in a new volume, which gets its name in one step at the end.

ZFS cannot put one volume in another's place in one step, so that one of that name must be gone.
"""

import os

from common.image_writer import ImageWriter
from common.override import override
from dom0_agent.config import ZVOLS
from dom0_agent.sources.zfs import ZfsSource
from dom0_agent.targets.interface import Replacement
from wire.status import Code, Refused

_CHECK_SPACE = 64 << 20
"""Bytes written between two looks at the pool's space."""
_SECTOR, _USUAL = 512, 16 << 10
"""Bytes of the smallest block that ZFS has, and of the largest that it takes by itself."""


class ZfsReplacement(Replacement):
    """See Replacement."""

    ordered = False

    def __init__(self, source: ZfsSource, size: int) -> None:
        self._source, self._pool, self._new = source, source.pool, source.unfinished
        self._unchecked = 0
        if source.pool.find(source.dataset) is not None:
            raise Refused(
                Code.BUSY,
                f"{source.dataset} exists; give it another name first:"
                f" zfs rename {source.dataset} {source.dataset}-old",
            )
        self._pool.require_room()
        options = ("-o", "volmode=dev", "-o", "com.sun:auto-snapshot=false")
        blocks, rounded = _blocks(size)
        words = ("create", "-s", *options, *blocks, "-V", str(rounded))
        try:
            self._pool.change("zfs", *words, self._new)
            os.close(source.device(self._new, os.O_RDWR))
            self._file = ImageWriter(ZVOLS / self._new, None)
        except BaseException as error:
            source.drop_unfinished()
            if isinstance(error, OSError):
                raise self._cannot(error) from None
            raise

    def _cannot(self, error: OSError) -> Refused:
        return Refused(Code.SOURCE_FAILED, f"cannot write to {self._new}: {error.strerror}")

    @override
    def write(self, offset: int, parts: list[bytes]) -> None:
        """Looks at the pool's space every now and then: a full pool would harm every volume in
        it.
        """
        self._unchecked += sum(len(part) for part in parts)
        if self._unchecked >= _CHECK_SPACE:
            self._unchecked = 0
            self._pool.forget()
            self._pool.require_room()
        try:
            self._file.write(offset, parts)
        except OSError as error:
            raise self._cannot(error) from None

    @override
    def commit(self) -> None:
        try:
            self._file.sync()
        finally:
            self._file.close()
        for name in ("volmode", "com.sun:auto-snapshot"):
            self._pool.change("zfs", "inherit", name, self._new)
        self._pool.change("zfs", "rename", self._new, self._source.dataset)

    @override
    def discard(self) -> None:
        self._file.close()
        self._source.drop_unfinished()


def _blocks(size: int) -> tuple[tuple[str, ...], int]:
    """Options for a new volume's blocks, and its size: exactly this one where ZFS can, which has
    whole blocks only, so that a volume of odd size has smaller ones.
    """
    fits = size & -size  # the largest power of two that divides it
    if _SECTOR <= fits < _USUAL:
        return ("-o", f"volblocksize={fits}"), size
    return (), -(-max(size, 1) // _USUAL) * _USUAL
