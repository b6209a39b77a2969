# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in logical volumes of an image, as LVM's own programs make and describe them."""

import json
import os
import random
import re
import shutil
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.files import checking
from backup_vm.files.answers import FileSystemError, Part
from backup_vm.files.readers import lvm_text
from backup_vm.files.readers.source import Malformed
from tests.commands import Commands
from tests.files import foreign
from tests.files.kit import files_of, must_have
from tests.files.volumes import MIB, PARTS, with_volumes
from tests.fuzz import images


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Path, Path]:
    return with_volumes(tmp_path)


def test_files_are_read_where_lvm_says_that_they_are(disk: tuple[Path, Path]) -> None:
    image, root = disk
    with pytest.raises(FileSystemError, match="several") as told, files_of(image):
        pass
    for what in ("1: LVM", "2: LVM", "in-it/pieces: ext4", "in-it/striped: ext4"):
        assert what in (told.value.hint or ""), told.value.hint
    for name in ("pieces", "striped"):
        must_have(image, root, 10**9, partition=f"in-it/{name}", apart=("lost+found",))


def test_a_logical_volume_of_a_session_is_named_by_its_name(commands: Commands) -> None:
    folder = commands.site.root / "volumes"
    folder.mkdir()
    image, _ = with_volumes(folder, 5)
    shutil.copy(image, commands.site.image())
    commands.site.backup()
    words = ("files", "ls", "work/private", "names", "--passphrase-file", str(commands.passphrase))
    out, _ = commands.run(*words, "--partition", "in-it/striped")
    assert "lower.txt" in out.splitlines()
    assert out == commands.run(*words, "--partition", "201")[0]


def test_encrypted_partitions_are_said_to_be_that(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(20 * MIB)
    words = ("--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "/dev/zero")
    foreign.run("cryptsetup", "-q", "luksFormat", *words, "--keyfile-size", "32", image)
    with pytest.raises(FileSystemError) as told, files_of(image):
        pass
    assert told.value.hint == "there is: LUKS (encrypted)"


def test_what_is_on_a_disk_that_is_not_there_is_named(disk: tuple[Path, Path]) -> None:
    image, _ = disk
    os.truncate(image, (PARTS[1][0]) * MIB)
    with pytest.raises(FileSystemError) as told, files_of(image):
        pass
    assert "in-it/pieces: LVM on another disk" in (told.value.hint or "")


def test_damaged_text_hides_no_partition(disk: tuple[Path, Path]) -> None:
    image, _ = disk
    raw = bytearray(image.read_bytes()[: 45 * MIB])
    for at in (at for at in range(0, len(raw), 512) if b"logical_volumes" in raw[at : at + 4096]):
        raw[at : at + 4] = b"\xff" * 4
    image.write_bytes(raw)
    with pytest.raises(FileSystemError) as told, files_of(image):
        pass
    assert told.value.hint == "there is: 1: LVM, 2: LVM"


def test_no_checker_is_let_near_a_logical_volume() -> None:
    """For it is no range of the image."""
    assert checking.check(-1, Part(201, 0, 1, "ext4", True, "g/v"), True, 1).sound is None


def test_text_that_says_what_cannot_be_is_damage(tmp_path: Path) -> None:
    """With its checksum made right: a qube can do that, too."""
    image, _ = with_volumes(tmp_path, 5)
    chance, area = random.Random(4), PARTS[0][0] * MIB + 4096
    raw = bytearray(image.read_bytes())
    at, length = struct.unpack_from("<QQ", raw, area + 40)
    text = bytes(raw[area + at : area + at + length])
    words = [b"0", b"1", b"65536", b"99999999999999", b'"striped"', b"[", b"{", b"}", b"x"]
    spans = [found.span() for found in re.finditer(rb"[0-9]+|\"[a-z0-9]+\"|[\[{}]", text)]
    for _ in range(120):
        changed = text
        for begin, end in sorted(chance.sample(spans, chance.randrange(1, 4)), reverse=True):
            changed = changed[:begin] + chance.choice(words) + changed[end:]
        checksum = zlib.crc32(changed, 0x0A685930) ^ 0xFFFFFFFF
        struct.pack_into("<QQI", raw, area + 40, at, len(changed), checksum)
        raw[area + at : area + at + len(changed)] = changed
        images.files_in(images.source_of(raw))


VALUES = st.integers(0, 1 << 40) | st.text(max_size=8) | st.lists(st.integers(0, 9), max_size=3)
NAMES = st.from_regex(r"[a-zA-Z0-9_.+-]{1,8}", fullmatch=True)
SECTIONS = st.recursive(
    st.dictionaries(NAMES, VALUES, max_size=4),
    lambda below: st.dictionaries(NAMES, VALUES | below, max_size=3),
    max_leaves=6,
)


def written(section: dict[str, Any]) -> str:
    """As LVM writes it."""

    def one(value: Any) -> str:
        if isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return f'"{escaped}"'
        return str(value).replace("'", '"')

    return "".join(
        f"{name} {{\n{written(value)}}}\n"
        if isinstance(value, dict)
        else f"{name} = {one(value)}  # said\n"
        for name, value in section.items()
    )


@given(SECTIONS)
def test_text_is_read_as_it_is_written(section: dict[str, Any]) -> None:
    raw = written(section).encode("latin-1", "replace")
    assert lvm_text.parsed(raw) == json.loads(
        json.dumps(section, ensure_ascii=False).encode("latin-1", "replace").decode("latin-1")
    )


@given(st.text('ab1{}[]=,"# \n\\', max_size=60))
def test_any_text_is_read_or_damaged(text: str) -> None:
    with suppress(Malformed):
        lvm_text.parsed(text.encode())
