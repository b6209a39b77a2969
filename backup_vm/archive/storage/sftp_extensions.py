# SPDX-License-Identifier: GPL-2.0-or-later
"""What some SFTP servers can do beyond version 3 of the protocol, and what is done with those that
cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.room import Room, room
from backup_vm.archive.storage.sftp_protocol import Attributes, Client, Refused, text

_RENAME, _SYNC = b"posix-rename@openssh.com", b"fsync@openssh.com"
_SPACE, LINK = b"statvfs@openssh.com", b"hardlink@openssh.com"


def replace(client: Client, path: bytes, uploading: bytes, aside: bytes) -> Attributes | None:
    """Give an upload its name, for which it has ``uploading`` at its end until now, or where
    that takes two steps ``aside`` between them.

    Returns what the server said of the file of that name, if it was asked with the rename: from a
    server that does not keep to the order it is of the file before.
    """
    uploaded, whole = path + uploading, path + aside
    with _where_supported():
        renaming = client.begin(_RENAME, text(uploaded, path))
        looking = client.send(protocol.STAT, text(path))
        try:
            client.answer(renaming)
        except Refused:
            client.settle()
            raise
        with suppress(Refused):
            return client.answer(looking, protocol.ATTRS).attributes()
        return None
    try:
        client.ask(protocol.STAT, text(path), protocol.ATTRS)
    except Refused as error:
        if error.code != protocol.NO_SUCH_FILE:
            raise
        with suppress(Refused):  # a whole file that a run before this one left: this one is newer
            client.ask(protocol.REMOVE, text(whole))
        client.ask(protocol.RENAME, text(uploaded, path))
        return None
    # At any moment there is the old file, or the new one as NAME.whole, or both.
    with suppress(Refused):
        client.ask(protocol.REMOVE, text(whole))
    client.ask(protocol.RENAME, text(uploaded, whole))
    client.ask(protocol.REMOVE, text(path))
    client.ask(protocol.RENAME, text(whole, path))
    return None


def begin_sync(client: Client, handle: bytes) -> int | None:
    """Ask for a file to be durable; None where the server cannot. ``end_sync`` waits for it."""
    with _where_supported():
        return client.begin(_SYNC, text(handle))
    return None


def end_sync(client: Client, number: int | None) -> None:
    """Wait until it is durable, as far as the server can; raise Refused."""
    with _where_supported():
        if number is not None:
            client.answer(number)


def space(client: Client, path: bytes) -> Room | None:
    """Room on the disk of a folder, or of what is above it when it is not there yet."""
    while True:
        try:
            fields = client.extended(_SPACE, text(path or b"."), protocol.EXTENDED_REPLY)
            break
        except Refused as error:
            if error.code != protocol.NO_SUCH_FILE or path in (b"", b"/"):
                return None
            path = path.rpartition(b"/")[0] or (b"/" if path.startswith(b"/") else b"")
    _, unit, blocks, _, available = (fields.number(">Q") for _ in range(5))
    return room(unit, blocks, available)


@contextmanager
def _where_supported() -> Iterator[None]:
    """Do without what the server has not got."""
    try:
        yield
    except Refused as error:
        if error.code != protocol.UNSUPPORTED:
            raise
