# SPDX-License-Identifier: GPL-2.0-or-later
"""Images as a target takes them: sectors, each after its number; all others are zeros."""

import os
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from itertools import islice
from pathlib import Path
from struct import Struct

from backup_vm.files.child import _SENSELESS
from backup_vm.files.readers import partitions
from backup_vm.files.readers.source import Absent, Malformed, Reader, Source, Unsupported
from tests.files import foreign
from tests.files.kit import ImageFile
from tests.files.volumes import with_volumes

SIZE = 128 << 20
_SECTOR = Struct("<I512s")
_MOST_SECTORS, _MOST_FILES, _MOST_EXTENTS = 550, 60, 40
_FORMS = ("fat12", "fat16", "fat32", "exfat", "ntfs", "lvm")
_WITHOUT_ROOT = ("fat12", "fat16", "fat32")
_MOST_PARTS = 8
EXPECTED = (Malformed, Unsupported, Absent, *_SENSELESS)


def read(data: bytes) -> None:
    """All that is said of files, within limits."""
    whole = data[: len(data) // _SECTOR.size * _SECTOR.size]
    sectors = {number % (SIZE // 512): raw for number, raw in _SECTOR.iter_unpack(whole)}

    def fetch(offset: int, length: int) -> bytes:
        first, last = offset // 512, (offset + length - 1) // 512
        raw = b"".join(sectors.get(number, bytes(512)) for number in range(first, last + 1))
        return raw[offset % 512 :][:length]

    files_in(Source(fetch, 0, SIZE))


def source_of(raw: bytes | bytearray) -> Source:
    """An image that is in memory."""
    return Source(lambda offset, length: bytes(raw[offset : offset + length]), 0, len(raw))


def files_in(source: Source) -> None:
    """All that is said of files in an image."""
    with suppress(*EXPECTED):
        for part in partitions.parts(source)[:_MOST_PARTS]:
            with suppress(*EXPECTED):
                _files(partitions.opened(source, part), source.size)


def _files(reader: Reader, size: int) -> None:
    nodes = [reader.root]
    for node in nodes:
        with suppress(*EXPECTED):
            kind = reader.stat(node).mode >> 12
            list(reader.attributes(node))
            if kind == 0o4:
                nodes += [one.node for one in islice(reader.names(node), _MOST_FILES - len(nodes))]
            elif kind == 0o12:
                reader.link(node)
            elif kind == 0o10:
                for extent in islice(reader.extents(node), _MOST_EXTENTS):
                    if extent.place is None:
                        reader.contents(node, extent.offset, min(extent.length, 1 << 16))
                    else:
                        assert 0 <= extent.place <= size - extent.length


@cache
def seeds() -> list[bytes]:
    """Real file systems: what says which files they have."""
    root = Path(tempfile.mkdtemp(prefix="sparsebak-fuzz-"))
    try:
        forms = _FORMS if os.geteuid() == 0 else _WITHOUT_ROOT
        return [_seed(root / form, form) for form in forms]
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _seed(image: Path, form: str) -> bytes:
    if form == "lvm":
        image, _ = with_volumes(image.parent, 5)
    else:
        foreign.made(image, form)
    if form.startswith("fat"):
        tree = image.with_suffix(".tree")
        foreign.tree(tree, 8)
        foreign.fill_by_mtools(image, tree)
    elif form != "lvm":
        with foreign.mounted(image, form) as folder:
            foreign.tree(folder, 8)
            if form == "ntfs":
                foreign.odd(folder)
    file = ImageFile(image)
    source = Source(file.read, 0, file.size)
    files_in(source)
    asked = sorted(file.asked)[:4000]
    found = []
    for number in (block * 8 + i for block in asked for i in range(8)):
        raw = file.read(number * 512, 512)
        if any(raw) and len(found) < _MOST_SECTORS:
            found.append(_SECTOR.pack(number, raw.ljust(512, b"\0")))
    file.close()
    return b"".join(found)
