# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of the space of an archive a part of which could not be read."""

import os
from typing import Any

import pytest

from backup_vm.archive import space
from backup_vm.archive.archive import Archive
from backup_vm.errors import DamagedError
from backup_vm.reporting.view import View
from backup_vm.volumes import Named, stored_volumes
from tests.kit import GRAIN, Site


@pytest.fixture
def several(site: Site) -> Site:
    """Three sessions, each of which builds on the one before."""
    for turn in range(3):
        with open(site.image(), "r+b") as file:
            file.truncate(6 * GRAIN)
            file.seek(turn * GRAIN)
            file.write(os.urandom(2 * GRAIN))
        site.backup()
    return site


def _volumes(site: Site, archive: Archive) -> list[Named]:
    return list(stored_volumes(archive, site.keys(archive), {}))


@pytest.mark.parametrize("turn", range(3))
def test_what_could_be_read_only_later_is_not_counted(
    several: Site, monkeypatch: pytest.MonkeyPatch, turn: int
) -> None:
    """A disk that fails once, as the entries of a session are read."""
    columns, reads = space.sessions.columns, []

    def failing(storage: Any, session: Any) -> Any:
        reads.append(session.file)
        if len(reads) == turn + 1:
            raise DamagedError(f"{session.file} cannot be read")
        return columns(storage, session)

    with several.open() as archive:
        (volume,) = _volumes(several, archive)
        with monkeypatch.context() as patch:
            patch.setattr(space.sessions, "columns", failing)
            seen = View.of(archive, [volume], space=True)
            row = seen.row(volume)
        assert row["own"] is None
        assert [session["frees"] for session in row["sessions"]] == [None] * 3
        assert reads[turn] in archive.damaged
        whole = View.of(archive, [volume], space=True).row(volume)
        assert whole["own"]
        assert None not in [session["frees"] for session in whole["sessions"]]


def test_what_a_removal_would_give_back_is_counted_without_it(
    several: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``prune --dry-run`` does."""
    columns, reads = space.sessions.columns, []

    def failing(storage: Any, session: Any) -> Any:
        reads.append(session.file)
        if len(reads) == 1:
            raise DamagedError(f"{session.file} cannot be read")
        return columns(storage, session)

    with several.open() as archive:
        (volume,) = _volumes(several, archive)
        monkeypatch.setattr(space.sessions, "columns", failing)
        account = space.Account(archive, {volume.id: list(volume.sessions)})
        assert account.comes_back({volume.sessions[0].file}) == 0
        assert account.comes_back({volume.sessions[1].file}) > 0
