# SPDX-License-Identifier: GPL-2.0-or-later
"""What an archive holds of a volume, as it is sent to the agent, so that it sends only what
differs.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import IO

from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image, chain
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError
from wire.chunks import ID_SIZE
from wire.merkle import chunk_count
from wire.messages import Offer


def known_ids(archive: Archive, newest: Session, offer: Offer) -> Callable[[IO[bytes]], None]:
    """Writes the ids of the volume's chunks at its newest session, in order; zeros for what is not
    held.

    Of this volume alone. Where dom0 lost its state it compares 3 GiB in 3.2 to 3.8 s this way, and
    a full session takes 6.9. So all ids of an archive could save half of the first session of a
    volume that is a copy of another one, which private volumes hardly ever are, for 32 bytes a
    chunk of the whole archive at the beginning of every session.
    """
    series = archive.sessions(newest.volume)[newest.volume]
    known, _ = chain(series, newest)
    # a chain that breaks off does no harm here: the agent compares each id with the data
    image = Image(archive.storage, known)
    spool = archive.storage.workspace.scratch()
    with suppress(DamagedError):  # what is not said to be held is sent
        for _, ids in image.windows():
            places = archive.catalog.places(chunk_id for chunk_id in ids if any(chunk_id))
            spool.write(
                b"".join(chunk_id if chunk_id in places else bytes(ID_SIZE) for chunk_id in ids)
            )
    length = chunk_count(offer.size, offer.chunk_size) * ID_SIZE
    spool.truncate(length)
    spool.seek(0)

    def write(stream: IO[bytes]) -> None:
        with spool:
            while block := spool.read(1 << 16):
                stream.write(block)

    return write
