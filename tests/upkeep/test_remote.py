# SPDX-License-Identifier: GPL-2.0-or-later
"""Upkeep of archives on an SSH host and in an object store."""

from pathlib import Path

import pytest

from backup_vm.archive.opening import open_archive
from backup_vm.archive.storage import objects, open_storage
from backup_vm.errors import Exit
from backup_vm.jobs.upkeep import rounds
from backup_vm.reporting.kept_rows import State
from tests.remote.kit import Network, Server
from tests.upkeep.kit import RULES, Office


def test_each_is_found_pruned_scrubbed_and_copied(remote_office: Office, server: Server) -> None:
    office = remote_office
    office.add("anna", "team/ben", grains=2)
    office.back_up()
    second = server.url(f"{Path(office.place).name}-second")
    rules = RULES.replace("keep_daily = 2", "keep_daily = 1")
    office.rules.write_text(f'sample = "all"\ncopy_to = "{second}"\n{rules}')
    rows = office.rows()
    assert set(rows) == {"anna", "team/ben"}
    for name, row in rows.items():
        assert row["state"] == State.WELL and row["problems"] == [], row
        assert row["removed"] == 1 == row["sessions"] == row["copied"]
        assert row["scrubbed"] == row["of"] > 0
        with open_archive(f"{second}/{name}", None) as copy:
            assert len(copy.session_files()) == 1 == office.sessions(name)
    office.back_up("anna")
    assert {name: row["copied"] for name, row in office.rows().items()} == {
        "anna": 1,
        "team/ben": 0,
    }


def test_one_that_is_damaged_keeps_no_other_from_being_kept(remote_office: Office) -> None:
    office = remote_office
    office.add("anna-1", "ben", grains=1)
    store = open_storage(f"{office.place}/ben")
    store.write("archive.toml", b"junk = ")
    rows = office.rows(expect=Exit.DAMAGED)
    assert rows["anna-1"]["state"] == State.WELL, rows["anna-1"]
    assert rows["ben"]["state"] == State.DAMAGED and rows["ben"]["problems"]


def test_where_there_is_none_it_says_so(remote_office: Office) -> None:
    assert "there is no" in remote_office.said(expect=Exit.NO_ARCHIVE)[1]


@pytest.mark.parametrize("server", ["sftp"], indirect=True)
def test_no_link_of_an_ssh_host_is_followed(remote_office: Office, server: Server) -> None:
    office = remote_office
    office.add("anna", grains=1)
    folder = server.folder / Path(office.place).name
    (folder / "link").symlink_to("anna")
    (folder / "up").symlink_to(".")
    (folder / "nowhere").symlink_to("/nonexistent")
    assert set(office.rows()) == {"anna"}


def test_a_server_that_goes_away_leaves_the_others(
    remote_office: Office, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    office = remote_office
    office.add("anna", "ben", "cleo", grains=1)
    office.place = network.url(Path(office.place).name)
    whole = rounds.keep

    def gone(task: rounds.Task, row: rounds.KeptRow, progress: rounds.Progress) -> None:
        whole(task, row, progress)
        if row["name"] == "anna":
            network.down = True
            network.cut()

    monkeypatch.setattr(objects, "DELAYS", (0.01,))
    monkeypatch.setattr(rounds, "keep", gone)
    done, _ = office.keep(expect=1)
    assert [row["state"] for row in done["archives"]] == [State.WELL, State.FAILED, State.LEFT]
    assert "the others were left" in done["problems"][0]
    network.down = False
    monkeypatch.setattr(rounds, "keep", whole)
    assert {row["state"] for row in office.rows().values()} == {State.WELL}
