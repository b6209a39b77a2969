# SPDX-License-Identifier: GPL-2.0-or-later
"""What crosses between a reader and the backup VM, by sparsebak.Read: the argument names a session,
requests ask for its chunk ids and sealed chunks by their numbers, and each has a reply of its own.

Chunks go by number, not by id, so that nothing can be had but what is in that session.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, ClassVar

from wire import FORMAT
from wire.compiled import COMPILED
from wire.layout import Structure
from wire.names import BadName

if TYPE_CHECKING:
    from construct import Const, Int16ul, Int32ul, Int64ul

READ_MAGIC = b"SBRD"
WANT_IDS, WANT_CHUNKS = 1, 2
MAX_IDS = 32 * 1024
"""Ids that one request may ask for: 1 MiB, a whole number of pages."""
MAX_CHUNKS = 64
"""Chunks that one request may ask for; they are sent one by one."""
_ARGUMENT = re.compile(r"([0-9a-f]{32})\+([0-9a-f]{32})", re.ASCII)


class ReadRequest(Structure, compiled=COMPILED, kw_only=True):
    """What a reader asks for next."""

    magic: ClassVar[Annotated[bytes, Const(READ_MAGIC)]]
    format: ClassVar[Annotated[int, Const(FORMAT, Int16ul)]]
    wanted: Annotated[int, Int16ul * "1 ids, 2 chunks"]
    first: Annotated[int, Int64ul * "number of the first chunk"]
    count: Annotated[int, Int32ul * "how many, at least one"]

    def fits(self, chunks: int) -> bool:
        """Whether it can be asked of a session with so many chunks."""
        most = {WANT_IDS: MAX_IDS, WANT_CHUNKS: MAX_CHUNKS}.get(self.wanted, 0)
        return 1 <= self.count <= most and self.first + self.count <= chunks


def reading(volume_id: bytes, session: bytes) -> str:
    """The service argument for a session: both ids in hexadecimal, which tell no name and are the
    same after a renaming.
    """
    return f"{volume_id.hex()}+{session.hex()}"


def parse_reading(untrusted_argument: str) -> tuple[bytes, bytes]:
    """Undo reading, or raise BadName."""
    found = _ARGUMENT.fullmatch(untrusted_argument)
    if found is None:
        raise BadName(f"{untrusted_argument[:80]!r}: a session to read is VOLUME-ID+SESSION-ID")
    return bytes.fromhex(found[1]), bytes.fromhex(found[2])
