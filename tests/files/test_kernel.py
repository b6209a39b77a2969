# SPDX-License-Identifier: GPL-2.0-or-later
"""What is read of images by real mkfs is what the kernel's own mount shows."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from backup_vm.files.answers import FileSystemError
from backup_vm.files.copying import Copier
from tests.files import trees
from tests.files.kit import attributes_of, files_of, must_be_same, told

READ_ONLY = {"ext4": ["ro", "noload"], "ext3": ["ro", "noload"], "xfs": ["ro", "norecovery"]}


def read_only(form: str) -> list[str]:
    return READ_ONLY.get(form.partition("-")[0], ["ro"])


def copied(image: Path, target: Path, partition: int | None = None) -> None:
    with files_of(image, partition) as files:
        copier = Copier(files, lambda text: told(b"", text), True, lambda size: None)
        done = copier.copy(files.find(b"/"), target)
        assert not done.troubles and not done.left_out, done


@pytest.mark.parametrize("form", trees.FORMS)
def test_a_copy_of_all_files_is_what_the_kernel_shows(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    options = trees.made(image, form)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, 1500 if form in ("ext4", "xfs", "btrfs") else 300)
    copied(image, tmp_path / "out")
    with trees.mounted(image, *read_only(form)) as folder:
        # where tests run, there may be no room for attributes as large as XFS and Btrfs have them
        must_be_same(folder, tmp_path / "out", attributes=form in ("ext2", "ext3", "ext4"))
        with files_of(image) as files:
            for _, found in files.walk(files.find(b"/"), told):
                about = os.lstat(os.fsencode(folder) + found.path)
                assert found.stat.ctime == about.st_ctime_ns, found
                assert found.stat.links == about.st_nlink, found
                own = attributes_of(os.fsencode(folder) + found.path)
                assert files.attributes(found.node) == own, found


@pytest.mark.parametrize("options", [(), ("data=journal",)], ids=["ordered", "journaled"])
def test_what_is_only_in_the_journal_of_ext4_is_read(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    """The image is taken while it is mounted, as a snapshot of a qube that runs."""
    image, snapshot = tmp_path / "image", tmp_path / "snapshot"
    trees.made(image, "ext4")
    with trees.mounted(image, *options) as folder:
        trees.names(folder / "before")
        os.sync()
        trees.fill(folder, 200)
        for path in sorted((folder / "before").iterdir())[::2]:
            path.unlink()
        with open(folder / "last", "wb") as file:
            file.write(b"x" * 5000)
            os.fsync(file.fileno())
        shutil.copy(image, snapshot)
    copied(snapshot, tmp_path / "out")
    with trees.mounted(snapshot) as folder:  # the kernel replays the journal
        must_be_same(folder, tmp_path / "out")
    assert (tmp_path / "out" / "last").stat().st_size == 5000


def test_that_the_journal_of_xfs_is_not_replayed_is_said(tmp_path: Path) -> None:
    image, snapshot = tmp_path / "image", tmp_path / "snapshot"
    trees.made(image, "xfs")
    with trees.mounted(image) as folder:
        (folder / "new").write_bytes(b"new")
        os.sync()
        shutil.copy(image, snapshot)
    with files_of(snapshot) as files:
        assert "journal" in files.notes[0]
    with files_of(image) as files:
        assert not files.notes and files.find(b"/new").stat.size == 3


def test_subvolumes_and_snapshots_of_btrfs_are_folders(tmp_path: Path) -> None:
    image = tmp_path / "image"
    trees.made(image, "btrfs")
    with trees.mounted(image) as folder:
        for name in ("home", "home/inner"):
            subprocess.run(
                ["btrfs", "subvolume", "create", folder / name], check=True, capture_output=True
            )
        (folder / "home" / "inner" / "file").write_bytes(b"1")
        (folder / "home" / "other").write_bytes(b"2")
        subprocess.run(
            ["btrfs", "subvolume", "snapshot", folder / "home", folder / "before"],
            check=True,
            capture_output=True,
        )
        (folder / "home" / "other").write_bytes(b"3")
    copied(image, tmp_path / "out")
    with trees.mounted(image, "ro") as folder:
        must_be_same(folder, tmp_path / "out", times=False)
    assert (tmp_path / "out" / "before" / "other").read_bytes() == b"2"
    assert not list((tmp_path / "out" / "before" / "inner").iterdir())


@pytest.mark.parametrize("label", ["gpt", "msdos"])
def test_file_systems_are_found_in_partitions(label: str, tmp_path: Path) -> None:
    """As parted makes them; of msdos, one is a logical partition."""
    image, part = tmp_path / "image", tmp_path / "part"
    with open(image, "wb") as file:
        file.truncate(200 << 20)
    words = ["mkpart", "primary", "1MiB", "20MiB"]
    if label == "gpt":
        words += ["mkpart", "primary", "20MiB", "190MiB"]
        number = 2
    else:
        words += ["mkpart", "extended", "20MiB", "190MiB", "mkpart", "logical", "21MiB", "189MiB"]
        number = 5
    subprocess.run(["parted", "-s", image, "mklabel", label, *words], check=True)
    listed = subprocess.run(
        ["parted", "-ms", image, "unit", "B", "print"], check=True, capture_output=True, text=True
    )
    row = next(one for one in listed.stdout.splitlines() if one.startswith(f"{number}:"))
    start = int(row.split(":")[1].rstrip("B"))
    trees.made(part, "ext4")
    with trees.mounted(part) as folder:
        trees.names(folder / "names")
    with open(image, "r+b") as file:
        file.seek(start)
        file.write(part.read_bytes())
    copied(image, tmp_path / "out")
    copied(image, tmp_path / "again", number)
    with trees.mounted(part, "ro") as folder:
        must_be_same(folder, tmp_path / "out")
    with pytest.raises(FileSystemError, match="file system"), files_of(image, 1):
        pass
    with pytest.raises(FileSystemError, match="no partition 9"), files_of(image, 9):
        pass


def test_without_privileges_nothing_that_gives_rights_is_copied(tmp_path: Path) -> None:
    image = tmp_path / "image"
    trees.made(image, "ext4")
    with trees.mounted(image) as folder:
        trees.fill(folder, 50)
    with files_of(image) as files:
        copier = Copier(files, lambda text: told(b"", text), False, lambda size: None)
        assert copier.copy(files.find(b"/"), tmp_path / "out").left_out
    for path in (tmp_path / "out").rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert not mode & 0o7000 or stat.S_ISLNK(mode), path
        attributes = os.listxattr(path, follow_symlinks=False)
        assert all(one.startswith(("user.", "system.posix_acl")) for one in attributes), path
    assert not any((tmp_path / "out" / "devices").iterdir())
