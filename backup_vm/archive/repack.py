"""Where no holes can be punched into packs, packs that are mostly dead are written anew without what is dead.

Order: the new pack becomes durable; the catalog says where the chunks are now; then the old pack holds nothing any more and is
removed as any dead pack is, once every chunk of it that a session refers to proves to be sound elsewhere.
"""

from backup_vm.archive.archive import Archive, give_back
from backup_vm.archive.packs import NewPack, PackReader
from backup_vm.errors import DamagedError

DEAD = 0.5
"""Share of a pack's chunks, by bytes, that must be dead for it to be worth its writing anew."""


def repack(archive: Archive) -> int:
    """Write mostly dead packs anew; returns bytes given back. Damaged ones are left as they are, with a warning."""
    taken = 0
    for number in archive.catalog.packs_with_freed():
        name, ranges = archive.catalog.freed_in(number)
        freed = sum(length for _, length in ranges)
        live = archive.catalog.chunks_in(number)
        if live and freed >= DEAD * (freed + sum(length for _, _, length in live)):
            try:
                taken += _rewrite(archive, name, live)
            except DamagedError as error:
                archive.warnings.append(f"{error}; its pack was left as it is")
    return give_back(archive) - taken


def _rewrite(archive: Archive, name: str, live: list[tuple[bytes, int, int]]) -> int:
    """Write the live chunks of a pack to a new one; returns the bytes of that."""
    pack, places = NewPack(archive.storage, archive.parameters.archive), []
    try:
        with PackReader(archive.storage) as reader:
            for chunk_id, offset, length in live:
                places.append(
                    (
                        chunk_id,
                        pack.add(chunk_id, reader.read(name, chunk_id, offset, length)),
                        length,
                    )
                )
        pack.finish()
    except BaseException:
        pack.abandon()
        raise
    catalog = archive.catalog
    catalog.begin()
    number = catalog.add_pack(pack.name)
    for chunk_id, offset, length in places:
        catalog.put(chunk_id, number, offset, length)
    catalog.commit()
    return pack.size
