# SPDX-License-Identifier: GPL-2.0-or-later
"""``mount --files``: what it shows is what the kernel's own mount shows; and what hostile images,
damage and signals do to it.
"""

import errno
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backup_vm.files.answers import Extents
from tests.commands import Commands
from tests.conftest import cannot
from tests.files import trees
from tests.files.kit import all_below, attributes_of, must_be_same
from tests.files.test_kernel import read_only
from tests.patience import AT_ONCE, PATIENCE

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent
SHOW = """
import sys
from backup_vm.jobs import file_tree
from backup_vm.jobs.libfuse import mfusepy
from backup_vm.jobs.mount import Shown
from tests.files.kit import ImageFile

image = ImageFile(sys.argv[1])
shown = Shown("now", image.size, 0, lambda: image)
tree = file_tree.FileTree({"qube/private": [shown]}, None, lambda text: print(text, flush=True))
try:
    mfusepy.FUSE(tree, sys.argv[2], foreground=True, ro=True, **file_tree.KERNEL)
except RuntimeError:  # a signal
    tree.end()
"""


@contextmanager
def shown(folder: Path, *command: object, code: int = 0) -> Iterator["subprocess.Popen[str]"]:
    """A process that mounts on a folder, until a signal ends it."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("mounting needs root and /dev/fuse")
    folder.mkdir(exist_ok=True)
    words = [str(word) for word in command]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        end = time.monotonic() + PATIENCE
        while not os.path.ismount(folder):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        yield process
    finally:
        begun = time.monotonic()
        process.terminate()
        _, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err, err
        assert process.returncode == code and time.monotonic() - begun < AT_ONCE, err
        assert not os.path.ismount(folder)


@contextmanager
def files_of(image: Path, folder: Path) -> Iterator[Path]:
    with shown(folder, sys.executable, "-c", SHOW, image, folder):
        yield folder / "qube/private/now"


@pytest.mark.parametrize("form", ["ext4", "xfs", "btrfs"])
def test_it_shows_what_the_kernel_shows(form: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    options = trees.made(image, form)
    with trees.mounted(image, *options) as folder:
        trees.fill(folder, 300)
    with (
        files_of(image, tmp_path / "files") as files,
        trees.mounted(image, *read_only(form)) as folder,
    ):
        must_be_same(folder, files, attributes=False, holes=False)
        mine, own = os.fsencode(files), os.fsencode(folder)
        inodes: dict[int, set[int]] = {}
        for path in all_below(own):
            about, other = os.lstat(own + path), os.lstat(mine + path)
            assert about.st_ctime_ns == other.st_ctime_ns and about.st_nlink == other.st_nlink
            inodes.setdefault(about.st_ino, set()).add(other.st_ino)
            if stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode):
                assert attributes_of(mine + path) == attributes_of(own + path)
        assert all(len(names) == 1 for names in inodes.values())
        with pytest.raises(OSError) as caught:
            (files / "new").write_bytes(b"")
        assert caught.value.errno == errno.EROFS
        assert not (files / "nothing").exists() and not (files.parent / "other").exists()


def test_pieces_of_a_file_anywhere(tmp_path: Path) -> None:
    """Also of one with holes."""
    image, chance = tmp_path / "image", random.Random(1)
    options = trees.made(image, "ext4")
    raw = bytearray(3 << 20)
    with trees.mounted(image, *options) as folder, open(folder / "file", "wb") as file:
        file.truncate(len(raw))
        for _ in range(60):
            at, data = chance.randrange(len(raw) - 9000), chance.randbytes(8192)
            raw[at : at + 8192] = data
            file.seek(at)
            file.write(data)
    with files_of(image, tmp_path / "files") as files:
        with open(files / "file", "rb", buffering=0) as file:
            for _ in range(300):
                at, length = chance.randrange(len(raw) + 5000), chance.randrange(1, 70_000)
                assert os.pread(file.fileno(), length, at) == bytes(raw[at : at + length])
        assert (files / "file").read_bytes() == bytes(raw)


def test_extents_are_found_by_where_they_are() -> None:
    chance = random.Random(1)
    for _ in range(300):
        found, at = Extents(), 0
        for _ in range(chance.randrange(6)):
            at += chance.randrange(3)
            length = chance.randrange(1, 4)
            found.add(at, length, at)
            at += length
        for low in range(22):
            for high in range(low + 1, 23):
                wanted = [one for one in found if one[0] < high and one[0] + one[1] > low]
                assert list(found.within(low, high)) == wanted


def test_many_names_and_a_signal_while_they_are_listed(tmp_path: Path) -> None:
    """More than are kept in memory; each has its turn once, and listing goes by offsets."""
    image = tmp_path / "image"
    options = trees.made(image, "ext4")
    wanted = {f"{number:06}" for number in range(2000)}
    with trees.mounted(image, *options) as folder:
        for name in wanted:
            (folder / name).touch()
    show = SHOW.replace(
        "image = ", "from backup_vm.files import listing\nlisting.FEW = 300\nimage = "
    )
    with shown(tmp_path / "files", sys.executable, "-c", show, image, tmp_path / "files"):
        found = os.listdir(tmp_path / "files/qube/private/now")
        assert len(found) == len(wanted) + 1 and {*found} == wanted | {"lost+found"}
        names = iter(os.scandir(tmp_path / "files/qube/private/now"))
        assert next(names).name in {*found}


def test_what_is_hostile_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    """A folder within itself, and a name that no file can have."""
    image = tmp_path / "image"
    options = trees.made(image, "ext2")
    with trees.mounted(image, *options) as folder:
        (folder / "outer/inner").mkdir(parents=True)
        (folder / "sound").write_bytes(b"sound")
        (folder / "bad").mkdir()
        (folder / "bad/name").touch()
    for request in ("link outer outer/inner/outer", "link / outer/inner/root"):
        subprocess.run(["debugfs", "-w", "-R", request, image], check=True, capture_output=True)
    raw = image.read_bytes()
    at = raw.index(b"name", raw.index(b"sound"))
    image.write_bytes(raw[:at] + b"n/me" + raw[at + 4 :])
    with files_of(image, tmp_path / "files") as files:
        assert {"outer", "sound", "bad"} <= {*os.listdir(files)}
        assert (files / "sound").read_bytes() == b"sound"
        for loop in ("outer/inner/outer", "outer/inner/root"):
            with pytest.raises(OSError) as caught:
                os.stat(files / loop)
            assert caught.value.errno == errno.ELOOP
        with pytest.raises(OSError) as caught:
            os.listdir(files / "bad")
        assert caught.value.errno == errno.EIO
        assert len(all_below(os.fsencode(files))) < 10  # a walk ends


@pytest.fixture
def two(commands: Commands) -> Commands:
    """Two volumes; of the first two sessions, of the second nothing that can be read."""
    site = commands.site
    for text in ("first", "second"):
        trees.made(site.image(), "ext4")
        with trees.mounted(site.image()) as folder:
            (folder / "letter").write_text(text)
            (folder / "secret").write_text(text)
            (folder / "secret").chmod(0o600)
        site.backup()
    return commands


def mount(commands: Commands, *words: object) -> tuple[object, ...]:
    key = ("--passphrase-file", commands.passphrase)
    return (BIN / "sparsebak", "--archive", commands.site.archive, "mount", *words, *key, "--files")


def test_sessions_are_folders(two: Commands) -> None:
    folder, names = two.site.root / "files", list(two.site.images())
    for volume in ("work/private", "all"):
        with shown(folder, *mount(two, volume, folder)):
            assert os.listdir(folder) == ["work"] and os.listdir(folder / "work") == ["private"]
            there = folder / "work/private"
            assert sorted(os.listdir(there)) == names
            assert [(there / n / "letter").read_text() for n in names] == ["first", "second"]
    with shown(folder, *mount(two, "work/private", folder, "--session", "latest", "--allow-other")):
        assert os.listdir(folder / "work/private") == names[-1:]
        there = folder / "work/private" / names[-1]

        def read(name: str) -> "subprocess.CompletedProcess[bytes]":
            # which goes there as root, for nobody else may
            return subprocess.run(
                ["cat", name], cwd=there, capture_output=True, check=False,
                user="nobody", group=65534, extra_groups=[],
            )  # fmt: skip

        assert read("letter").stdout == b"second" and read("secret").returncode == 1


def test_the_options_of_files(two: Commands) -> None:
    (two.site.root / "empty").mkdir()
    words = ("mount", "work/private", str(two.site.root / "empty"))
    key = ("--passphrase-file", str(two.passphrase))
    assert "--partition is for --files" in two.fails(2, *words, *key, "--partition", "1")
    assert "no volume" in two.fails(1, "mount", "all", words[2], *key)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_also_while_the_child_is_busy(two: Commands, end: signal.Signals) -> None:
    folder, name = two.site.root / "files", next(iter(two.site.images()))
    with shown(folder, *mount(two, "work/private", folder)) as process:
        assert (folder / "work/private" / name / "letter").read_text() == "first"
        listed = Path(f"/proc/{process.pid}/task").glob("*/children")
        (child,) = {int(pid) for one in listed for pid in one.read_text().split()}
        os.kill(child, signal.SIGSTOP)  # as one that computes for a minute
        unread = folder / "work/private" / name / "secret"
        other = subprocess.Popen(["cat", unread], stderr=subprocess.DEVNULL)
        time.sleep(0.3)
        process.send_signal(end)
        process.wait(PATIENCE)
        assert other.wait(PATIENCE) != 0
    assert not os.path.ismount(folder)
