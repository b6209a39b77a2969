# SPDX-License-Identifier: GPL-2.0-or-later
"""All archives of a place are kept, without a key: what is done, what is told, in which order."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive.opening import open_archive
from backup_vm.archive.storage.finding import Looked
from backup_vm.archive.storage.trees import LocalTree
from backup_vm.errors import LockedError
from backup_vm.jobs.upkeep import keeping, rounds
from backup_vm.jobs.upkeep.keeping import OFTEN
from backup_vm.reporting.kept_rows import State
from tests.upkeep.kit import DAY, RULES, Office


def test_each_is_pruned_scrubbed_and_copied(office: Office) -> None:
    office.add("anna", "team/ben.sparsebak")
    for _ in range(3):
        office.back_up()
    second = office.folder / "second"
    second.mkdir()
    office.rules.write_text(f'sample = "all"\ncopy_to = "{second}"\n{RULES}')
    before = {name: list(site.images().values()) for name, site in office.laptops.items()}
    rows = office.rows()
    assert set(rows) == {"anna", "team/ben.sparsebak"}
    for name, row in rows.items():
        site = office.laptops[name]
        assert row["state"] == State.WELL and row["problems"] == [] == row["notes"]
        assert row["removed"] == 2 and row["sessions"] == 2 == row["copied"]
        assert row["scrubbed"] == row["of"] > 0 and row["kept"] == int(office.clock)
        assert list(site.images().values()) == before[name][2:]
        assert list(site.images(folder=second / name).values()) == before[name][2:]
    office.back_up("anna")
    assert {name: row["copied"] for name, row in office.rows().items()} == {
        "anna": 1,
        "team/ben.sparsebak": 0,
    }


def test_without_rules_nothing_is_removed(office: Office) -> None:
    office.add("anna")
    office.back_up()
    office.rules.unlink()
    assert office.rows()["anna"]["removed"] == 0 and office.sessions("anna") == 2


def test_an_archive_can_have_a_plan_of_its_own(office: Office) -> None:
    office.add("anna", "ben")
    for _ in range(3):
        office.back_up()
    office.rules.write_text(
        f'{RULES}[archives.ben]\nsample = "never"\nmax_age = "never"\n'
        "[archives.ben.prune]\nkeep_last = 1\n"
    )
    office.clock += 20 * DAY
    rows = office.rows(expect=1)
    assert rows["anna"]["state"] == State.WARNED and "no new session" in rows["anna"]["problems"][0]
    assert rows["ben"]["state"] == State.WELL and rows["ben"]["sessions"] == 1
    assert rows["ben"]["of"] == 0 < rows["anna"]["of"]


def test_a_dry_run_changes_nothing(office: Office) -> None:
    office.add("anna")
    for _ in range(3):
        office.back_up()
    report = office.folder / "page.html"
    seen = sorted((p, p.stat().st_mtime_ns) for p in Path(office.place).rglob("*") if p.is_file())
    row = office.rows("--dry-run", "--report", str(report))["anna"]
    assert row["removed"] == 2 and office.sessions("anna") == 4
    assert seen == sorted(
        (p, p.stat().st_mtime_ns) for p in Path(office.place).rglob("*") if p.is_file()
    )
    assert not report.exists() and not (office.folder / "state").exists()


def test_what_is_in_use_is_kept_the_next_time_and_named_when_it_stays_so(office: Office) -> None:
    office.add("anna", "ben")
    with open_archive(office.laptops["anna"].archive, True):
        for _ in range(OFTEN - 1):
            rows = office.rows()
            assert rows["anna"]["state"] == State.IN_USE and rows["ben"]["state"] == State.WELL
        rows = office.rows(expect=1)
        assert f"in use {OFTEN} times in a row" in rows["anna"]["problems"][0]
    row = office.rows()["anna"]
    assert row["state"] == State.WELL and row["skipped"] == 0


def test_what_is_in_use_after_it_was_pruned_is_not_pruned_again(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What took over from removed sessions is new to the guard then, and its rules would say
    something else.
    """
    office.add("anna")
    for _ in range(4):
        office.back_up()
    scrub, judge, busy, judged = keeping._scrub, keeping.judge, [True], list[int]()

    def locked(*arguments: Any) -> None:
        if busy:
            busy.clear()
            raise LockedError("it is in use by another run")
        scrub(*arguments)

    def counted(*arguments: Any, **named: Any) -> Any:
        judged.append(1)
        return judge(*arguments, **named)

    monkeypatch.setattr(keeping, "_scrub", locked)
    monkeypatch.setattr(keeping, "judge", counted)
    row = office.rows()["anna"]
    assert row["state"] == State.WELL and row["scrubbed"] and not busy
    assert judged == [1] and row["removed"] == 3 and row["freed"] > 0 and row["sessions"] == 2
    assert row["notes"] == ["it is in use by another run"]


def test_what_was_kept_least_recently_comes_first(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.add("anna", "ben", "cleo")
    kept, whole = list[str](), rounds.keep

    def stopped(task: rounds.Task, row: rounds.KeptRow, progress: rounds.Progress) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(row["name"])
        whole(task, row, progress)

    monkeypatch.setattr(rounds, "keep", stopped)
    office.said(expect=130)
    assert kept == ["anna", "ben"]
    kept.clear()
    office.clock += 60
    monkeypatch.setattr(
        rounds, "keep", lambda task, row, p: (kept.append(row["name"]), whole(task, row, p))
    )
    office.rows()
    assert kept == ["cleo", "anna", "ben"]


def test_a_limit_of_time_leaves_the_others_for_the_next_run(office: Office) -> None:
    office.add("anna", "ben")
    office.rules.write_text('time_limit = "0h"\n')
    rows = office.rows()
    assert {row["state"] for row in rows.values()} == {State.LEFT}


def test_what_another_version_remembered_of_one_that_is_left_does_no_harm(office: Office) -> None:
    office.add("anna", "ben")
    office.rows()
    for note in (office.folder / "state").rglob("*.json"):
        row = json.loads(note.read_text())
        del row["status"]["names"]
        note.write_text(json.dumps(row))
    office.rules.write_text('time_limit = "0h"\n')
    told = ("--report", str(office.folder / "a.html"), "--metrics", str(office.folder / "a.prom"))
    rows = office.rows(*told)
    assert {row["state"] for row in rows.values()} == {State.LEFT}
    assert all(row["kept"] and row["status"] is None for row in rows.values())


def test_a_full_disk_of_its_own_keeps_no_archive_from_being_kept(
    office: Office, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.add("anna", "ben")
    monkeypatch.setenv("XDG_STATE_HOME", str(small_disk))
    office.rows()
    with suppress(OSError), open(small_disk / "full", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    done, _ = office.keep(expect=1)
    assert [row["state"] for row in done["archives"]] == [State.WELL] * 2
    (problem,) = done["problems"]
    assert "cannot be remembered" in problem and str(small_disk) in problem
    (small_disk / "full").unlink()
    assert not office.keep()[0]["problems"]


def test_one_that_is_gone_is_missed_until_it_is_ignored(office: Office) -> None:
    office.add("anna", "ben")
    office.rows()
    (Path(office.place) / "ben").rename(office.folder / "away")
    assert office.rows(expect=1)["ben"]["state"] == State.MISSING
    office.rules.write_text('ignore = ["ben"]\n')
    assert set(office.rows()) == {"anna"}
    office.rules.write_text("")
    assert set(office.rows()) == {"anna"}


def test_one_that_cannot_be_looked_into_is_not_called_gone(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads that it is gone, and need not be there, would have it ignored."""
    office.add("anna", "team/ben")
    office.rows()
    look = LocalTree.look

    def closed(tree: LocalTree, folders: list[str]) -> Iterator[Looked]:
        for folder, found in zip(folders, look(tree, folders), strict=True):
            yield Looked(problem="Permission denied") if folder == "team" else found

    monkeypatch.setattr(LocalTree, "look", closed)
    row = office.rows(expect=1)["team/ben"]
    assert row["state"] == State.MISSING
    assert row["problems"] == ["it was here the last time, and team cannot be looked into now"]


def test_where_there_is_none_it_says_so(office: Office) -> None:
    assert "there is no archive beneath" in office.said(expect=10)[1]
    office.place += "/nowhere"
    assert "No such file" in office.said(expect=10)[1]


def test_a_second_place_that_is_not_mounted_is_not_filled(office: Office) -> None:
    office.add("anna")
    assert "is no folder" in office.said("--copy-to", f"{office.folder}/disk", expect=1)[1]


def test_it_says_one_line_for_each(office: Office) -> None:
    office.add("anna", "ben")
    out, _ = office.said("-v")
    lines = out.splitlines()
    assert [line.split(",")[0] for line in lines[:2]] == ["anna: well", "ben: well"]
    assert lines[2] == f"2 of 2 archives kept at {office.place}."
    assert office.said("-q") == ("", "")


def test_two_runs_at_once_are_one_too_many(office: Office) -> None:
    from backup_vm.jobs.upkeep.memory import Memory, folder_for

    office.add("anna")
    with Memory(folder_for(office.place)).alone():
        assert "another upkeep" in office.said(expect=11)[1]


def test_what_would_take_too_much_at_once_is_left_and_named(office: Office) -> None:
    office.add("anna")
    for _ in range(3):
        office.back_up()
        office.clock += DAY
    office.rules.write_text('[prune]\nkeep_last = 1\nmin_age = "0d"\n')
    row = office.rows(expect=1)["anna"]
    assert row["state"] == State.WARNED and row["removed"] == 0 and office.sessions("anna") == 4
    assert any("is left as it is" in problem for problem in row["problems"])


def test_how_much_is_scrubbed_can_be_said_for_one_run(office: Office) -> None:
    """Of every archive, also of one whose plan says never."""
    office.add("anna", "bert")
    office.rules.write_text('sample = "never"\n[archives.bert]\nsample = "1"\n')
    rules = ("--rules", str(office.rules))
    assert [row["scrubbed"] for row in office.rows(*rules).values()] == [0, 1]
    for row in office.rows(*rules, "--sample", "100%").values():
        assert row["scrubbed"] == row["of"] > 0
    for row in office.rows(*rules, "--older-than", "7d").values():
        assert row["scrubbed"] == 0
