# SPDX-License-Identifier: GPL-2.0-or-later
"""The dropbox for documents: restored settings of a qube, or dom0's configuration, as bytes in a
file that waits for dom0's administrator. No call reads what is in one.

``<state_dir>/restored/<qube>.<volume>``; with ``.older`` at its end what was not the newest that
dom0 knew when it was restored.
"""

from pathlib import Path

from common.durable import make_directory
from common.existing import is_file
from common.override import override
from dom0_agent.config import DATA_LIMIT, Pool, Volume
from dom0_agent.sources.file import FileSource
from dom0_agent.targets.file import FileReplacement
from wire.status import Code, Refused

LIMIT = 8 << 20
"""Bytes of a qube's settings, at most."""
CONFIG_LIMIT = 4 << 30
"""Bytes of dom0's configuration, at most."""
_OLDER = ".older"


def place(state_dir: Path, qube: str, volume: str, older: bool = False) -> Path:
    """Where a restored document waits."""
    return state_dir / "restored" / f"{qube}.{volume}{_OLDER if older else ''}"


def waiting(state_dir: Path, qube: str, volume: str) -> tuple[Path, bool] | None:
    """The document that was restored last, and whether it counts as older; None when there is none.

    Both kinds are there only when a restore was cut off between its last two steps. Then the
    document counts as older, which gives a qube less.
    """
    newest, older = place(state_dir, qube, volume), place(state_dir, qube, volume, True)
    found = [path for path in (newest, older) if is_file(path)]
    if not found:
        return None
    return max(found, key=lambda path: path.stat().st_mtime_ns), older in found


def unreadable(path: Path, error: OSError) -> Refused:
    """The refusal for a document in the dropbox that the disk has lost."""
    return Refused(Code.DAMAGED, f"{path} cannot be read: {error.strerror}; restore it again")


class Dropped(FileReplacement):
    """A document on its way into the dropbox; see Replacement. It takes the place of the one
    before, newest or older; Refused for one that is too large.
    """

    def __init__(self, state_dir: Path, qube: str, volume: str, size: int, older: bool) -> None:
        if size > (CONFIG_LIMIT if qube == "dom0" else LIMIT):
            raise Refused(
                Code.BAD_REQUEST, f"{qube}/{volume}: {size} bytes are too many for a document"
            )
        path = place(state_dir, qube, volume, older)
        make_directory(path.parent)
        # Settings are small, and may be what is needed most when a disk is full.
        room = DATA_LIMIT if qube == "dom0" else 100
        pool = Pool("restored", "file", path.parent, data_limit=room)
        super().__init__(FileSource(Volume(qube, volume, pool, path.name)), size)
        self._before = place(state_dir, qube, volume, not older)

    @override
    def commit(self) -> None:
        super().commit()
        self._before.unlink(missing_ok=True)
