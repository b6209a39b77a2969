# SPDX-License-Identifier: GPL-2.0-or-later
"""What this machine keeps of a remote archive is used only where it is sound and ours; and stores
that lie, after restic's.
"""

import errno
import multiprocessing
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import partial
from backup_vm.archive.storage import WHOLE, objects
from backup_vm.archive.storage.blocks import Blocks
from backup_vm.archive.storage.cache import Cache
from backup_vm.archive.storage.objects import Entry, Unreachable
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.errors import DamagedError, SparsebakError
from tests.remote.stores import Lying

NAME, TEXT = "volumes/cd/0000000001-ab.session", b"a session of some length"
URL = "s3://bucket/lies"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "DELAYS", (0.0,) * 4)


@pytest.fixture
def lying(tmp_path: Path) -> Lying:
    made = Lying(tmp_path / "store")
    RemoteStorage(URL, made).write(NAME, TEXT)
    return made


def the_copy(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "cache").rglob("*.session@*")
    return found


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[5] ^= 1
    path.write_bytes(raw)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "full").touch()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


HARMS: list[Callable[[Path], object]] = [
    flip,
    folder,
    fifo,
    link,
    lambda path: path.write_bytes(TEXT[:5]),
    lambda path: path.write_bytes(b""),
    lambda path: path.unlink(),
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_copy_that_is_no_copy_is_fetched_again(
    lying: Lying, tmp_path: Path, harm: Callable[[Path], object]
) -> None:
    storage = RemoteStorage(URL, lying)
    assert storage.local(NAME).read_bytes() == TEXT and lying.gets == 0
    harm(the_copy(tmp_path))
    for expected in (1, 1):
        assert RemoteStorage(URL, lying).local(NAME).read_bytes() == TEXT
        assert lying.gets == expected, "fetched once, and sound then"


def test_what_is_cut_in_the_middle_is_no_copy(
    lying: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    the_copy(tmp_path).unlink()

    def cut(name: str, entry: Entry, target: Path) -> None:
        target.write_bytes(TEXT[:9])
        if failures:
            raise failures.pop()

    failures: list[Exception] = [Unreachable("cut")] * 2
    with monkeypatch.context() as patch:
        patch.setattr(lying, "get", cut)
        with pytest.raises(SparsebakError, match="received incompletely"):
            RemoteStorage(URL, lying).local(NAME)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not any(path.stat().st_size == 9 for path in files)
    assert RemoteStorage(URL, lying).local(NAME).read_bytes() == TEXT


def test_a_large_file_that_is_no_session_is_not_fetched(lying: Lying, tmp_path: Path) -> None:
    """As large as somebody likes: it would fill this machine's disk, and keep every command
    waiting.
    """
    for number in (2, 3):
        path = lying.folder / f"volumes/cd/000000000{number}-ab.session"
        path.touch()
        os.truncate(path, 3 << 20)
    storage = RemoteStorage(URL, lying)
    storage.fetch(storage.names("volumes", ".session"))
    assert lying.gets == 0
    with pytest.raises(DamagedError, match="damaged"):
        storage.local("volumes/cd/0000000002-ab.session")
    assert storage.local(NAME).read_bytes() == TEXT


def test_an_unfinished_session_that_cannot_be_had_is_left_alone(lying: Lying) -> None:
    volume, names = f"volumes/{'ab' * 16}", [f"{n:032x}-{n:08x}.unfinished" for n in (1, 2, 3)]
    for name in names:
        RemoteStorage(URL, lying).write(f"{volume}/{name}", name.encode())
    storage = RemoteStorage(URL, lying)
    os.truncate(lying.folder / volume / names[0], WHOLE + 1)
    (lying.folder / volume / names[1]).unlink()
    for fresh in (True, False):  # as it was listed, and as it is
        if not fresh:
            storage.refresh()
        partial.adopt(storage)
    (found,) = storage.workspace.names("volumes", ".partial")
    assert storage.workspace.read(found) == names[2].encode()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_can_be_done_without(
    lying: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    the_copy(tmp_path).unlink()
    made = Cache(URL)

    import tempfile

    real = tempfile.mkstemp

    def fails(*words: object, dir: Path, **named: object) -> tuple[int, str]:  # noqa: A002
        if str(tmp_path) in str(dir):
            raise OSError(number, os.strerror(number))
        return real(dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", fails)
    storage = RemoteStorage(URL, lying)
    path = storage.local(NAME)
    assert path.read_bytes() == TEXT and made.root not in path.parents
    with pytest.raises(SparsebakError, match="cache .* cannot be written") as raised:
        storage.write("archive.toml", b"x")
    assert "XDG_CACHE_HOME" in raised.value.hint


def test_without_a_home(lying: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")

    def nobody(*_: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    storage = RemoteStorage(URL, lying)
    assert storage.local(NAME).read_bytes() == TEXT
    lock = storage.workspace.lock(shared=True)
    assert lock is not None
    os.close(lock)


def test_a_cache_that_others_can_write_is_not_used(lying: Lying, tmp_path: Path) -> None:
    root = Cache(URL).root
    root.chmod(0o777)
    assert Cache(URL).root != root
    root.chmod(0o700)
    assert Cache(URL).root == root
    if os.geteuid() == 0:
        os.chown(root, 65534, 65534)
        assert Cache(URL).root != root


def _reads(folder: Path, times: int) -> None:
    for _ in range(times):
        for copy in (folder.parent / "cache").rglob("*.session@*"):
            copy.unlink(missing_ok=True)
        storage = RemoteStorage(URL, Lying(folder))
        storage.fetch(storage.names("volumes", ".session"))
        for number in range(5):
            found = storage.read(f"volumes/cd/{number}.session")
            assert found == b"%d" % number * 1000


def test_two_processes_at_once(tmp_path: Path) -> None:
    storage = RemoteStorage(URL, Lying(tmp_path / "store"))
    for number in range(5):
        storage.write(f"volumes/cd/{number}.session", b"%d" % number * 1000)
    spawning = multiprocessing.get_context("fork")
    both = [spawning.Process(target=_reads, args=(tmp_path / "store", 20)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]


def test_a_store_that_fails_now_and_then(lying: Lying) -> None:
    storage, rng = RemoteStorage(URL, lying), random.Random(2)
    for number in range(30):
        lying.fails, lying.short = rng.randrange(4), rng.randrange(2)
        storage.write(f"packs/ab/{number}.pack", b"%d" % number)
        lying.fails = rng.randrange(4)
        assert storage.read(f"packs/ab/{number}.pack") == b"%d" % number
    lying.fails = 100
    with pytest.raises(SparsebakError, match="cannot be reached"):
        storage.read("packs/ab/1.pack")
    lying.fails = 0
    reader = storage.reader("packs/ab/1.pack")
    assert reader.read(0, 1) == b"1"


def test_what_another_machine_changes_is_found(lying: Lying) -> None:
    here, there = RemoteStorage(URL, lying), RemoteStorage(URL, lying)
    here.write("archive.toml", b"old")
    assert there.read("archive.toml") == b"old"
    here.write("archive.toml", b"new, and longer")
    assert there.read("archive.toml") == b"new, and longer"
    here.write("packs/ab/1.pack", b"pack")
    assert not there.exists("packs/ab/1.pack")
    there.refresh()
    assert there.exists("packs/ab/1.pack")
    here.remove("packs/ab/1.pack", NAME)
    lists = lying.lists
    for _ in range(3):
        with pytest.raises(FileNotFoundError, match="is missing"):
            there.read("packs/ab/1.pack")
    assert lying.lists == lists + 1, "one more listing for what is missing"
    assert there.names("volumes", ".session") == []


def test_listings_that_come_late(lying: Lying) -> None:
    storage = RemoteStorage(URL, lying)
    storage.write("packs/ab/1.pack", b"one")
    lying.freeze()
    storage.write("packs/ab/2.pack", b"two")
    storage.remove("packs/ab/1.pack")
    storage.refresh()
    assert storage.names("packs", ".pack") == ["packs/ab/2.pack"]
    assert storage.read("packs/ab/2.pack") == b"two"


def test_a_failed_block_is_not_kept(lying: Lying) -> None:
    storage = RemoteStorage(URL, lying)
    raw = os.urandom(5 << 20)
    storage.write("packs/ab/1.pack", raw)
    reader = storage.reader("packs/ab/1.pack")
    lying.fails = 100
    with pytest.raises(SparsebakError):
        reader.read(0, 1000)
    lying.fails = 0
    assert b"".join(reader.read(at, 1 << 16) for at in range(0, len(raw), 1 << 16)) == raw


def test_a_block_whose_reading_ahead_failed_is_asked_for_again() -> None:
    asked, begun = list[int](), threading.Event()

    def fetch(name: str, entry: Entry, offset: int, length: int) -> bytes:
        asked.append(offset)
        if offset and asked.count(offset) == 1:
            begun.wait()
            raise SparsebakError("the place cannot be reached")
        return b"block"

    blocks, entry = Blocks(fetch), Entry(1, "one")
    assert blocks.get("a", entry, 0) == b"block"
    threading.Timer(0.05, begun.set).start()
    assert blocks.get("a", entry, 1) == b"block" and asked.count(asked[1]) == 2
