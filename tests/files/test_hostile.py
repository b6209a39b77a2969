# SPDX-License-Identifier: GPL-2.0-or-later
"""Damaged and hostile file systems: an error within limits."""

import os
import random
import re
import shutil
import signal
import stat
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.errors import SparsebakError
from backup_vm.files import parser
from backup_vm.files.answers import FileSystemError
from backup_vm.files.changes import _flat
from backup_vm.files.child import _SENSELESS
from backup_vm.files.copying import Copier
from backup_vm.files.readers import partitions
from backup_vm.files.readers.decompression import decompressed
from backup_vm.files.readers.source import Absent, Malformed, Source, Unsupported
from tests.files import foreign, trees
from tests.files.kit import ImageFile, files_of

EXPECTED = (Malformed, Unsupported, Absent, *_SENSELESS)


def read_all(image: Path, most: int = 400) -> None:
    """All that is said of files, as far as it can be had, in this process."""
    file = ImageFile(image)
    source = Source(file.read, 0, file.size)
    try:
        reader = partitions.opened(source, partitions.parts(source)[0])
        nodes = [reader.root]
        for node in nodes:
            try:
                about = reader.stat(node)
                list(reader.attributes(node))
                kind = about.mode >> 12
                if kind == 4 and len(nodes) < most:
                    nodes += [entry.node for entry in reader.names(node)][:most]
                elif kind == 10:
                    reader.link(node)
                elif kind == 8:
                    for extent in list(reader.extents(node))[:50]:
                        if extent.place is None:
                            reader.contents(node, extent.offset, min(extent.length, 1 << 16))
                        else:
                            assert extent.place + extent.length <= file.size
            except EXPECTED:
                continue
    except EXPECTED:
        pass
    finally:
        file.close()


@pytest.fixture(
    scope="module",
    params=["ext4", "ext4-inline", "xfs", "btrfs-zstd", "fat12", "exfat", "ntfs"],
)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("sound") / "image"
    if request.param in foreign.FORMS:
        foreign.made(image, request.param)
        if request.param.startswith("fat"):
            foreign.tree(image.parent / "tree", 30)
            foreign.fill_by_mtools(image, image.parent / "tree")
        else:
            with foreign.mounted(image, request.param) as folder:
                foreign.tree(folder, 30)
                foreign.in_pieces(folder)
                if request.param == "ntfs":
                    foreign.odd(folder)
        return image
    options = trees.made(image, request.param)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, 30)
    return image


def test_flipped_bytes_are_damage_and_no_fault(sound: Path, tmp_path: Path) -> None:
    """Only in blocks that say what files there are: all others are contents."""
    file = ImageFile(sound)
    source = Source(file.read, 0, file.size)
    partitions.opened(source, partitions.parts(source)[0])
    file.close()
    image, chance = tmp_path / "image", random.Random(7)
    shutil.copy(sound, image)
    blocks = [block for block in sorted(file.asked) if block * 4096 < file.size]
    with open(image, "r+b", buffering=0) as out:
        blocks += [
            number
            for number in range(0, file.size // 4096, 3)
            if any(os.pread(out.fileno(), 64, number * 4096))
        ][:600]
        for _ in range(25):
            places = [chance.choice(blocks) * 4096 + chance.randrange(4096) for _ in range(30)]
            old = [(at, os.pread(out.fileno(), 1, at)) for at in places]
            for at in places:
                os.pwrite(out.fileno(), chance.randbytes(1), at)
            read_all(image)
            for at, byte in reversed(old):
                os.pwrite(out.fileno(), byte, at)


def test_a_copy_of_a_damaged_file_system_ends(sound: Path, tmp_path: Path) -> None:
    """Through the child, with all that is around it."""
    image, chance = tmp_path / "image", random.Random(3)
    for turn in range(2):
        shutil.copy(sound, image)
        with open(image, "r+b", buffering=0) as out:
            for _ in range(2000):
                at = chance.randrange(1 << 22) + 70_000
                os.pwrite(out.fileno(), chance.randbytes(2), at)
        try:
            with files_of(image) as files:
                copier = Copier(files, lambda text: None, False, lambda size: None)
                copier.copy(files.find(b"/"), tmp_path / f"out{turn}")
        except SparsebakError as error:
            assert "\n" not in str(error)


def test_an_image_that_is_cut_off_is_an_error(sound: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    shutil.copy(sound, image)
    for size in (1 << 21, 100_000, 70_000, 2000, 513, 1, 0):
        os.truncate(image, size)
        with pytest.raises(FileSystemError), files_of(image) as files:
            Copier(files, lambda text: None, False, lambda size: None).copy(
                files.find(b"/"), tmp_path / "out"
            )
            raise FileSystemError("some of it may be whole")  # which is reported file by file
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


@settings(max_examples=60)
@given(st.binary(max_size=300), st.integers(0, 4000), st.sampled_from([1, 2, 3]))
def test_decompression_gives_what_was_asked_for_or_an_error(
    data: bytes, size: int, packing: int
) -> None:
    with suppress(Malformed):
        assert len(decompressed(data, packing, size, 4096, False)) == size


PIECES = st.lists(st.tuples(st.integers(0, 60), st.binary(min_size=1, max_size=9)), max_size=6)


@given(PIECES, PIECES)
def test_files_in_pieces_are_compared_as_if_they_were_whole(
    one: list[tuple[int, bytes]], other: list[tuple[int, bytes]]
) -> None:
    def placed(pieces: list[tuple[int, bytes]]) -> tuple[list[tuple[int, bytes]], bytes]:
        found, whole, at = [], bytearray(200), 0
        for gap, data in pieces:
            at += gap
            if at + len(data) <= 200:
                found.append((at, data))
                whole[at : at + len(data)] = data
            at += len(data)
        return found, bytes(whole)

    (left, first), (right, second) = placed(one), placed(other)
    assert _flat(iter(left), iter(right)) == (first == second)


def test_a_child_that_is_killed_is_one_line_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "_MOST_STARTS", 4)
    image = tmp_path / "image"
    trees.made(image, "ext4")
    with files_of(image) as files:
        for turn in range(4):
            process = files._parser._process
            assert process is not None
            process.send_signal(signal.SIGKILL)
            with pytest.raises(FileSystemError, match="ended with -9"):
                files.find(b"/lost+found")
            if turn < 3:
                assert stat.S_ISDIR(files.find(b"/lost+found").stat.mode)
        with pytest.raises(FileSystemError, match="too often"):
            files.find(b"/lost+found")


def slow(image: Path, name: str) -> None:
    """Let the map of a file be a tree with more leaves than anybody can read: each node has every
    place filled with the one below it.
    """

    def debugfs(request: str) -> str:
        command = ["debugfs", "-R", request, image]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    where = re.search(r"block (\d+), offset (0x[0-9a-f]+)", debugfs(f"imap {name}"))
    assert where
    blocks = [int(one) for one in debugfs(f"blocks {name}").split()][:4]
    size = int(debugfs("stats").partition("Block size:")[2].split()[0])
    each = (size - 12) // 12

    def node(depth: int, below: int, room: int) -> bytes:
        return struct.pack("<HHHHI", 0xF30A, room, room, depth, 0) + room * struct.pack(
            "<IIHH", 0, below, 0, 0
        )

    with open(image, "r+b", buffering=0) as file:
        os.pwrite(
            file.fileno(), node(4, blocks[0], 4), int(where[1]) * size + int(where[2], 16) + 40
        )
        for depth, (here, below) in enumerate(zip(blocks, [*blocks[1:], 0], strict=True)):
            room = each if depth < 3 else 0
            os.pwrite(file.fileno(), node(3 - depth, below, room), here * size)


def test_a_file_that_takes_too_long_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    image, content = tmp_path / "image", tmp_path / "content"
    content.mkdir()
    (content / "bad").write_bytes(os.urandom(5 * 4096))
    (content / "good").write_bytes(b"good" * 5000)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-d", content, image, "8M"], check=True)
    slow(image, "bad")
    with files_of(image, seconds=0.5) as files:
        bad, good = files.find(b"/bad"), files.find(b"/good")
        with pytest.raises(FileSystemError, match="too long"):
            files.extents(bad)
        assert b"".join(data for _, data in files.contents(good)) == b"good" * 5000
        told: list[str] = []
        copier = Copier(files, told.append, False, lambda size: None)
        copier.copy(files.find(b"/"), tmp_path / "out")
        assert len(told) == 1 and "too long" in told[0], told
    assert (tmp_path / "out" / "good").read_bytes() == b"good" * 5000
    assert not (tmp_path / "out" / "bad").exists()
