# SPDX-License-Identifier: GPL-2.0-or-later
"""Files in logical volumes of an image, as LVM's own programs make and describe them."""

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.files import checking
from backup_vm.files.answers import FileSystemError, Part
from backup_vm.files.readers import lvm_text
from backup_vm.files.readers.source import Malformed
from tests.conftest import cannot
from tests.files import foreign
from tests.files.kit import files_of, must_have

MIB = 1 << 20
PARTS = ((1, 40), (41, 50))
"""Where both partitions are that have physical volumes, and their sizes, in MiB."""
CONFIG = """
devices {{ use_devicesfile = 0 scan = [ "/dev" ] scan_lvs = 0 }}
devices {{ filter = [ "a|^{0}$|", "a|^{1}$|", "r|.*|" ] }}
global {{ locking_dir = "{folder}/lock" use_lvmpolld = 0 {more} }}
activation {{ udev_sync = 0 udev_rules = 0 verify_udev_operations = 0 monitoring = 0 }}
backup {{ backup = 0 archive = 0 }}
"""


def partitioned(image: Path) -> None:
    """As an MBR has it."""
    rows = b"".join(
        struct.pack("<4xB3xII", 0x8E, start * 2048, size * 2048) for start, size in PARTS
    )
    image.write_bytes(bytes(446) + rows.ljust(64, b"\0") + b"\x55\xaa")
    os.truncate(image, sum(PARTS[-1]) * MIB)


@contextmanager
def devices(image: Path, more: str = "") -> Iterator[list[str]]:
    """Both partitions as block devices, of which alone LVM knows."""
    if os.geteuid() != 0:
        cannot("LVM needs root")
    found = []
    try:
        for start, size in PARTS:
            words = ["--offset", str(start * MIB), "--sizelimit", str(size * MIB)]
            command = ["losetup", "--find", "--show", *words, image]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(done.stdout.strip())
        (image.parent / "lvm.conf").write_text(
            CONFIG.format(*found, folder=image.parent, more=more)
        )
        yield found
    finally:
        for device in found:
            subprocess.run(["losetup", "--detach", device], check=True)


def lvm(folder: Path, *words: str) -> str:
    environment = os.environ | {"LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
    done = subprocess.run(["lvm", *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> tuple[Path, Path]:
    """An image whose logical volumes have a file system, put where LVM says that they are; and the
    folder with its files.
    """
    image, root, system = tmp_path / "image", tmp_path / "root", tmp_path / "system"
    foreign.tree(root, 40)
    (root / "times" / "at4107542400").unlink()  # mkfs writes none after 2038
    foreign.run("mkfs.ext4", "-q", "-b", "1024", "-d", root, system, "12M")
    partitioned(image)
    # without the kernel: no volume is there to be written to
    with devices(image, "activation = 0") as (first, second):
        lvm(tmp_path, "vgcreate", "-s", "1M", "in-it", first, second)
        made = ("lvcreate", "-an", "-Zn", "-Wn", "-y", "in-it")
        lvm(tmp_path, *made, "-L", "5M", "-n", "pieces", second)
        lvm(tmp_path, "lvextend", "-L", "+7M", "in-it/pieces", first)
        lvm(tmp_path, *made, "-L", "12M", "-i", "2", "-I", "64", "-n", "striped")
        words = ("--units", "b", "--nosuffix", "--reportformat", "json", "-o")
        columns = "seg_start_pe,seg_pe_ranges,stripe_size"
        (report,) = json.loads(lvm(tmp_path, "lvs", "--segments", *words, columns))["report"]
        (other,) = json.loads(lvm(tmp_path, "pvs", *words, "pe_start"))["report"]
    where = dict(zip((first, second), PARTS, strict=True))
    begin, contents = int(other["pv"][0]["pe_start"]), system.read_bytes()
    with open(image, "r+b") as file:
        for row in report["seg"]:
            places, extents = [], 0
            for one in row["seg_pe_ranges"].split():
                device, low, high = one.replace(":", "-").split("-")
                places.append((where[device][0] + int(low)) * MIB + begin)
                extents = int(high) - int(low) + 1
            at, step = int(row["seg_start_pe"]) * MIB, int(row["stripe_size"]) or extents * MIB
            for turn in range(extents * MIB // step):
                for place in places:
                    file.seek(place + turn * step)
                    file.write(contents[at : at + step])
                    at += step
    return image, root


def test_files_are_read_where_lvm_says_that_they_are(disk: tuple[Path, Path]) -> None:
    image, root = disk
    with pytest.raises(FileSystemError, match="several") as told, files_of(image):
        pass
    for what in ("1: LVM", "2: LVM", "in-it/pieces: ext4", "in-it/striped: ext4"):
        assert what in (told.value.hint or ""), told.value.hint
    for name in ("pieces", "striped"):
        must_have(image, root, 10**9, partition=f"in-it/{name}", apart=("lost+found",))


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
