# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive's folder in which somebody put links, FIFOs, devices: nothing outside is touched, and
nothing waits.
"""

import gc
import os
import socket
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive.storage import LOCK
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError, SparsebakError

NAME = "packs/ab/" + "ab" * 16 + ".pack"
VOLUME = "00" * 16
SESSION = f"volumes/{VOLUME}/{1:010d}-{'01' * 16}.session"


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "victim")


def dangling(path: Path, outside: Path) -> None:
    path.symlink_to(outside / "new")


def hard_link(path: Path, outside: Path) -> None:
    os.link(outside / "victim", path)


def fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def listening(path: Path, outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)  # its path may be longer than a socket's can be
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


def folder(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


def device(path: Path, outside: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a device needs root")
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: without end


STRANGE = [link, dangling, fifo, listening, folder, device]


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    place = tmp_path / "outside"
    place.mkdir()
    (place / "victim").write_bytes(b"precious" * 10_000)
    return place


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "archive")
    storage.prepare()
    storage.write("archive.toml", b"x")
    return storage


def seen(place: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_blocks) for p in sorted(place.iterdir())}


@pytest.mark.parametrize("harm", STRANGE)
@pytest.mark.parametrize("name", ["archive.toml", NAME, SESSION, "volumes/x/1.partial"])
def test_what_is_no_regular_file_is_damage_with_its_name(
    storage: LocalStorage, outside: Path, harm: Callable[[Path, Path], None], name: str
) -> None:
    before = seen(outside)
    path = storage.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    harm(path, outside)
    for action in (
        storage.read,
        storage.open,
        storage.reader,
        storage.size,
        storage.allocated,
        storage.workspace.descriptor,
        storage.workspace.database,
        storage.local,
        lambda name: storage.punch(name, [(0, 4096)]),
    ):
        with pytest.raises(DamagedError, match=path.name):
            action(name)
    assert storage.exists(name)
    if harm is not folder:
        storage.write(name, b"new")  # what is replaced is the name, not what it leads to
        assert storage.read(name) == b"new" and path.lstat().st_nlink == 1
        storage.remove(name)
        assert not storage.exists(name)
    assert seen(outside) == before


@pytest.mark.parametrize("harm", [*STRANGE, hard_link])
def test_a_temporary_file_is_never_one_that_is_there(
    storage: LocalStorage, outside: Path, harm: Callable[[Path, Path], None]
) -> None:
    before = seen(outside)
    for name in (NAME, "notes.json"):
        path = storage.root / (name + ".tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        harm(path, outside)
        if harm is folder:
            with pytest.raises((SparsebakError, OSError), match=path.stem):
                storage.write(name, b"new")
            continue
        new = storage.create(name)
        new.write(b"new")
        new.finish()
        assert storage.read(name) == b"new"
        harm(path, outside)
        storage.write(name, b"newer")
        assert storage.read(name) == b"newer"
    assert seen(outside) == before


@pytest.mark.parametrize("harm", [*STRANGE, hard_link])
def test_a_lock_is_no_other_file(
    storage: LocalStorage, outside: Path, harm: Callable[[Path, Path], None]
) -> None:
    before = seen(outside)
    harm(storage.root / LOCK, outside)
    if harm is folder:
        with pytest.raises(DamagedError, match=LOCK):
            storage.workspace.lock(shared=False)
        return
    fd = storage.workspace.lock(shared=False)
    assert fd is not None and stat.S_ISREG((storage.root / LOCK).lstat().st_mode)
    with pytest.raises(SparsebakError, match="in use"):
        storage.workspace.lock(shared=True)
    os.close(fd)
    assert seen(outside) == before


@pytest.mark.parametrize("upto", ["packs", "packs/ab"])
def test_folders_that_are_links_are_not_gone_through(
    storage: LocalStorage, outside: Path, upto: str
) -> None:
    (outside / "ab").mkdir()
    inside = outside / ("ab" if upto == "packs" else "") / Path(NAME).name
    inside.write_bytes(b"somebody's")
    (storage.root / upto).parent.mkdir(exist_ok=True)
    (storage.root / upto).symlink_to(outside)
    for action in (storage.read, storage.size, storage.remove, storage.create, storage.write):
        with pytest.raises(DamagedError, match="behind a link"):
            action(NAME)
    assert inside.read_bytes() == b"somebody's"
    if upto == "packs/ab":
        assert storage.names("packs", ".pack") == []


def test_a_file_where_a_folder_belongs_is_called_so(storage: LocalStorage) -> None:
    (storage.root / "packs").write_text("")
    with pytest.raises(DamagedError, match="packs is a file where a folder belongs"):
        storage.names("packs", ".pack")
    with pytest.raises(DamagedError, match="is in something that is not a folder"):
        storage.read(NAME)


def test_a_volume_behind_a_link_has_sessions_that_cannot_be_read(
    storage: LocalStorage, outside: Path
) -> None:
    storage.write(SESSION, b"session")
    other = SESSION.replace(VOLUME, "11" * 16)
    (outside / Path(other).name).write_bytes(b"moved")
    (storage.root / other).parent.symlink_to(outside)
    first, second = storage.names("volumes", ".session")
    assert first == SESSION and second.startswith(f"volumes/{'11' * 16}/")
    with pytest.raises(DamagedError, match="behind a link"):
        storage.read(second)
    assert storage.sizes("volumes") == {first: 7, second: -1}
    assert storage.names("volumes", ".partial") == []


@pytest.mark.parametrize(
    "name", ["", "/", "..", "../victim", "a/../../victim", "a//b", "./a", "/etc/passwd", "a/"]
)
def test_names_that_lead_out(storage: LocalStorage, name: str) -> None:
    for action in (storage.read, storage.exists, storage.create, storage.remove):
        with pytest.raises(DamagedError):
            action(name)


def test_the_archive_itself_may_be_behind_a_link(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "short").symlink_to(storage.root)
    there = LocalStorage(tmp_path / "short")
    there.write(NAME, b"pack")
    assert storage.read(NAME) == b"pack" and there.names("packs", ".pack") == [NAME]


def test_holes_are_not_punched_into_what_has_another_name(
    storage: LocalStorage, tmp_path: Path
) -> None:
    storage.write(NAME, bytes(100_000))
    os.link(storage.root / NAME, tmp_path / "copy by hard links")
    assert storage.punch(NAME, [(0, 65536)]) is False
    assert storage.allocated(NAME) >= 100_000
    os.unlink(tmp_path / "copy by hard links")
    assert storage.punch(NAME, [(0, 65536)]) is True
    assert storage.allocated(NAME) < 100_000


def test_what_is_read_whole_has_a_limit(storage: LocalStorage) -> None:
    storage.write("archive.toml", bytes(5000))
    assert len(storage.read("archive.toml", 5000)) == 5000
    with pytest.raises(DamagedError, match="larger"):
        storage.read("archive.toml", 4999)
    os.truncate(storage.root / "archive.toml", 1 << 40)
    with pytest.raises(DamagedError, match="larger"):
        storage.read("archive.toml")


def test_databases_that_sqlite_is_not_let_near(storage: LocalStorage, outside: Path) -> None:
    path = storage.workspace.database("catalog.sqlite")
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE t (x)")
    db.commit()
    assert storage.workspace.database("catalog.sqlite") == path
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("INSERT INTO t VALUES (1)")
    db.commit()
    with pytest.raises(DamagedError, match="WAL|not ours"):
        storage.workspace.database("catalog.sqlite")
    db.close()
    with pytest.raises(DamagedError, match="WAL"):
        storage.workspace.database("catalog.sqlite")
    storage.workspace.discard("catalog.sqlite")
    assert not path.exists()
    for suffix in ("", "-journal", "-wal", "-shm"):
        for harm in (link, fifo, hard_link, folder):
            harm(storage.root / ("catalog.sqlite" + suffix), outside)
            with pytest.raises(DamagedError):
                storage.workspace.database("catalog.sqlite")
            storage.workspace.discard("catalog.sqlite")
            assert storage.workspace.database("catalog.sqlite") == path
    assert list(seen(outside)) == ["victim"]
    kept = [p for p in storage.root.iterdir() if ".foreign-" in p.name]
    assert len(kept) == 4 and all((p / "inside").exists() for p in kept)


def test_a_journal_that_names_a_file_outside(storage: LocalStorage, outside: Path) -> None:
    """SQLite itself would remove the file that a hot journal names as the one above it."""
    path = storage.workspace.database("catalog.sqlite")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=PERSIST")
    db.execute("CREATE TABLE t (x)")
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    db.execute("PRAGMA cache_spill=1")
    db.execute("PRAGMA cache_size=1")
    db.execute("INSERT INTO t VALUES (zeroblob(100000))")
    database, journal = path.read_bytes(), Path(f"{path}-journal").read_bytes()
    db.close()
    victim = str(outside / "victim").encode()
    record = (1).to_bytes(4, "big") + victim + len(victim).to_bytes(4, "big")
    record += sum(victim).to_bytes(4, "big") + bytes.fromhex("d9d505f920a163d7")
    path.write_bytes(database)
    Path(f"{path}-journal").write_bytes(journal + record)
    with pytest.raises(DamagedError, match="another journal"):
        storage.workspace.database("catalog.sqlite")
    storage.workspace.discard("catalog.sqlite")
    assert storage.workspace.database("catalog.sqlite") == path and (outside / "victim").exists()


def test_a_folder_that_is_swapped_all_the_time(tmp_path: Path, outside: Path) -> None:
    """Whoever can write to the disk changes it between our looks, too."""
    storage = LocalStorage(tmp_path / "archive")
    storage.prepare()
    storage.write(NAME, b"ours")
    real, other, done = storage.root / "packs/ab", tmp_path / "kept", threading.Event()
    (outside / Path(NAME).name).write_bytes(b"theirs")

    def swap() -> None:
        while not done.is_set():
            real.rename(other)
            real.symlink_to(outside)
            real.unlink()
            other.rename(real)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        beneath = Beneath(storage.root)
        for _ in range(1000):
            try:
                fd = beneath.open(NAME)
            except (DamagedError, FileNotFoundError):
                continue
            assert os.read(fd, 10) == b"ours"
            os.close(fd)
    finally:
        done.set()
        thread.join()


def test_an_archive_that_nobody_uses_lets_go_of_its_folder(tmp_path: Path) -> None:
    """A disk is unmounted after a run that died of an error, too, without waiting for garbage."""
    storage = LocalStorage(tmp_path)
    storage.write("archive.toml", b"x")
    held = storage.workspace.descriptor("lock", create=True)
    os.close(held)
    gc.disable()
    try:
        del storage
        open_ones = {os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors()}
    finally:
        gc.enable()
    assert str(tmp_path) not in open_ones


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
