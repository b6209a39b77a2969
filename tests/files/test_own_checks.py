# SPDX-License-Identifier: GPL-2.0-or-later
"""What our readers check of file systems that no program checks here: none that is sound is called
damaged, and what is damaged is.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.files.answers import NOWHERE, Extents
from backup_vm.files.claims import Claims
from tests.commands import Commands
from tests.files import foreign
from tests.files.kit import files_of, told


def faults(image: Path) -> list[str]:
    with files_of(image) as files:
        return files.faults()


def flip(image: Path, at: int) -> None:
    with open(image, "r+b", buffering=0) as file:
        (byte,) = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([byte ^ 1]), at)


@pytest.mark.parametrize("form", ["fat12", "fat16", "fat32"])
def test_tables_that_differ(form: str, tmp_path: Path) -> None:
    image, root = tmp_path / "image", tmp_path / "root"
    foreign.made(image, form)
    foreign.tree(root, 20)
    foreign.fill_by_mtools(image, root)
    assert not faults(image)
    raw = image.read_bytes()[:512]
    sector, _, reserved = struct.unpack_from("<HBH", raw, 11)
    length = struct.unpack_from("<H", raw, 22)[0] or struct.unpack_from("<I", raw, 36)[0]
    flip(image, (reserved + length) * sector + 1)  # flags
    assert not faults(image)
    flip(image, (reserved + 2 * length) * sector - 1)
    assert faults(image) == ["its tables of clusters differ"]


@pytest.mark.parametrize("form", ["exfat", "exfat-large"])
def test_boot_sectors_of_exfat(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, form)
    assert not faults(image)
    flip(image, 112)  # how full it is
    assert not faults(image)
    flip(image, 3000)
    assert faults(image) == ["its boot sectors have another checksum"]


@pytest.mark.parametrize("form", ["ntfs", "ntfs-sectors"])
def test_the_copy_of_the_table_of_ntfs(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    foreign.made(image, form)
    with foreign.mounted(image, form) as folder:
        foreign.tree(folder / "tree", 300)
    with files_of(image) as files:
        assert not files.notes and not files.faults()
    raw = image.read_bytes()[:512]
    sector, each = struct.unpack_from("<HB", raw, 11)
    (mirror,) = struct.unpack_from("<Q", raw, 56)
    flip(image, mirror * sector * each + 100)
    assert "copy of the first records" in faults(image)[0]


def drill(commands: Commands, code: int) -> Any:
    key = ("--passphrase-file", str(commands.passphrase), "--scratch", str(commands.site.root))
    return json.loads(commands.run("drill", *key, "--json", expect=code)[0])


def test_a_drill_finds_two_files_in_one_place(commands: Commands) -> None:
    image = commands.site.image()
    foreign.made(image, "fat16")
    for name in ("one", "two", "three"):
        path = commands.site.root / name
        path.write_text(name * 2000)
        foreign.run("mcopy", "-i", image, path, "::")
    commands.site.backup()
    done = drill(commands, 0)
    (check,) = done["file_systems"]
    assert check["sound"] and check["by"] == "our readers" and done["files"] == 3
    with files_of(image) as files:
        nodes = {one.path: one.node for _, one in files.walk(files.find(b"/"), told)}
    with open(image, "r+b", buffering=0) as file:
        first = os.pread(file.fileno(), 2, nodes[b"/one"] + 26)
        os.pwrite(file.fileno(), first, nodes[b"/two"] + 26)
    commands.site.backup()
    done = drill(commands, 1)
    (check,) = done["file_systems"]
    assert done["problem"] and not check["sound"] and check["troubles"] == 1


PARTS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=3)


@given(st.lists(PARTS, max_size=6))
def test_who_has_a_part_of_another_one(parts: list[list[tuple[int, int]]]) -> None:
    claims, taken = Claims(), list[set[int]]()
    for number, some in enumerate(parts):
        extents, at, mine = Extents(), 0, set[int]()
        for place, length in some:
            extents.add(at, length, place)
            at += length
            mine |= set(range(place, place + length))
        extents.add(at, 1, NOWHERE)
        taken.append(mine)
        for path in (b"%d" % number, b"another name"):
            claims.add(path, number, extents)
    found = list(claims.twice())
    within = any(
        set(range(one, one + length)) & set(range(other, other + more))
        for some in parts
        for i, (one, length) in enumerate(some)
        for other, more in some[:i]
    )
    apart = any(taken[i] & taken[j] for i in range(len(taken)) for j in range(i))
    assert bool(found) == (within or apart)
