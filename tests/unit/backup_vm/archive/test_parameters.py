# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive.toml that is malformed is refused as damage, whatever its checksum says."""

import os
from pathlib import Path

import pytest

from backup_vm.archive import parameters
from backup_vm.archive.damage import text_checksum
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError, NoArchiveError
from wire.slots import SLOT_SIZE

GOOD = parameters.Parameters(
    os.urandom(16), "usb", 1, 1 << 17, 1_795_000_000, (os.urandom(SLOT_SIZE),), os.urandom(32)
)


def changed(folder: Path, old: str, new: str) -> LocalStorage:
    storage = LocalStorage(folder)
    GOOD.save(storage)
    body = storage.read(parameters.NAME).decode().rpartition("checksum = ")[0]
    assert body.count(old) == 1
    body = body.replace(old, new)
    (folder / parameters.NAME).write_text(f'{body}checksum = "{text_checksum(body.encode())}"\n')
    return storage


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    GOOD.save(LocalStorage(tmp_path))
    assert parameters.load(LocalStorage(tmp_path)) == GOOD


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("chunk_size = 131072", "chunk_size = 131072.0"),
        ("chunk_size = 131072", "chunk_size = 131073"),
        ("suite = 1", "suite = true"),
        ("suite = 1", "suite = 1.0"),
        ("created = 1795000000", "created = -1"),
        ("created = 1795000000", "created = 253402300800"),
        ("created = 1795000000", 'created = "today"'),
        ("created = 1795000000", "made = 1795000000"),
        ('label = "usb"', "label = 3"),
        ('label = "usb"', 'label = "/"'),
        ('archive = "', 'archive = "00'),
        ('key = "', 'key = "00'),
        ('slots = ["', 'slots = ["00'),
        ('slots = ["', 'slots = [1, "'),
    ],
)
def test_what_makes_no_sense_is_damage(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(DamagedError, match=r"archive\.toml is malformed"):
        parameters.load(changed(tmp_path, old, new))


def test_a_file_nested_without_end_is_damage(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"archive\.toml is malformed"):
        parameters.load(changed(tmp_path, 'label = "usb"', "label = " + "[" * 60_000))
    with pytest.raises(DamagedError, match=r"archive\.toml is larger"):
        parameters.load(changed(tmp_path, "[" * 60_000, "[" * 100_000))


@pytest.mark.parametrize(("old", "new"), [("format = 2", "format = 3"), ("suite = 1", "suite = 3")])
def test_what_is_not_known_is_of_another_version(tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(NoArchiveError, match="does not know") as caught:
        parameters.load(changed(tmp_path, old, new))
    assert "or a newer one" in caught.value.hint


def test_an_archive_from_before_the_release_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(NoArchiveError, match="an archive of format 1, from before") as caught:
        parameters.load(changed(tmp_path, "format = 2", "format = 1"))
    assert "make a new archive" in caught.value.hint
