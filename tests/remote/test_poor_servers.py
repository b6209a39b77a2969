# SPDX-License-Identifier: GPL-2.0-or-later
"""SFTP servers that are not OpenSSH's, and lack what it has."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive.lease import Lease
from backup_vm.archive.storage import objects, open_storage
from backup_vm.errors import NoRoomError, SparsebakError
from tests.remote.kit import know

NAME, SESSION = "packs/ab/0123.pack", "volumes/cd/1.session"
Start = Callable[..., str]


@pytest.fixture
def start(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a server with its options; returns an archive's URL there. Its files are in
    ``tmp_path/root``.
    """
    monkeypatch.setenv("HOME", str(keys / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "DELAYS", (0.1, 0.2))
    (tmp_path / "root").mkdir()
    processes = []

    def begin(*words: str) -> str:
        command = [sys.executable, str(Path(__file__).with_name("sftp_server.py"))]
        process = subprocess.Popen(
            [*command, str(tmp_path / "root"), str(keys / "host"), *words], stdout=subprocess.PIPE
        )
        processes.append(process)
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        know(keys / "host.pub", keys / "home/.ssh/known_hosts", port)
        return f"sftp://me@127.0.0.1:{port}/archive"

    yield begin
    for process in processes:
        process.terminate()
        process.communicate()


def there(tmp_path: Path) -> list[str]:
    root = tmp_path / "root/archive"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "words",
    [(), ("posixrename=yes",), ("without=permissions",), ("without=permissions,size,times",)],
)
def test_a_life_on_a_poor_server(start: Start, tmp_path: Path, words: tuple[str, ...]) -> None:
    url = start(*words)
    storage, raw = open_storage(url), os.urandom(300_000)
    storage.prepare()
    assert storage.free() is None and storage.capacity() is None
    for text in (b"one", b"another"):
        storage.write("archive.toml", text)
    storage.write(NAME, raw)
    storage.write(SESSION, b"session")
    for one in (storage, open_storage(url)):
        assert one.read("archive.toml") == b"another" and one.size(NAME) == len(raw)
        assert one.reader(NAME).read(1000, 200_000) == raw[1000:201_000]
        assert one.local(SESSION).read_bytes() == b"session"
        assert one.names("packs", ".pack") == [NAME]
    storage.remove(SESSION)
    assert there(tmp_path) == ["archive.toml", NAME]


@pytest.mark.parametrize("word", ["posixrename=yes", "without=times"])
def test_what_replaces_a_session_within_a_second_is_seen_elsewhere(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Of the same size, where times are whole seconds, or are not told at all."""
    url = start(word)
    writer = open_storage(url)
    writer.write(SESSION, b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    there = open_storage(url)
    assert there.local(SESSION).read_bytes() == b"one"
    for text in (b"two", b"six"):
        writer.write(SESSION, text)
        there.refresh()
        assert there.local(SESSION).read_bytes() == text
        assert open_storage(url).local(SESSION).read_bytes() == text


def test_replacing_where_rename_cannot_and_is_cut(start: Start, tmp_path: Path) -> None:
    storage = open_storage(url := start("broken=archive.toml"))
    with pytest.raises(SparsebakError, match="refuses archive.toml"):
        storage.write("archive.toml", b"new at once")  # the very first rename fails
    assert there(tmp_path) == []
    storage.write("archive.toml", b"old")
    storage = open_storage(url := start("broken=archive.toml"))
    with pytest.raises(SparsebakError, match="refuses archive.toml"):
        storage.write("archive.toml", b"new")
    assert there(tmp_path) == ["archive.toml.whole"]
    again = open_storage(url)
    assert again.read("archive.toml") == b"new" and again.exists("archive.toml")
    again.clean()
    assert there(tmp_path) == ["archive.toml"] and again.read("archive.toml") == b"new"


def test_a_disk_that_is_full_there(start: Start, tmp_path: Path) -> None:
    storage = open_storage(url := start("quota=400000"))
    storage.write("archive.toml", b"x")
    for _ in range(2):
        with pytest.raises(SparsebakError, match="server's disk is likely full") as raised:
            storage.write(NAME, os.urandom(1_000_000))
        assert "network" not in raised.value.hint
    assert there(tmp_path) == ["archive.toml"]
    (tmp_path / "root/archive/packs/ab/left.pack.uploading").write_bytes(b"by a run that died")
    again = open_storage(url)
    again.clean()
    assert there(tmp_path) == ["archive.toml"] and again.names("packs", ".uploading") == []


def test_a_lease_where_it_is_full_and_has_no_hard_links(start: Start, tmp_path: Path) -> None:
    """One that was only begun for want of room keeps nobody away, least of all whoever began it."""
    storage, folder = open_storage(start("quota=1000")), tmp_path / "root/archive"
    (folder / "locks").mkdir(parents=True)
    (folder / "full").write_bytes(bytes(1000))
    with pytest.raises(NoRoomError, match="likely full"):
        Lease.acquire(storage.locks(), "PLACE", "backup")
    lease = Lease.acquire(storage.locks(), "PLACE", "prune", makes_room=True)
    lease.check()
    assert storage.locks().list() == {}
    with pytest.raises(NoRoomError, match="does not make the folder .*/packs") as raised:
        storage.write(NAME, b"x")
    assert "make room" in raised.value.hint
    (folder / "full").unlink()
    lease.check()
    assert list(storage.locks().list()) == ["writer-1"]
    lease.release()


def test_a_server_that_takes_few_connections(start: Start) -> None:
    storage = open_storage(start("connections=1"))
    names = [f"volumes/cd/{number}.session" for number in range(5)]
    for name in names:
        storage.write(name, name.encode())
    writers = [
        threading.Thread(target=storage.write, args=(f"{name}x.session", b"x")) for name in names
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(storage.names("volumes", ".session")) == 10


def test_names_that_lead_elsewhere(start: Start, tmp_path: Path) -> None:
    open_storage(start()).write(SESSION, b"session")
    there = open_storage(start("hostile=1"))
    assert there.names("volumes", ".session") == [SESSION]
    there.fetch(there.names("volumes", ".session"))
    assert not list(tmp_path.rglob("escaped*"))
