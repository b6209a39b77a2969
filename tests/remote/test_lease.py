# SPDX-License-Identifier: GPL-2.0-or-later
"""A lease when the network fails: who is cut off has given up before another one begins."""

import itertools
import os
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from backup_vm.archive import lease as leases
from backup_vm.archive import lease_files, notes
from backup_vm.archive.lease import Lease
from backup_vm.archive.storage import open_storage
from backup_vm.archive.storage.objects import Unreachable
from backup_vm.archive.storage.sftp_protocol import PERMISSION_DENIED, Client, Refused
from backup_vm.errors import LockedError
from tests.kit import in_child
from tests.patience import PATIENCE
from tests.remote.kit import Network, Server

STALE = 4.0
"""Seconds: times in a store may be whole ones."""


def test_who_is_cut_off_gives_up_before_another_one_begins(
    server: Server, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_files, "STALE", STALE)
    monkeypatch.setattr(leases, "_HALF", STALE / 2)
    monkeypatch.setattr(leases, "RENEWAL", 0.3)
    monkeypatch.setattr(leases, "_RETRY", 0.1)
    name = f"lease-{time.monotonic_ns()}"
    cut_off = open_storage(server.url(name, network.port))
    for key, value in server.environment().items():
        monkeypatch.setenv(key, value)
    other = open_storage(server.url(name))
    lease = Lease.acquire(cut_off.locks(), "PLACE", "backup")
    lease.keep()
    time.sleep(STALE / 2 + 0.5)
    lease.check()
    with pytest.raises(LockedError, match="in use"):
        Lease.acquire(other.locks(), "PLACE", "prune")
    network.down = True
    network.cut()
    lost = list[float]()

    def watch() -> None:
        while not lost:
            try:
                lease.check()
                time.sleep(0.02)
            except LockedError:
                lost.append(time.monotonic())

    watching, deadline = threading.Thread(target=watch, daemon=True), time.monotonic() + PATIENCE
    watching.start()
    while True:
        assert time.monotonic() < deadline
        try:
            second = Lease.acquire(other.locks(), "PLACE", "prune")
            break
        except LockedError:
            time.sleep(0.2)
    taken = time.monotonic()
    watching.join(PATIENCE)
    assert lost and lost[0] < taken
    network.mend()
    time.sleep(0.5)
    with pytest.raises(LockedError, match="PLACE is lost"):
        lease.check()
    lease.release()
    second.renew()
    second.release()
    assert other.locks().list() == {}


def test_whoever_dies_while_it_makes_a_lease_keeps_nobody_away(
    sftp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process after another dies at one request after another: the next one takes over
    at once.
    """
    for key, value in sftp.environment().items():
        monkeypatch.setenv(key, value)
    url = sftp.url(f"lease-{time.monotonic_ns()}")
    send, locks = Client.send, open_storage(url).locks()

    def dies_at(last: int) -> None:
        sent = itertools.count(1)

        def counted(self: Client, kind: int, body: bytes) -> int:
            number = send(self, kind, body)
            if next(sent) == last:
                with suppress(Refused, Unreachable):
                    self.answer(number)
                os._exit(9)
            return number

        monkeypatch.setattr(Client, "send", counted)
        Lease.acquire(open_storage(url).locks(), "PLACE", "backup")
        os._exit(0)

    for died in itertools.count(1):
        code = in_child(partial(dies_at, died))
        if code != 9:
            break
        Lease.acquire(locks, "PLACE", "backup").release()
    assert code == 0 and died > 10


def test_a_server_whose_disk_has_no_hard_links(
    sftp: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in sftp.environment().items():
        monkeypatch.setenv(key, value)

    def extended(self: Client, name: bytes, *_: object) -> None:
        raise Refused(PERMISSION_DENIED, name.decode())

    monkeypatch.setattr(Client, "extended", extended)
    locks = open_storage(sftp.url(f"lease-{time.monotonic_ns()}")).locks()
    assert locks.create("writer-1", b"first") and locks.create("writer-1", b"second") is False
    assert locks.read("writer-1") == b"first" and list(locks.list()) == ["writer-1"]


def test_notes_of_two_machines(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each opened the archive before the other one wrote, and neither loses what the other one
    noted.
    """
    url = server.url(f"notes-{time.monotonic_ns()}")
    machines = []
    for number in range(2):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{number}"))
        machines.append(open_storage(url))
        assert not machines[number].exists(notes.NAME)
    for number in range(6):
        session = bytes([number]) * 16

        def note(all_notes: notes.Notes, key: str = session.hex()) -> None:
            all_notes.sessions[key] = notes.Note(text="x" * (1 + len(all_notes.sessions)))

        notes.change(machines[number % 2], note)
    assert len(notes.load(open_storage(url)).sessions) == 6
