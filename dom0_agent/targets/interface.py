# SPDX-License-Identifier: GPL-2.0-or-later
"""What every kind of target offers."""

from typing import Protocol

from dom0_agent.bitmap import Bitmap


class Replacement(Protocol):
    """New contents for a volume, written beside the old ones. ``ordered``: only one write at a
    time, with rising offsets.

    ``changed``: where they begin as the old contents, what may differ in these from the snapshot
    that was named; None where they begin empty.
    """

    ordered: bool
    changed: Bitmap | None = None

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Write parts one after another; what is never written is as it was at first. May be called
        from several threads.
        """

    def read(self, offset: int, length: int) -> memoryview:
        """What is there, of contents that begin as the old ones: see ImageWriter. Raises
        OSError.
        """
        raise ValueError(f"{type(self).__name__} begins empty, also {length} bytes at {offset}")

    def clear(self, start: int, end: int) -> None:
        """Have the bytes from ``start`` up to ``end`` read as zeros, and take no space. Only of
        contents that begin as the old ones; may be called while others write elsewhere.
        """
        raise ValueError(f"{type(self).__name__} begins empty, also from {start} to {end}")

    def commit(self) -> None:
        """Put the new contents in the old ones' place, durably and at once."""

    def discard(self) -> None:
        """Forget the new contents; the volume is as it was."""
