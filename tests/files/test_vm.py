# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of file systems and logical volumes that not every machine's kernel has is what the
kernel shows there: ``make test-files``, in a VM.
"""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup_vm.files.answers import FileSystemError
from tests.conftest import elsewhere
from tests.files import foreign
from tests.files.kit import files_of, must_have
from tests.files.volumes import devices, lvm, partitioned


@contextmanager
def mounted(device: str, folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, device, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(60):
        below = folder / f"folder {number % 7}"
        below.mkdir(exist_ok=True)
        (below / f"file {number}").write_bytes(chance.randbytes(chance.randrange(200_000)))


def test_files_in_logical_volumes(tmp_path: Path) -> None:
    targets = subprocess.run(["dmsetup", "targets"], capture_output=True, text=True).stdout
    if "thin-pool" not in targets:
        elsewhere("this kernel has no thin pools; 'make test-files' boots one that has")
    image, mount, name = tmp_path / "image", tmp_path / "mount", "in-it"
    partitioned(image)
    with devices(image) as (first, second):
        lvm(tmp_path, "vgcreate", "-s", "1M", name, first, second)
        made = ("lvcreate", "-y", name)
        lvm(tmp_path, *made, "-L", "8M", "-n", "pieces", first)
        lvm(tmp_path, "lvextend", "-L", "+7M", f"{name}/pieces", second)
        lvm(tmp_path, *made, "-L", "12M", "-i", "2", "-I", "64", "-n", "striped")
        lvm(tmp_path, *made[:2], "-L", "12M", "-V", "8M", "-T", f"{name}/pool", "-n", "thin")
        try:
            for seed, volume in enumerate(("pieces", "striped"), 1):
                device = f"/dev/{name}/{volume}"
                subprocess.run(["mke2fs", "-q", "-t", "ext4", "-b", "1024", device], check=True)
                with mounted(device, mount):
                    fill(mount, seed)
                with mounted(device, mount, "-o", "ro"):
                    must_have(image, mount, partition=f"{name}/{volume}")
        finally:
            lvm(tmp_path, "vgchange", "-an", name)
    with pytest.raises(FileSystemError, match="several") as told, files_of(image):
        pass
    assert f"{name}/thin: LVM thin" in (told.value.hint or ""), told.value.hint


@pytest.mark.parametrize("form", [form for form in foreign.FORMS if "fat" in form])
def test_files_of_fat_and_exfat(form: str, tmp_path: Path) -> None:
    kind = "exfat" if form.startswith("exfat") else "vfat"
    options = ("-o", "loop,tz=UTC,utf8" if kind == "vfat" else "loop")
    image, mount = tmp_path / "image", tmp_path / "mount"
    foreign.made(image, form)
    probe = ["mount", "-t", kind, *options, image, mount]
    mount.mkdir()
    if subprocess.run(probe, capture_output=True).returncode:
        elsewhere(f"this kernel has no {kind}; 'make test-files' boots one that has")
    try:
        foreign.tree(mount, 60)
        foreign.in_pieces(mount)
    finally:
        subprocess.run(["umount", mount], check=True)
    with mounted(str(image), mount, "-t", kind, *options):
        must_have(image, mount)
