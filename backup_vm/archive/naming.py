# SPDX-License-Identifier: GPL-2.0-or-later
"""What files of an archive are called. What has not exactly such a name belongs to another program:
it is left alone.

Sync programs leave conflict copies beside files, macOS leaves ``._`` files, browsers ``name
(1).pack``: none of these is damage, and none is ever read.
"""

import re
from collections.abc import Iterable, Iterator

from backup_vm.archive.storage import TEMPORARY, Storage

NOTES_FILE = "notes.json"
PARITY = "parity"
"""The folder of parity files."""

_VOLUME = r"volumes/[0-9a-f]{32}/"
_SESSION = re.compile(_VOLUME + r"(?:[0-9]{10}|[1-9][0-9]{10,19})-[0-9a-f]{32}\.session")
_PACK = re.compile(r"packs/([0-9a-f]{2})/\1[0-9a-f]{30}\.pack")
_PARITY = re.compile(r"parity/([0-9a-f]{2})/\1[0-9a-f]{30}\.parity")
_PARTIAL = re.compile(_VOLUME + r"[0-9a-f]{32}\.partial")
_NAMES = re.compile(_VOLUME + r"(?:[0-9]{10}|[1-9][0-9]{10,19})-[0-9a-f]{32}\.names")
_UNFINISHED = re.compile(_VOLUME + r"[0-9a-f]{32}-[0-9a-f]{8}\.unfinished")


def is_session(name: str) -> bool:
    """Whether a file is called as a session is."""
    return _SESSION.fullmatch(name) is not None


def is_names(name: str) -> bool:
    """Whether a file is called as the index of a session's names is."""
    return _NAMES.fullmatch(name) is not None


def is_pack(name: str) -> bool:
    """Whether a file is called as a pack is."""
    return _PACK.fullmatch(name) is not None


def is_parity(name: str) -> bool:
    """Whether a file is called as a parity file is."""
    return _PARITY.fullmatch(name) is not None


def is_partial(name: str) -> bool:
    """Whether a file is called as a partial session of this machine is."""
    return _PARTIAL.fullmatch(name) is not None


def is_unfinished(name: str) -> bool:
    """Whether a file is called as a partial session that is shown to other machines is."""
    return _UNFINISHED.fullmatch(name) is not None


def is_of_this_machine(name: str) -> bool:
    """Whether what is called so is in the workspace, not among the files that machines share."""
    return name.endswith((".partial", ".sqlite", ".sqlite-journal", ".lock"))


def session_of(name: str) -> str:
    """Id, in hexadecimal, of the session in a session file or its index of names, a partial or an
    unfinished one.
    """
    stem = name.rpartition("/")[2].partition(".")[0]
    return stem.partition("-")[0] if is_unfinished(name) else stem.rpartition("-")[2]


def sequence_of(name: str) -> int:
    """The number of a session, by the name of its file."""
    return int(name[41:].partition("-")[0])


def volume_of(name: str) -> str:
    """Id, in hexadecimal, of the volume that a file below ``volumes`` belongs to."""
    return name.split("/")[1]


def sessions_in(names: Iterable[str]) -> list[str]:
    """Names of session files, in order of volume and sequence."""
    return sorted(
        filter(is_session, names),
        key=lambda name: (volume_of(name), sequence_of(name), name),
    )


def packs_in(names: Iterable[str]) -> list[str]:
    """Names of packs, sorted."""
    return sorted(filter(is_pack, names))


_OURS = (is_session, is_names, is_pack, is_parity, is_partial, is_unfinished)


def foreign(storage: Storage) -> Iterator[str]:
    """Files that have not a name of ours, where ours are."""
    for folder in ("packs", "volumes", "parity"):
        for name in sorted(storage.sizes(folder)):
            if not any(one(name) for one in _OURS) and not name.endswith(TEMPORARY):
                yield name
    yield from storage.unreadable()
