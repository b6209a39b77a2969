# SPDX-License-Identifier: GPL-2.0-or-later
"""What some SFTP servers can do beyond version 3 of the protocol, and what is done with those that
cannot.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.objects import Space
from backup_vm.archive.storage.sftp_protocol import Client, Refused, text

_RENAME, _SYNC = b"posix-rename@openssh.com", b"fsync@openssh.com"
_SPACE, LINK = b"statvfs@openssh.com", b"hardlink@openssh.com"


def replace(client: Client, path: bytes, uploading: bytes, aside: bytes) -> None:
    """Give an upload its name, for which it has ``uploading`` at its end until now, or where
    that takes two steps ``aside`` between them.
    """
    uploaded, whole = path + uploading, path + aside
    with _where_supported():
        client.extended(_RENAME, text(uploaded, path))
        return
    try:
        client.ask(protocol.STAT, text(path), protocol.ATTRS)
    except Refused as error:
        if error.code != protocol.NO_SUCH_FILE:
            raise
        with suppress(Refused):  # a whole file that a run before this one left: this one is newer
            client.ask(protocol.REMOVE, text(whole))
        client.ask(protocol.RENAME, text(uploaded, path))
        return
    # At any moment there is the old file, or the new one as NAME.whole, or both.
    with suppress(Refused):
        client.ask(protocol.REMOVE, text(whole))
    client.ask(protocol.RENAME, text(uploaded, whole))
    client.ask(protocol.REMOVE, text(path))
    client.ask(protocol.RENAME, text(whole, path))


def sync(client: Client, handle: bytes) -> None:
    """Make a file durable, as far as the server can."""
    with _where_supported():
        client.extended(_SYNC, text(handle))


def space(client: Client, path: bytes) -> Space | None:
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
    return Space(available * unit, blocks * unit) if blocks and unit else None


@contextmanager
def _where_supported() -> Iterator[None]:
    """Do without what the server has not got."""
    try:
        yield
    except Refused as error:
        if error.code != protocol.UNSUPPORTED:
            raise
