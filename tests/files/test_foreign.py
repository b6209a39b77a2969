# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of FAT, exFAT and NTFS is what other programs wrote there."""

import os
import random
import stat
import struct
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.files.answers import FileSystemError
from backup_vm.files.readers import partitions
from backup_vm.files.readers.dos import time_of
from backup_vm.files.readers.ntfs import Ntfs
from backup_vm.files.readers.ntfs_compression import unpacked
from backup_vm.files.readers.ntfs_records import DATA
from backup_vm.files.readers.partitions import Part
from backup_vm.files.readers.source import Malformed
from tests.files import foreign
from tests.files.kit import files_of, must_have, told
from tests.fuzz import images


@pytest.mark.parametrize("form", [form for form in foreign.FORMS if form.startswith("fat")])
def test_fat(form: str, tmp_path: Path) -> None:
    image, root = tmp_path / "image", tmp_path / "root"
    foreign.tree(root, 120 if form.startswith("fat12") else 300)
    foreign.made(image, form)
    foreign.fill_by_mtools(image, root)
    must_have(image, root, 2 * 10**9)


@pytest.mark.parametrize("form", [form for form in foreign.FORMS if form.startswith("exfat")])
def test_exfat(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, form)
    with foreign.mounted(image, form) as folder:
        foreign.tree(folder)
        foreign.in_pieces(folder)
        with open(folder / "grown", "wb") as file:
            file.write(b"begins")
            file.truncate(100_000)
    with foreign.mounted(image, form) as folder:
        must_have(image, folder)


@pytest.mark.parametrize("form", ["ntfs", "ntfs-small", "ntfs-large", "ntfs-sectors"])
def test_ntfs(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, form)
    with foreign.mounted(image, form, "compression") as folder:
        foreign.tree(folder, 600 if form == "ntfs" else 200)
        foreign.in_pieces(folder)
        foreign.odd(folder)
    with foreign.mounted(image, form, "compression") as folder:
        must_have(image, folder, links=True)
    with files_of(image) as files:
        assert not files.notes


def test_a_table_of_files_in_many_pieces(tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, "ntfs-full")
    with foreign.mounted(image, "ntfs-full") as folder:
        foreign.crowd(folder)
    reader = partitions.opened(images.source_of(image.read_bytes()), Part(0, 0, 0, "ntfs", True))
    assert isinstance(reader, Ntfs)
    table = reader._records.of(0).attributes
    assert len([one for one in table if one.kind == DATA]) > 1
    with foreign.mounted(image, "ntfs-full") as folder:
        must_have(image, folder)


def test_links_and_reparse_points_of_ntfs(tmp_path: Path) -> None:
    """As ntfs-3g makes them for Linux and for WSL, and as Windows does."""
    image = tmp_path / "image"
    foreign.made(image, "ntfs")
    with foreign.mounted(image, "ntfs", "special_files=wsl") as folder:
        for length in (1, 60, 300):
            os.symlink("w" * length, folder / f"wsl-{length}")
        (folder / "below").mkdir()
        (folder / "below" / "file").write_bytes(b"there")
        for name, tag in (("shared", 0x80000013), ("compact", 0x80000017), ("other", 0x80000099)):
            (folder / name).write_bytes(b"what is here")
            foreign.reparse(folder / name, tag, bytes(16))
        for name, target in (("relative", "below\\file"), ("junction", "\\??\\C:\\Users\\me")):
            (folder / name).mkdir() if name == "junction" else (folder / name).touch()
            raw = target.encode("utf-16-le")
            flags = b"" if name == "junction" else struct.pack("<I", 1)
            body = struct.pack("<HHHH", 0, len(raw), len(raw), 0) + flags + raw
            tag = 0xA0000003 if name == "junction" else 0xA000000C
            foreign.reparse(folder / name, tag, body)
        must_have(image, folder, apart=("shared", "compact", "other", "relative", "junction"))
    with foreign.mounted(image, "ntfs", "special_files=interix") as folder:
        os.symlink("of Interix", folder / "interix")
        os.mknod(folder / "device", stat.S_IFBLK | 0o600, os.makedev(8, 17))
    with files_of(image) as files:
        for path, target in (
            ("relative", b"below/file"), ("junction", b"C:/Users/me"), ("interix", b"of Interix"),
        ):  # fmt: skip
            found = files.find(path.encode(), follow=False)
            assert stat.S_ISLNK(found.stat.mode) and files.link(found.node) == target
            assert found.stat.size == len(target)
        assert files.find(b"relative").path == b"/below/file"
        device = files.find(b"device").stat
        assert (device.major, device.minor) == (8, 17) and stat.S_ISBLK(device.mode)
        for path, text in (("shared", "deduplication"), ("compact", "compact")):
            with pytest.raises(FileSystemError, match=text):
                files.extents(files.find(path.encode()))
        other = files.find(b"other")
        assert b"".join(data for _, data in files.contents(other)) == b"what is here"


@pytest.mark.parametrize("form", ["ntfs", "exfat"])
def test_names_too_long_for_linux_are_cut(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, form)
    names = ["漢" * 84 + "".join(("a", "b", "𝄞")[number] * 6) for number in range(3)]
    with foreign.mounted(image, form) as folder:
        for name in names:
            (folder / name).write_text(name)
    with files_of(image) as files:
        found = [one for _, one in files.walk(files.find(b"/"), told)]
        assert len(found) == 3 and all(200 < len(one.path) <= 256 for one in found)
        got = {b"".join(data for _, data in files.contents(one)).decode() for one in found}
        assert got == set(names)


def test_times_of_ntfs_that_nobody_lived_to_see(tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, "ntfs")
    odd = {"first": 0, "negative": -5, "last": (1 << 63) - 1, "now": 133_000_000_000_000_001}
    with foreign.mounted(image, "ntfs") as folder:
        for name, time in odd.items():
            (folder / name).touch()
            os.setxattr(folder / name, "system.ntfs_times", struct.pack("<3q", time, time, time))
    with files_of(image) as files:
        times = {name: files.find(name.encode()).stat.mtime for name in odd}
    assert times["first"] == times["negative"] == -11_644_473_600 * 10**9 < times["now"]
    assert times["now"] == (133_000_000_000_000_001 - 116_444_736_000_000_000) * 100
    assert times["last"] > 2**64


def test_that_ntfs_was_in_use_is_said(tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, "ntfs")
    foreign.run("ntfsfix", image)  # which has Windows check it at its next start
    with files_of(image) as files:
        assert "journal" in files.notes[0]


def restart_page(number: int, flags: int, size: int) -> bytes:
    """A page of NTFS' journal that says by whom it is used; ntfs-3g checks all of its fields."""
    name = "NTFS".encode("utf-16-le")
    client = struct.pack("<qqHHH6xI128s", 0, 0, 0xFFFF, 0xFFFF, 0, len(name), name)
    bits = 67 - size.bit_length()
    area = struct.pack("<qHHHHI", number, 1, 0xFFFF, 0, flags, bits)
    area += struct.pack("<HHqIHHII", 48 + len(client), 48, size, 0, 48, 64, 1, 0)
    head = struct.pack("<4sHHqIIHHH", b"RSTR", 30, 9, 0, 4096, 4096, 48, 1, 1)
    page = bytearray((head + bytes(18) + area + client).ljust(4096, b"\0"))
    struct.pack_into("<H", page, 30, 1)
    for end in range(510, 4096, 512):
        struct.pack_into("<H", page, end, 1)
    return bytes(page)


@pytest.mark.parametrize(("older", "newer"), [(0, 2), (2, 0)], ids=["clean", "in-use"])
def test_a_journal_in_use_is_what_ntfs_3g_takes_for_that(
    older: int, newer: int, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    foreign.made(image, "ntfs")
    reader = partitions.opened(images.source_of(image.read_bytes()), Part(0, 0, 0, "ntfs", True))
    assert isinstance(reader, Ntfs)
    log = reader._records.stream(reader._records.of(2), DATA)
    assert log is not None and log.runs[0][2] is not None
    with open(image, "r+b") as file:
        file.seek(log.runs[0][2] * 4096)
        file.write(restart_page(1000, older, log.size) + restart_page(2000, newer, log.size))
    with files_of(image) as files:
        assert len(files.notes) == (not newer)
    folder = tmp_path / "mnt"
    folder.mkdir()
    done = subprocess.run(["ntfs-3g", image, folder], capture_output=True, text=True)
    if done.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    assert ("unclean" in done.stderr) == (not newer), done.stderr


def test_a_disk_that_boots_by_uefi_needs_no_number(tmp_path: Path) -> None:
    image, efi, system = (tmp_path / name for name in ("image", "efi", "system"))
    foreign.made(efi, "fat12")
    foreign.run("mkfs.ext4", "-q", system, "8M")
    with open(image, "wb") as file:
        file.truncate(16 * foreign.MIB)
    words = ("mkpart", "efi", "1MiB", "5MiB", "mkpart", "system", "5MiB", "13MiB")
    foreign.run("parted", "-s", image, "mklabel", "gpt", *words)
    with open(image, "r+b") as file:
        for at, part in ((1, efi), (5, system)):
            file.seek(at * foreign.MIB)
            file.write(part.read_bytes())
    for partition, name in ((None, b"lost+found"), (2, b"lost+found"), (1, None)):
        with files_of(image, partition) as files:
            found = [one.path for _, one in files.walk(files.find(b"/"), told)]
            assert found == ([b"/" + name] if name else [])


def test_that_fat_and_exfat_were_in_use_is_said(tmp_path: Path) -> None:
    """Linux says so while it is mounted, by this bit."""
    for form, at, bit in (("fat16", 37, 1), ("fat32", 65, 1), ("exfat", 106, 2)):
        image = tmp_path / form
        foreign.made(image, form)
        with open(image, "r+b") as file:
            raw = file.read(512)
            with files_of(image) as files:
                assert not files.notes
            file.seek(at)
            file.write(bytes([raw[at] | bit]))
        with files_of(image) as files:
            assert "unmounted" in files.notes[0]


def test_chains_of_fat_that_never_end_do(tmp_path: Path) -> None:
    """A folder in itself, one whose chain comes back to where it was, and one whose chain leads to
    where nothing is.
    """
    image, root = tmp_path / "image", tmp_path / "root"
    for name in ("in itself", "ring", "beyond"):
        (root / name).mkdir(parents=True)
        for number in range(0 if name == "in itself" else 40):
            (root / name / f"file {number}").touch()
    foreign.made(image, "fat32")
    foreign.run("mcopy", "-i", image, "-s", "-Q", *sorted(root.iterdir()), "::")
    with files_of(image) as files:
        nodes = {one.path: one.node for _, one in files.walk(files.find(b"/"), told)}
    with open(image, "r+b", buffering=0) as file:
        boot = os.pread(file.fileno(), 512, 0)
        table, length = struct.unpack_from("<H", boot, 14)[0], struct.unpack_from("<I", boot, 36)[0]

        def cluster(path: bytes) -> int:
            raw = os.pread(file.fileno(), 32, nodes[path])
            high, _, _, low = struct.unpack_from("<HHHH", raw, 20)
            return int(high << 16 | low)

        def chain(one: int, following: int) -> None:
            os.pwrite(file.fileno(), struct.pack("<I", following), table * 512 + one * 4)

        data = (table + 2 * length) * 512
        inner = os.pread(file.fileno(), 32, nodes[b"/in itself"])
        os.pwrite(file.fileno(), inner, data + (cluster(b"/in itself") - 2) * 512 + 64)
        chain(cluster(b"/ring"), cluster(b"/ring"))
        chain(cluster(b"/beyond"), 0x0FFFFF00)
    said: list[tuple[bytes, str]] = []
    with files_of(image) as files:
        paths = [
            one.path
            for _, one in files.walk(files.find(b"/"), lambda path, text: said.append((path, text)))
        ]
        about = files.find(b"/in itself").stat
        assert stat.S_ISDIR(about.mode) and len(paths) < 600
    assert {path.split(b"/")[1] for path, _ in said} == {b"in itself", b"ring", b"beyond"}, said


DOS_TIMES = st.datetimes(datetime(1980, 1, 1), datetime(2107, 12, 31, 23, 59, 58))


@given(DOS_TIMES)
def test_times_of_dos_are_those_of_the_calendar(when: datetime) -> None:
    date = (when.year - 1980) << 9 | when.month << 5 | when.day
    time = when.hour << 11 | when.minute << 5 | when.second // 2
    whole = when.replace(second=when.second // 2 * 2, microsecond=0, tzinfo=UTC)
    assert time_of(date, time) == int(whole.timestamp()) * 10**9


def lznt1(data: bytes, chance: random.Random) -> bytes:
    """Compress, not well, but in every way that the format has."""
    out = bytearray()
    for begin in range(0, len(data), 4096):
        chunk = data[begin : begin + 4096]
        packed, at = bytearray(), 0
        while at < len(chunk):
            flags, pieces = 0, bytearray()
            for bit in range(8):
                if at == len(chunk):
                    break
                low = 16 - max(4, (at - 1).bit_length())
                found = None
                for back in chance.sample(range(1, at + 1), min(at, 20)) if at else ():
                    count = 0
                    while (
                        at + count < len(chunk)
                        and count < (1 << low) + 2
                        and chunk[at + count] == chunk[at + count - back]
                    ):
                        count += 1
                    if count >= 3 and back <= 1 << 16 - low:
                        found = (back, count)
                        break
                if found:
                    flags |= 1 << bit
                    pieces += struct.pack("<H", found[0] - 1 << low | found[1] - 3)
                    at += found[1]
                else:
                    pieces.append(chunk[at])
                    at += 1
            packed += bytes([flags]) + pieces
        if len(packed) < 4096:
            out += struct.pack("<H", 0xB000 | len(packed) - 1) + packed
        else:
            out += struct.pack("<H", 0x3FFF) + chunk.ljust(4096, b"\0")
    return bytes(out)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=30), max_size=4), st.lists(st.integers(0, 3), max_size=400))
def test_what_is_compressed_is_unpacked(words: list[bytes], order: list[int]) -> None:
    data = b"".join(words[one] for one in order if one < len(words))
    packed = lznt1(data, random.Random(len(data)))
    assert unpacked(packed, len(data)) == data


@given(st.binary(max_size=200), st.integers(0, 9000))
def test_unpacking_gives_what_was_asked_for_or_damage(data: bytes, size: int) -> None:
    with suppress(Malformed):
        assert len(unpacked(data, size)) == size
