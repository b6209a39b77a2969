# SPDX-License-Identifier: GPL-2.0-or-later
"""NTFS: files and folders, sparse and compressed ones, and links. Of a file's streams only the one
without a name is shown, and what the journal has is not replayed.

A node is a file's reference. Linux, fs/ntfs3, and ntfs-3g say what is made of it all.
"""

import stat
from collections.abc import Iterator
from struct import Struct, unpack_from

from backup_vm.files.readers.dos import FOLDER, READ_ONLY, cut, mode_of, utf8
from backup_vm.files.readers.ntfs_compression import unpacked
from backup_vm.files.readers.ntfs_index import DOS_NAME, names_in
from backup_vm.files.readers.ntfs_links import Special, special_of
from backup_vm.files.readers.ntfs_records import DATA, NUMBER, Record, Records, Stream, mended
from backup_vm.files.readers.source import (
    Absent,
    Extent,
    Malformed,
    Name,
    Source,
    Stat,
    Unsupported,
    within,
)

_BOOT = Struct("<HB")
_PLACES = Struct("<QQQbxxxb")
"""From byte 40 on: sectors, where the table of files is and its copy (clusters), and the sizes of a
record and of a block of an index: clusters, or negative the logarithm of bytes.
"""
_LOG, _VOLUME, _ROOT, _FIRST = 2, 3, 5, 16
"""Records of the journal, of the volume, of the root, and the first that is not the system's."""
_STANDARD, _FILE_NAME, _VOLUME_INFORMATION = 0x10, 0x30, 0x70
_IS_FOLDER = 2
_MIRRORED = 4
_COMPRESSED, _ENCRYPTED = 0xFF, 0x4000
_PAGE, _RESTART = 4096, Struct("<qHHHH")
"""Of the journal's first two pages: its last record, (clients, free ones), the first client that
uses it, flags.
"""
_DIRTY, _CLEAN, _NOBODY = 1, 2, 0xFFFF
_FROM_1601 = 116444736 * 10**9
"""From 1601 to 1970, in units of 100 ns."""
_LATEST = (1 << 65) // 100
"""Times from 1601 to 2770 are shown as they are."""
_NOT_REPLAYED = "its journal is not replayed: the newest changes may not be shown"


class Ntfs:
    """One file system."""

    kind = "ntfs"
    root = _ROOT

    def __init__(self, source: Source) -> None:
        self._source = source
        if source.size < 512 or source.read(3, 8) != b"NTFS    ":
            raise Absent
        raw = source.read(0, 512)
        sector, each = _BOOT.unpack_from(raw, 11)
        _, place, mirror, record, _ = _PLACES.unpack_from(raw, 40)
        each = each if each <= 128 else 1 << min(256 - each, 31)
        self._cluster = cluster = sector * each
        size = record * cluster if record > 0 else 1 << min(-record, 31)
        if (
            sector not in (512, 1024, 2048, 4096)
            or cluster not in (512 << i for i in range(13))
            or size not in (512 << i for i in range(6))
        ):
            raise Malformed("the boot sector of NTFS is damaged")
        self._records = Records(source, cluster, place * cluster, size)
        self._copies = (place * cluster, mirror * cluster, size)
        self._last: tuple[int, Stream | None] = (-1, None)
        try:
            clean = self._is_clean()
        except Malformed:
            clean = False
        self.notes = [] if clean else [_NOT_REPLAYED]

    def faults(self) -> Iterator[str]:
        """Whether the first records of the table of files are those of its copy."""
        place, mirror, size = self._copies
        for number in range(_MIRRORED):
            raw, copy = (self._source.read(at + number * size, size) for at in (place, mirror))
            try:
                # apart from the marks of when it was written, and where the log says so
                same = _unmarked(raw) == _unmarked(copy)
            except Malformed:
                same = False
            if not same:
                yield "the copy of the first records of its table of files differs"
                return

    def _is_clean(self) -> bool:
        """Whether it was unmounted: then the journal has nothing to replay."""
        volume = self._records.stream(self._records.of(_VOLUME), _VOLUME_INFORMATION)
        if volume is None or volume.size < 12 or unpack_from("<H", volume.read(10, 2))[0] & _DIRTY:
            return False
        log = self._records.stream(self._records.of(_LOG), DATA)
        if log is None or log.size < 2 * _PAGE:
            return False
        pages = [log.read(at, 512) for at in (0, _PAGE)]
        if all(page == b"\xff" * 512 for page in pages):  # nothing was ever in it
            return True
        newest, clean = -1, False
        for page in pages:  # written by turns
            (at,) = unpack_from("<H", page, 24)
            if page[:4] == b"RSTR" and at + _RESTART.size <= 510:
                number, _, _, client, flags = _RESTART.unpack_from(page, at)
                if number > newest:
                    newest, clean = number, client == _NOBODY or bool(flags & _CLEAN)
        return clean

    def _of_type(self, node: int, want: int) -> Record:
        record = self._records.of(node)
        if stat.S_IFMT(self._mode(record)[0]) != want:
            raise Malformed("a file is not of the type that is said elsewhere")
        return record

    def _mode(self, record: Record) -> tuple[int, Special | None]:
        attributes = unpack_from("<I", _standard(record), 32)[0]
        special = special_of(self._records, record, attributes)
        if special is not None and special.mode:
            return special.mode, special
        folder = FOLDER if record.flags & _IS_FOLDER else 0
        return mode_of(attributes & READ_ONLY | folder), special

    def stat(self, node: int) -> Stat:
        """See Reader."""
        record = self._records.of(node)
        mode, special = self._mode(record)
        standard = _standard(record)
        _, modified, changed, accessed = (
            (min(max(one, 0), _LATEST) - _FROM_1601) * 100 for one in unpack_from("<4q", standard)
        )
        size = 0
        if stat.S_ISREG(mode):
            data = self._records.stream(record, DATA)
            size = data.size if data is not None else 0
        elif stat.S_ISLNK(mode) and special is not None:
            size = len(special.target)
        links = sum(
            one.kind == _FILE_NAME
            and one.value is not None
            and one.value[65:66] != bytes([DOS_NAME])
            for one in record.attributes
        )
        device = special.device if special is not None else (0, 0)
        links = 1 if stat.S_ISDIR(mode) else links
        return Stat(mode, links, 0, 0, size, accessed, modified, changed, *device)

    def names(self, node: int) -> Iterator[Name]:
        """See Reader."""
        record = self._of_type(node, stat.S_IFDIR)
        for reference, raw in names_in(self._records, record, self._cluster):
            if reference & NUMBER >= _FIRST:
                yield Name(cut(utf8(raw), f"{reference:x}"), reference)

    def _data(self, node: int) -> Stream | None:
        """The contents of a regular file; those of the last one asked for are kept."""
        if self._last[0] != node:
            record = self._of_type(node, stat.S_IFREG)
            special = self._mode(record)[1]
            if special is not None:
                raise Unsupported(special.trouble)
            self._last = (node, self._records.stream(record, DATA))
        data = self._last[1]
        if data is not None and data.flags & _ENCRYPTED:
            raise Unsupported("it is encrypted within the file system")
        if data is not None and data.flags & _COMPRESSED and (data.flags & _COMPRESSED) != 1:
            raise Unsupported("it is compressed in a way that is not read here")
        return data

    def extents(self, node: int) -> Iterator[Extent]:
        """See Reader."""
        data = self._data(node)
        if data is None or not data.size:
            return iter(())
        if data.value is not None:
            return iter((Extent(0, data.size, None),))
        packed = data.flags & _COMPRESSED and data.unit
        found = self._packed(data) if packed else self._plain(data.runs)
        return within(found, data.written)  # after that are zeros

    def _plain(self, runs: list[tuple[int, int, int | None]]) -> Iterator[Extent]:
        size = self._cluster
        for first, count, where in runs:
            if where is not None:
                place = self._source.place(where * size, count * size)
                yield Extent(first * size, count * size, place)

    def _packed(self, data: Stream) -> Iterator[Extent]:
        """A unit of clusters is stored as it is, or packed into fewer, or a hole."""
        size, unit, done = self._cluster, data.unit, 0
        for begin, count, where in data.runs:
            if where is None:
                continue
            self._source.place(where * size, count * size)  # else it may be without an end
            for first in range(max(begin // unit * unit, done), begin + count, unit):
                pieces = list(data.pieces(first, first + unit))
                if sum(count for _, count, where in pieces if where is not None) == unit:
                    yield from self._plain(pieces)
                else:
                    yield Extent(first * size, unit * size, None)
                done = first + unit

    def contents(self, node: int, offset: int, length: int) -> bytes:
        """See Reader."""
        data = self._data(node)
        if data is None:
            raise Malformed("a file has no contents there")
        if data.value is not None:
            return data.value[offset : offset + length]
        size = data.unit * self._cluster
        if not size or size > 1 << 20:
            raise Malformed("a file has no contents there")
        out = bytearray()
        while len(out) < length:
            number, begin = divmod(offset + len(out), size)
            out += self._unit(data, number)[begin : begin + length - len(out)]
        return bytes(out)

    def _unit(self, data: Stream, number: int) -> bytes:
        size, first = self._cluster, number * data.unit
        found = [
            self._source.read(where * size, count * size)
            for _, count, where in data.pieces(first, first + data.unit)
            if where is not None
        ]
        return unpacked(b"".join(found), data.unit * size)

    def link(self, node: int) -> bytes:
        """See Reader."""
        special = self._mode(self._of_type(node, stat.S_IFLNK))[1]
        if special is None or not special.target:
            raise Malformed("a link leads nowhere")
        return special.target

    def attributes(self, node: int) -> Iterator[tuple[bytes, bytes]]:
        """See Reader: what NTFS calls so is nothing that Linux has."""
        return iter(())


def _unmarked(raw: bytes) -> bytes:
    """A record without the number of its last entry in the log, and the mark of when it was
    written.
    """
    out = bytearray(mended(raw, b"FILE"))
    (at,) = unpack_from("<H", out, 4)
    out[8:16], out[at : at + 2] = bytes(8), bytes(2)
    return bytes(out)


def _standard(record: Record) -> bytes:
    for one in record.attributes:
        if one.kind == _STANDARD and one.value is not None and len(one.value) >= 36:
            return one.value
    raise Malformed("a record of NTFS is damaged")
