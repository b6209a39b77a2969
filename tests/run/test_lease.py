# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs on several machines, or by several mounts of one folder: one writes at a time, and who may
not says so.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from backup_vm.archive import lease as leases
from backup_vm.archive import notes
from backup_vm.archive.holder import Holder
from backup_vm.archive.lease_files import FOLDER, NOTES, STALE
from backup_vm.archive.storage import local as local_storage
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.locks import LocalLocks
from backup_vm.errors import LockedError
from tests.conftest import cannot
from tests.faultfs import FaultFS, missing
from tests.kit import GRAIN, Site, backed_up, fill
from tests.patience import PATIENCE

BIN = Path(sys.executable).parent
ELSEWHERE = Holder.this("backup")._replace(machine="another", host="nas", process=77, since=0)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return backed_up(tmp_path / "site")


def run(
    site: Site, *words: str, capsys: pytest.CaptureFixture[str], expect: int = 0
) -> tuple[str, str]:
    code = cli.main(["--archive", str(site.archive), *words])
    out, err = capsys.readouterr()
    assert code == expect, (code, out, err)
    assert err.count("\n") <= 1 and "Traceback" not in err
    return out, err


def test_a_run_elsewhere_is_named_and_unlock_ends_it(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = LocalStorage(site.archive).locks()
    assert locks.list() == {}, "a run that is over leaves none"
    locks.put("writer-3", ELSEWHERE.dump())
    for command in (["scrub"], ["prune", "--keep-last", "1"]):
        _, err = run(site, *command, capsys=capsys, expect=11)
        assert f"{site.archive} is in use by another run (nas, process 77, since 1970-" in err
    run(site, "list", capsys=capsys)
    _, err = run(site, "unlock", capsys=capsys, expect=11)
    assert "unlock --yes" in err
    assert "nas, process 77" in err and list(locks.list()) == ["writer-3"]
    out, _ = run(site, "unlock", "--yes", "--json", capsys=capsys)
    assert json.loads(out) == {"removed": ["writer-3"]} and locks.list() == {}
    run(site, "scrub", capsys=capsys)
    assert json.loads(run(site, "unlock", "--json", capsys=capsys)[0]) == {"removed": []}


def test_unlock_needs_no_word_for_what_nobody_holds(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    locks = LocalStorage(site.archive).locks()
    locks.put("writer-3", Holder.this("backup")._replace(process=4_000_000_000).dump())
    locks.put("writer-2", ELSEWHERE.dump())
    old = time.time() - STALE - 10
    os.utime(site.archive / FOLDER / "writer-2", (old, old))
    out, _ = run(site, "unlock", "--json", capsys=capsys)
    assert json.loads(out) == {"removed": ["writer-2", "writer-3"]}
    run(site, "--archive", str(site.archive.parent), "unlock", capsys=capsys, expect=10)


def test_a_lease_is_taken_over_openly(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    LocalStorage(site.archive).locks().put("writer-2", ELSEWHERE.dump())
    old = time.time() - STALE - 10
    os.utime(site.archive / FOLDER / "writer-2", (old, old))
    _, err = run(site, "scrub", capsys=capsys)
    assert "the lease of another run (nas, process 77, since 1970-" in err and "taken over" in err
    assert run(site, "scrub", capsys=capsys)[1] == ""


def test_two_that_make_an_archive_in_one_place(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one sees an empty place, and the first one is done before it writes."""
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    place, original = tmp_path / "new", LocalStorage.prepare
    words = ["init", str(place), "--label", "tests"]

    def prepare(self: LocalStorage) -> None:
        original(self)
        monkeypatch.setattr(LocalStorage, "prepare", original)
        run(site, *words, capsys=capsys)
        (place / "archive.toml").write_bytes(kept := (place / "archive.toml").read_bytes() + b"#")
        written.append(kept)

    written: list[bytes] = []
    monkeypatch.setattr(LocalStorage, "prepare", prepare)
    assert "already" in run(site, *words, capsys=capsys, expect=1)[1]
    assert (place / "archive.toml").read_bytes() == written[0]


def test_init_says_where_nothing_is_created_under_a_condition(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    monkeypatch.setattr(LocalLocks, "create", lambda *_: None)
    out, err = run(site, "init", str(tmp_path / "new"), "--label", "tests", "-v", capsys=capsys)
    assert "cannot create a file under a condition" in out + err
    assert LocalStorage(tmp_path / "new").locks().list() == {}


def test_a_killed_run_keeps_nobody_away(site: Site) -> None:
    code = (
        "import os, sys\nfrom backup_vm.archive.opening import open_archive\n"
        "with open_archive(sys.argv[1], True): os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, site.archive]).returncode == 9
    assert len(LocalStorage(site.archive).locks().list()) == 1
    site.backup()
    assert LocalStorage(site.archive).locks().list() == {}


def test_notes_are_changed_by_one_at_a_time(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes, "_PATIENCE", 0.3)
    locks = LocalStorage(site.archive).locks()
    locks.put(f"{NOTES}-3", ELSEWHERE.dump())
    volume = next((site.archive / "volumes").iterdir()).name
    tag = ["tag", "--session", "latest", "--add", "kept", volume]
    _, err = run(site, *tag, capsys=capsys, expect=11)
    assert "notes.json is in use by another run (nas, process 77" in err
    site.backup()  # it changes none
    capsys.readouterr()
    run(site, "unlock", "--yes", capsys=capsys)
    run(site, *tag, capsys=capsys)
    assert locks.list() == {}


@pytest.fixture
def two_mounts(tmp_path: Path) -> Iterator[tuple[FaultFS, FaultFS]]:
    """One folder, mounted twice, as on two machines: neither sees the other's flock."""
    if missing():
        cannot(missing())
    folder = tmp_path / "nas"
    mounts = [FaultFS(folder, "no_flock", path=folder / name) for name in ("one", "two")]
    yield mounts[0], mounts[1]
    for mount in mounts:
        mount.close()


def test_two_mounts_of_one_folder(site: Site, two_mounts: tuple[FaultFS, FaultFS]) -> None:
    one, two = two_mounts
    site.archive.rename(one.real / "archive")
    rng = random.Random(1)
    site.archive = one.path / "archive"
    with site.open(writing=True):
        with (
            pytest.raises(LockedError, match=rf"in use by another run \(.*process {os.getpid()}"),
            site.open(True, two.path / "archive"),
        ):
            pass
        with site.open(False, two.path / "archive") as archive:
            assert len(archive.sessions()) == 1, "readers need no lease"
    for mount in (one, two, one):
        site.archive = mount.path / "archive"
        site.disturb(rng)
        site.backup()
    site.verify_all()


def test_who_begin_at_once_do_no_harm(site: Site, two_mounts: tuple[FaultFS, FaultFS]) -> None:
    """Writers on both mounts, over and over: each gets in or says why not, and all is whole in the
    end.
    """
    site.archive.rename(two_mounts[0].real / "archive")
    got, refused = [0, 0], [0, 0]

    def write(number: int) -> None:
        place = two_mounts[number].path / "archive"
        for _ in range(12):
            try:
                with site.open(True, place) as archive:
                    storage = archive.storage
                    count = int(storage.read("counter")) if storage.exists("counter") else 0
                    storage.write("counter", str(count + 1).encode())
                    got[number] += 1
            except LockedError:
                refused[number] += 1
                time.sleep(0.01)

    threads = [threading.Thread(target=write, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int((two_mounts[0].real / "archive/counter").read_text()) == sum(got) > 0
    assert sum(got) + sum(refused) == 24


@pytest.mark.parametrize("how", ["removed", "overtaken", "slept"])
def test_a_run_that_loses_its_lease_ends_and_writes_nothing_more(
    site: Site, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(leases, "RENEWAL", 0.02)
    monkeypatch.setattr(LocalStorage, "pack_size", 3 * GRAIN)
    fill(site.image(), 60 * GRAIN, 5)
    original: Callable[..., object] = local_storage.LocalNewFile.finish
    packs: list[str] = []
    slept, lost, lose = [0.0], threading.Event(), leases.Lease._lose

    def noticed(lease: leases.Lease, why: str) -> None:
        try:
            lose(lease, why)  # which raises
        finally:
            lost.set()

    monkeypatch.setattr(leases.Lease, "_lose", noticed)
    monkeypatch.setattr(leases, "_boot_time", lambda: time.monotonic() + slept[0])
    monkeypatch.setattr(
        leases.Clocks.__new__, "__defaults__", (leases._boot_time, time.time, time.sleep)
    )

    def finish(self: object) -> object:
        if len(packs) == 2:
            locks = LocalStorage(site.archive).locks()
            if how == "removed":
                locks.remove("writer-1")
            elif how == "overtaken":
                locks.put("writer-2", ELSEWHERE.dump())
            else:
                slept[0] = STALE
            assert how == "slept" or lost.wait(PATIENCE)
        packs.append("")
        return original(self)

    monkeypatch.setattr(local_storage.LocalNewFile, "finish", finish)
    before = sorted(site.archive.rglob("*.session"))
    with pytest.raises(LockedError, match="is lost"):
        site.backup()
    assert sorted(site.archive.rglob("*.session")) == before
    assert len(packs) <= 4
    assert not [*site.archive.rglob("*.tmp")]
    monkeypatch.undo()
    LocalStorage(site.archive).locks().remove("writer-2")
    site.backup()
    site.verify_all()
    assert site.scrubbed() == []


def test_status_and_doctor_say_who_holds_a_lease_and_what_to_do(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    def leases() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(run(site, "status", "--json", capsys=capsys)[0])[
            "leases"
        ]
        return found

    def finding() -> dict[str, str]:
        code = cli.main(["--archive", str(site.archive), "doctor", "--json"])
        assert code in (0, 1)
        rows = json.loads(capsys.readouterr().out)["findings"]
        (row,) = [row for row in rows if row["topic"] == "leases"]
        assert isinstance(row, dict)
        return row

    assert leases() == []
    locks, held = LocalStorage(site.archive).locks(), ELSEWHERE._replace(host="nas\x1b[31m")
    locks.put("writer-3", held.dump())
    locks.put("notes-1", Holder.this("tag")._replace(process=4_000_000_000).dump())
    (row,) = leases()
    shown = {"kind": "writer", "host": "nas\\x1b[31m", "process": 77, "command": "backup"}
    assert {key: row[key] for key in shown} == shown and row["since"] is None
    assert abs(row["renewed"] - time.time()) < 60
    assert "lease: nas\\x1b[31m, process 77 (backup)" in run(site, "status", capsys=capsys)[0]
    assert finding()["state"] == "ok"
    old = time.time() - 600
    os.utime(site.archive / FOLDER / "writer-3", (old, old))
    assert finding()["state"] == "warn" and "sparsebak unlock" in finding()["remedy"]
    before = sorted(locks.list())
    locks.put("writer-3", b'{"host": 1}' + b"x" * 5000)
    (row,) = leases()
    assert row["process"] == 0 and row["host"] == ""
    assert "holder unknown" in finding()["what"]
    assert sorted(locks.list()) == before, "a look writes nothing"
    run(site, "unlock", "--yes", capsys=capsys)
    assert leases() == []


@pytest.mark.parametrize("when", [time.time() + 86400, 1 << 40], ids=["tomorrow", "never"])
def test_a_lease_from_the_future_is_told_of(
    site: Site, capsys: pytest.CaptureFixture[str], when: float
) -> None:
    """The clock by which it was dated was wrong: time alone does not end it."""
    LocalStorage(site.archive).locks().put("writer-3", ELSEWHERE.dump())
    os.utime(site.archive / FOLDER / "writer-3", (when, when))
    assert "in use" in run(site, "scrub", capsys=capsys, expect=11)[1]
    out = run(site, "status", capsys=capsys)[0]
    (line,) = [line for line in out.splitlines() if "holds its lease" in line]
    assert "in the future" in line and "sparsebak unlock" in line
    cli.main(["--archive", str(site.archive), "doctor", "--json"])
    rows = json.loads(capsys.readouterr().out)["findings"]
    (row,) = [row for row in rows if row["topic"] == "leases"]
    assert row["state"] == "warn" and "in the future" in row["what"]
    assert "sparsebak unlock" in row["remedy"] and "clock" in row["remedy"]
    page = site.root / "page.html"
    run(site, "report", "-o", str(page), capsys=capsys)
    assert "in the future" in page.read_text()
    run(site, "unlock", "--yes", capsys=capsys)
    run(site, "scrub", capsys=capsys)
