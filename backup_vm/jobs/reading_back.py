# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading what was written to a copy, each chunk against its checksum."""

from collections.abc import Collection, Iterable, Iterator

from backup_vm.archive import noting, packs
from backup_vm.archive.archive import Archive
from backup_vm.archive.packs import PackReader
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, UnreadableError


def read_back(target: Archive, names: Iterable[str], sent: Collection[Session]) -> list[str]:
    """Read the packs that were written, and return a line for each thing wrong.

    What is damaged is to be sent again, and no later session builds on those that were ``sent``.
    What could not be read may be there all the same: the catalog lists it still, and whoever opens
    the copy looks at its pack again.
    """
    bad, unread, said = list[tuple[str, int]](), list[str](), list[str]()
    with PackReader(target.storage) as reader:
        for name in sorted(names):
            try:
                for offset, error in _damage_in(target, reader, name):
                    bad.append((name, offset))
                    said.append(str(error))
            except UnreadableError as error:
                unread.append(name)
                said.append(str(error))
    if bad or unread:
        catalog = target.catalog
        catalog.begin()
        catalog.add_rotten(bad)
        catalog.doubt_packs(unread)
        catalog.add_spoilt(session.file for session in sent)
        for volume in {session.volume for session in sent}:
            catalog.marks.compare(volume)
        catalog.commit()
        noting.note_rotten(target.storage, {*unread, *(name for name, _ in bad)})
    return said


def _damage_in(
    target: Archive, reader: PackReader, name: str
) -> Iterator[tuple[int, DamagedError]]:
    """Offsets in a pack where there is damage, 0 for its index. Raise UnreadableError."""
    try:
        entries = packs.read_index(target.storage, name, target.parameters.archive)
    except UnreadableError:
        raise
    except DamagedError as error:
        yield 0, error
        return
    for entry in entries:
        try:
            reader.read(name, entry.id, entry.offset, entry.length)
        except UnreadableError:
            raise
        except DamagedError as error:
            yield entry.offset, error
