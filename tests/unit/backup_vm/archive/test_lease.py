# SPDX-License-Identifier: GPL-2.0-or-later
"""Leases in a store: never two runs that both believe they hold one, whatever is slow, cut off,
asleep or dead.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive import holder
from backup_vm.archive import lease as leases
from backup_vm.archive.holder import Holder
from backup_vm.archive.lease import Clocks, Lease
from backup_vm.archive.lease_files import FOLDER, STALE
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.locks import LocalLocks
from backup_vm.errors import ForbiddenError, LockedError
from tests.faultfs import Fault, FaultFS
from tests.patience import until


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    storage = LocalStorage(tmp_path / "archive")
    storage.prepare()
    return storage


def held(storage: LocalStorage) -> list[str]:
    return sorted(storage.locks().list())


def test_one_at_a_time_and_the_next_one_after_it(storage: LocalStorage) -> None:
    first = Lease.acquire(storage.locks(), "PLACE", "backup")
    assert held(storage) == ["writer-1"]
    with pytest.raises(LockedError, match=rf"PLACE is in use by .*process {os.getpid()}, since 20"):
        Lease.acquire(storage.locks(), "PLACE", "prune")
    assert held(storage) == ["writer-1"], "who is refused leaves nothing"
    first.renew()
    first.check()
    first.release()
    assert held(storage) == []
    Lease.acquire(storage.locks(), "PLACE", "prune").release()


def test_whose_process_is_gone_is_taken_over_at_once(storage: LocalStorage) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from backup_vm.archive.lease import Lease\n"
        "from backup_vm.archive.storage.local import LocalStorage\n"
        "Lease.acquire(LocalStorage(Path(sys.argv[1])).locks(), 'P', 'backup'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, storage.root]).returncode == 9
    assert held(storage) == ["writer-1"]
    lease = Lease.acquire(storage.locks(), "PLACE", "backup")
    assert lease.name == "writer-2" and held(storage) == ["writer-2"]
    lease.release()


@pytest.mark.parametrize("highest", ["writer-999999999", "writer-999999999-" + "ab" * 8])
def test_the_last_generation_is_followed_by_others(storage: LocalStorage, highest: str) -> None:
    """Nobody gets there by themselves; whoever wrote it there keeps nobody away."""
    locks = storage.locks()
    for name in ("writer-3", "writer-999999998", highest):
        locks.put(name, b"{}")
        os.utime(storage.root / FOLDER / name, (0, 0))
    locks.put("writer-1000000000", b"not a lease's name")
    lease = Lease.acquire(locks, "PLACE", "backup")
    assert held(storage) == sorted(["writer-1000000000", lease.name])
    lease.renew()
    with pytest.raises(LockedError, match="in use"):
        Lease.acquire(locks, "PLACE", "prune")
    lease.release()
    Lease.acquire(locks, "PLACE", "prune").release()


def test_the_last_generation_where_nothing_may_be_removed(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = storage.locks()
    locks.put("writer-999999999", b"{}")
    os.utime(storage.root / FOLDER / "writer-999999999", (0, 0))

    def remove(*_: object) -> None:
        raise ForbiddenError("cannot remove it")

    monkeypatch.setattr(LocalLocks, "remove", remove)
    with pytest.raises(LockedError, match="last generation") as raised:
        Lease.acquire(locks, "PLACE", "backup")
    assert "unlock" in raised.value.hint


def test_whom_it_was_taken_from_because_of_its_age_is_told(storage: LocalStorage) -> None:
    locks = storage.locks()
    locks.put("writer-1", Holder.this("x")._replace(machine="another", host="nas").dump())
    old = time.time() - STALE - 1
    os.utime(storage.root / FOLDER / "writer-1", (old, old))
    locks.put("writer-2", Holder.this("x")._replace(process=4_000_000_000).dump())
    lease = Lease.acquire(locks, "PLACE", "backup")
    assert [text.partition(",")[0] for text in lease.taken_over] == ["nas"]
    lease.release()


def test_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Holder.this("backup")
    assert me.machine and me.boot and me.space and me.started
    assert not me.gone() and Holder.load(me.dump()) == me
    assert me._replace(process=4_000_000_000).gone(), "no such process"
    assert me._replace(started=me.started + 1).gone(), "its number is another one's by now"
    assert me._replace(boot="another").gone(), "before this machine's last start"
    assert me._replace(released=True).gone()
    for other in (
        me._replace(machine="another", process=4_000_000_000),
        me._replace(machine="", process=4_000_000_000),
        me._replace(space="a container's", process=4_000_000_000),
        me._replace(boot="another", host="a clone"),
    ):
        assert not other.gone()


def test_who_is_gone_on_a_machine_without_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    text = holder._text
    monkeypatch.setattr(holder, "_text", lambda path: "" if "machine-id" in path else text(path))
    me = Holder.this("backup")
    assert me.machine == "" and not me.gone()
    assert me._replace(process=4_000_000_000).gone()
    assert not me._replace(boot="another").gone(), "that may be any machine without an id"


@given(
    st.binary(max_size=200)
    | st.recursive(st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_what_makes_no_sense_is_somebody_s(raw: bytes) -> None:
    assert not Holder.load(raw).gone()
    assert "\x1b" not in str(Holder()._replace(process=1, host="\x1b[2J", since=1 << 80))


def test_a_lease_without_sense_is_held_until_it_is_old(storage: LocalStorage) -> None:
    for raw in (b"", b"nonsense" * 10_000):
        storage.write(f"{FOLDER}/writer-7", raw)
        with pytest.raises(LockedError, match="in use"):
            Lease.acquire(storage.locks(), "PLACE", "backup")
        old = time.time() - STALE - 60
        os.utime(storage.root / FOLDER / "writer-7", (old, old))
        lease = Lease.acquire(storage.locks(), "PLACE", "backup")
        assert lease.name == "writer-8"
        lease.release()


def test_what_a_dead_run_was_making_goes_when_it_is_old(storage: LocalStorage) -> None:
    """Also where nothing else is there to tell how old it is."""
    old, young = (f"{FOLDER}/probe-{number:016x}" for number in range(2))
    storage.write(old, b"")
    then = time.time() - STALE - 60
    os.utime(storage.root / old, (then, then))
    Lease.acquire(storage.locks(), "PLACE", "backup").release()
    assert held(storage) == []
    storage.write(young, b"")
    Lease.acquire(storage.locks(), "PLACE", "backup").release()
    assert held(storage) == ["probe-0000000000000001"]


def test_the_store_s_clock_counts_not_ours(storage: LocalStorage) -> None:
    """Times there are compared with those of files made there: here, one of a file that is far
    ahead of our clock.
    """
    storage.write(f"{FOLDER}/writer-1", b"")
    now = time.time()
    os.utime(storage.root / FOLDER / "writer-1", (now + 9 * 3600, now + 9 * 3600))
    with pytest.raises(LockedError):
        Lease.acquire(storage.locks(), "PLACE", "backup")


@pytest.mark.parametrize("raw", [b"", bytes(300)])
def test_a_lease_that_says_nothing_is_free_soon(storage: LocalStorage, raw: bytes) -> None:
    """Its maker died early, or a power cut took its contents: all of them, or all but their
    length.
    """
    storage.write(f"{FOLDER}/writer-7", raw)
    with pytest.raises(LockedError):
        Lease.acquire(storage.locks(), "PLACE", "backup")
    old = time.time() - 200
    os.utime(storage.root / FOLDER / "writer-7", (old, old))
    Lease.acquire(storage.locks(), "PLACE", "backup").release()
    assert held(storage) == []


def test_where_there_are_no_hard_links(faultfs: FaultFS) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    faultfs.fail(Fault("link", "EPERM"))
    lease = Lease.acquire(storage.locks(), "PLACE", "backup")
    assert held(storage) == ["writer-1"]
    assert storage.locks().create("writer-1", b"") is False
    lease.release()
    assert held(storage) == []


@pytest.mark.parametrize("how", ["removed", "overtaken", "replaced", "late"])
def test_a_lease_that_is_lost_stops_what_is_written(storage: LocalStorage, how: str) -> None:
    now = [0.0]
    lease = Lease.acquire(
        storage.locks(), "PLACE", "backup", Clocks(lambda: now[0], lambda: now[0], lambda _: None)
    )
    storage.check = lease.check
    storage.write("archive.toml", b"old")
    new = storage.create("packs/ab/x.pack")
    new.write(b"x")
    name = f"{FOLDER}/writer-1"
    if how == "removed":
        storage.locks().remove("writer-1")
    elif how == "overtaken":
        storage.locks().create("writer-2", b"")
    elif how == "replaced":
        storage.locks().put("writer-1", Holder.this("unlock").dump())
    else:
        now[0] += STALE / 2
    with pytest.raises(LockedError, match="PLACE is lost"):
        lease.renew()
    for action in (
        new.finish,
        lambda: storage.write("archive.toml", b"new"),
        lambda: storage.create("packs/ab/y.pack"),
        lambda: storage.remove("archive.toml"),
        lambda: storage.punch("archive.toml", []),
    ):
        with pytest.raises(LockedError, match="PLACE is lost"):
            action()
    new.abandon()
    assert storage.read("archive.toml") == b"old" and storage.names("packs", "") == []
    lease.release()
    assert storage.exists(name) == (how == "replaced"), "what is another one's stays"


def test_a_clock_that_was_set_loses_nothing(storage: LocalStorage) -> None:
    wall = [0.0]
    clocks = Clocks(lambda: 0.0, lambda: wall[0], lambda _: None)
    lease = Lease.acquire(storage.locks(), "PLACE", "backup", clocks)
    wall[0] = 1e9
    lease.check()
    wall[0] = 2e9  # or this machine was paused, and did not notice
    storage.locks().create("writer-2", b"")
    with pytest.raises(LockedError, match="taken it over"):
        lease.check()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(leases, "RENEWAL", 0.05)
    monkeypatch.setattr(leases, "_RETRY", 0.02)
    yield


def test_it_is_renewed_in_the_background_also_after_errors(soon: None, faultfs: FaultFS) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    lease = Lease.acquire(storage.locks(), "PLACE", "backup")
    lease.keep()
    path = faultfs.real / "archive" / FOLDER / "writer-1"
    os.utime(path, (0, 0))
    until(lambda: path.stat().st_mtime > 1)
    faultfs.fail(Fault("*", "EIO", path="archive/locks*"))
    until(lambda: faultfs.calls().get("open", 0) + faultfs.calls().get("getattr", 0) > 3)
    lease.check()
    faultfs.fail()
    os.utime(path, (0, 0))
    until(lambda: path.stat().st_mtime > 1)
    path.unlink()
    until(lambda: bool(lease._lost))
    with pytest.raises(LockedError):
        lease.check()
    lease.release()


def test_it_is_brought_to_disk_soon(monkeypatch: pytest.MonkeyPatch, faultfs: FaultFS) -> None:
    """So that after a power cut it says whose it was, and is known to be nobody's at once."""
    monkeypatch.setattr(leases, "_FIRST", 0.05)
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    lease = Lease.acquire(storage.locks(), "PLACE", "backup")
    assert not faultfs.calls().get("fsync"), "no run waits for that"
    lease.keep()
    until(lambda: bool(faultfs.calls().get("fsync")))
    lease.check()
    lease.release()


def test_one_that_cannot_be_removed_says_that_it_is_given_back(faultfs: FaultFS) -> None:
    """By that other machines do not wait for it, and whoever comes next removes it."""
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    lease = Lease.acquire(storage.locks(), "PLACE", "backup")
    faultfs.fail(Fault("unlink", "EIO"))
    lease.release()
    faultfs.fail()
    assert held(storage) == ["writer-1"]
    assert Holder.load(storage.locks().read("writer-1")).released
    after = Lease.acquire(storage.locks(), "PLACE", "scrub")
    assert held(storage) == ["writer-2"] and not after.taken_over
    after.release()
    assert held(storage) == []


def test_any_other_error_is_one(faultfs: FaultFS) -> None:
    storage = LocalStorage(faultfs.path / "archive")
    storage.prepare()
    faultfs.fail(Fault("create", "EIO"))
    with pytest.raises(OSError) as caught:
        Lease.acquire(storage.locks(), "PLACE", "prune")
    assert caught.value.errno == errno.EIO and held(storage) == []
