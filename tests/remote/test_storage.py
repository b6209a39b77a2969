# SPDX-License-Identifier: GPL-2.0-or-later
"""One suite for every kind of storage: what is written is there, whole or not at all, and gone when
removed.
"""

import contextlib
import os
import random
import threading
import time
from pathlib import Path

import pytest

from backup_vm.archive.lease import Lease
from backup_vm.archive.storage import Storage, open_storage
from backup_vm.errors import LockedError, SparsebakError, UsageError
from tests.remote.kit import Server

HALF = "packs/ab/0123.pack"


@pytest.fixture(params=["local", "s3", "sftp"])
def location(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "local":
        return str(tmp_path / "archive")
    server: Server = request.getfixturevalue(request.param)
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server.url(f"storage-{tmp_path.name}-{random.randrange(1 << 40)}")


@pytest.fixture
def storage(location: str) -> Storage:
    storage = open_storage(location)
    storage.prepare()
    return storage


def test_files_are_written_listed_read_and_removed(storage: Storage, location: str) -> None:
    raw = os.urandom(5_000_000)
    new = storage.create(HALF)
    new.write(raw[:100], raw[100:])
    assert not storage.exists(HALF) and new.size == len(raw)
    new.finish()
    storage.write("archive.toml", b"one", b"two")
    storage.write("volumes/cd/1.session", b"session")
    for one in (storage, open_storage(location)):
        assert one.exists(HALF) and one.size(HALF) == len(raw) and one.allocated(HALF) >= len(raw)
        assert one.read("archive.toml") == b"onetwo"
        assert one.names("packs", ".pack") == [HALF] and one.names("volumes", ".session") == [
            "volumes/cd/1.session"
        ]
        assert one.local("volumes/cd/1.session").read_bytes() == b"session"
        assert HALF in one.describe(HALF)
        reader, rng = one.reader(HALF), random.Random(1)
        for _ in range(30):
            at, length = rng.randrange(len(raw)), rng.randrange(1, 300_000)
            assert reader.read(at, length) == raw[at : at + length]
        together = b"".join(reader.read(at, 60_000) for at in range(0, len(raw), 60_000))
        assert together == raw and reader.read(len(raw), 10) == b""
        reader.close()
    storage.remove(HALF, "volumes/cd/1.session", "never/was/there")
    for one in (storage, open_storage(location)):
        assert not one.exists(HALF) and one.names("packs", ".pack") == []
        with pytest.raises(FileNotFoundError):
            one.reader(HALF)
        with pytest.raises(FileNotFoundError):
            one.read("volumes/cd/1.session")


def test_a_file_that_is_replaced_is_read_anew_everywhere(
    storage: Storage, location: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "volumes/cd/1.session"
    storage.write(name, b"old contents")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    there = open_storage(location)
    there.fetch([name])
    assert there.local(name).read_bytes() == b"old contents"
    storage.write(name, b"new contents, longer")
    assert storage.local(name).read_bytes() == b"new contents, longer"
    assert open_storage(location).local(name).read_bytes() == b"new contents, longer"


def test_what_is_abandoned_or_left_half_written_is_gone(storage: Storage, location: str) -> None:
    storage.write("archive.toml", b"x")
    new = storage.create(HALF)
    new.write(b"half")
    new.abandon()
    left = storage.create("packs/ab/4567.pack")
    left.write(b"left by a run that died")
    again = open_storage(location)
    again.clean()
    assert again.names("packs", ".pack") == [] and again.names("packs", ".tmp") == []


def test_files_of_this_machine_and_scratch(storage: Storage) -> None:
    workspace, name = storage.workspace, "volumes/cd/1.partial"
    os.close(workspace.descriptor(name, create=True))
    assert workspace.names("volumes", ".partial") == [name]
    assert storage.exists(name) is not storage.elsewhere
    workspace.local(name).write_bytes(b"more")
    assert workspace.read(name) == b"more" and workspace.size(name) == 4
    workspace.remove(name)
    assert not workspace.exists(name)
    with workspace.scratch() as file:
        file.write(b"scratch")
        file.seek(0)
        assert file.read() == b"scratch"
    lock = workspace.lock(shared=False)
    with pytest.raises(SparsebakError, match="in use"):
        workspace.lock(shared=True)
    assert lock is not None
    os.close(lock)
    free, capacity = storage.free(), storage.capacity()
    assert (free is None) == (capacity is None)


def test_leases_keep_writers_away_on_every_kind_of_store(
    storage: Storage, location: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    locks = storage.locks()
    assert locks.list() == {} and locks.create("writer-9", b"one") is True
    assert locks.create("writer-9", b"two") is False and locks.read("writer-9") == b"one"
    locks.remove("writer-9")
    locks.remove("writer-9")
    with pytest.raises(FileNotFoundError):
        locks.read("writer-9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    there = open_storage(location)
    lease = Lease.acquire(locks, "PLACE", "backup")
    with pytest.raises(LockedError, match="in use"):
        Lease.acquire(there.locks(), "PLACE", "prune")
    assert list(locks.list()) == ["writer-1"]
    before = locks.list()["writer-1"]
    time.sleep(1.1)  # times of a store may be whole seconds
    lease.renew()
    assert locks.list()["writer-1"] >= before + 1
    there.locks().put("writer-2", lease.holder._replace(host="elsewhere").dump())
    with pytest.raises(LockedError, match="taken it over"):
        lease.renew()
    lease.release()
    assert list(locks.list()) == ["writer-2"]
    assert len(there.locks().read("writer-2")) > 100
    locks.put("writer-3", b"x" * 10_000)
    assert locks.read("writer-3") == b"x" * 4096


def test_many_that_begin_at_once_are_one_at_a_time(location: str) -> None:
    storages = [open_storage(location) for _ in range(4)]
    storages[0].prepare()
    got: list[str] = []
    begin = threading.Barrier(len(storages))

    def begin_at_once(storage: Storage) -> None:
        locks = storage.locks()
        locks.list()
        begin.wait()
        with contextlib.suppress(LockedError):
            got.append(Lease.acquire(locks, "PLACE", "backup").name)

    threads = [threading.Thread(target=begin_at_once, args=(one,)) for one in storages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) <= 1 and list(storages[0].locks().list()) == got


def test_a_place_that_is_not_empty_is_not_taken(storage: Storage, location: str) -> None:
    storage.write("something/else/there", b"x")
    with pytest.raises(SparsebakError, match="not empty"):
        open_storage(location).prepare()


@pytest.mark.parametrize(
    "url", ["ftp://host/path", "sftp://host", "sftp://user:secret@host/path", "sftp:///path"]
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(UsageError):
        open_storage(url)
