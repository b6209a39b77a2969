# SPDX-License-Identifier: GPL-2.0-or-later
"""What every kind of target offers."""

from typing import Protocol


class Replacement(Protocol):
    """New contents for a volume, written beside the old ones. ``ordered``: only one write at a
    time, with rising offsets.
    """

    ordered: bool

    def write(self, offset: int, parts: list[bytes]) -> None:
        """Write parts one after another; what is never written reads as zeros. May be called from
        several threads.
        """

    def commit(self) -> None:
        """Put the new contents in the old ones' place, durably and at once."""

    def discard(self) -> None:
        """Forget the new contents; the volume is as it was."""
