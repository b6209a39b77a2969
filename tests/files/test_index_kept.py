# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of names through what becomes of their sessions: pruned, copied, removed meanwhile."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive import name_index
from backup_vm.archive.name_index import NO_SEGMENT, NameFile
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.cli.files import indexing as indexing_command
from tests.files.indexed import STATES, Indexed, Listed
from tests.steps import deaths


@pytest.mark.parametrize("gone", [(1,), (0, 1, 2), (2, 4)])
def test_an_index_outlives_the_sessions_that_it_builds_on(
    indexed: Indexed, unread: list[str], listed: Listed, gone: tuple[int, ...]
) -> None:
    names = indexed.names()
    for turn in gone:
        words = ("--session", names[turn], "--yes")
        indexed.run("prune", "work/private", *words)
    assert len(indexed.files()) == len(STATES) - len(gone) == len(indexed.names())
    unread.clear()
    indexed.must_find(listed, "--name", "*.txt")
    assert not unread and not indexed.index()
    assert indexed.json("scrub")["damaged"] == []


def test_a_prune_that_dies_leaves_indexes_that_hold(kept: Path, tmp_path: Path) -> None:
    """At each file that it puts in a place or removes."""
    folder = tmp_path / "archive"

    def run() -> None:
        with open_archive(str(folder), writing=True) as archive:
            (series,) = archive.sessions().values()
            prune(archive, [series[at] for at in (0, 1, 3) if at < len(series)])

    def hold() -> int:
        with open_archive(str(folder), writing=False) as archive:
            (series,) = archive.sessions().values()
            found = list(
                name_index.load_all(archive.storage, series[0].volume, archive.parameters.archive)
            )
        indexes = {one.id: one for one in found if isinstance(one, NameFile)}
        named = {one.name: one for one in indexes.values()}
        for session in series:
            one: NameFile | None = named[name_index.of_session(session.file)]
            while one is not None and one.base != NO_SEGMENT:
                one = indexes.get(one.base)
            assert one is not None, session.name
        return len(series)

    shutil.copytree(kept, folder)
    died = 0
    for _ in deaths(run, ("replace", "rename", "unlink")):
        left = hold()
        died += left == len(STATES)
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
    assert left == 2 and died > 2


def test_a_copy_has_the_indexes_of_its_sessions(
    indexed: Indexed, tmp_path: Path, unread: list[str]
) -> None:
    names, copy = indexed.names(), tmp_path / "copy"
    indexed.run("copy", str(copy))
    indexed.run("prune", "work/private", "--session", names[1], "--yes")
    there = ("--archive", str(copy))
    unread.clear()
    assert len(indexed.found("--name", "*.txt", *there)) > 5 and not unread
    indexed.run("prune", "work/private", "--session", names[0], "--yes", *there)
    for path in copy.glob("volumes/*/*.names"):
        if path.name > sorted(one.name for one in copy.glob("volumes/*/*.names"))[1]:
            path.unlink()
    indexed.run("copy", str(copy))  # what the copy lacks builds on what it has
    unread.clear()
    indexed.found("--name", "*.txt", *there)
    assert not unread and indexed.json("scrub", *there)["damaged"] == []


def test_what_an_index_builds_on_is_removed_while_it_is_made(
    indexed: Indexed, unread: list[str], listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in indexed.files()[3:]:
        path.unlink()
    store, names = indexing_command._Run.store, indexed.names()

    def store_late(self: Any, archive: Any, made: Any) -> None:
        (series,) = archive.sessions().values()
        if len(series) == len(names):
            prune(archive, [series[2]])
        store(self, archive, made)

    monkeypatch.setattr(indexing_command._Run, "store", store_late)
    assert [row["session"] for row in indexed.index()] == names[3:]
    unread.clear()
    indexed.must_find(listed, "--name", "*.txt")
    assert not unread


def test_what_another_machine_prunes_is_not_called_damaged(
    indexed: Indexed, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where flock does not reach, at one look into an index and another."""
    monkeypatch.setattr(LocalWorkspace, "lock", lambda *_, **__: None)
    archive, names, looks = indexed.site.archive, indexed.names(), 0
    blocks = name_index.sealed_blocks

    def pruning(at: int) -> Any:
        def late(*args: Any) -> Any:
            nonlocal looks
            looks += 1
            if looks == at:
                with open_archive(str(archive), writing=True) as other:
                    (series,) = other.sessions().values()
                    prune(other, [series[0], series[2]])
            return blocks(*args)

        return late

    words = ("files", "find", "work/private", "--name", "*.txt", "--session", "all", "--json")
    words += ("--passphrase-file", str(indexed.passphrase))
    expected = versions(indexed.run(*words)[0], names)
    for at in (2, 5):
        monkeypatch.setattr(name_index, "sealed_blocks", pruning(at))
        looks = 0
        out, err = indexed.run(*words)
        assert versions(out, names) == expected
        said = err.replace("was removed by another machine", "").splitlines()
        assert all("session 2" in line or "without an index" in line for line in said), err
        assert looks >= at
        shutil.rmtree(archive)
        shutil.copytree(kept, archive)


def versions(out: str, names: list[str]) -> set[tuple[str, str, int]]:
    """Of the sessions that stay: path and size of what is found."""
    found = json.loads(out)["files"]
    return {
        (name, row["path"], row["size"])
        for row in found
        for name in (names[1], names[3], names[4])
        if row["first"] <= name <= row["last"]
    }
