# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of names that are replaced, removed and handed on while others are made, read, copied."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive import name_index
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.cli.context import Context
from backup_vm.cli.files import indexing as indexing_command
from tests.files.indexed import Indexed, Listed, filled
from tests.kit import Site


def test_one_alone_made_again_keeps_those_that_build_on_it(
    indexed: Indexed, unread: list[str], listed: Listed
) -> None:
    for name in indexed.names()[:2]:
        indexed.index("--again", "--session", name)
    unread.clear()
    indexed.must_find(listed, "--name", "*.txt")
    assert not unread and not indexed.index()


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


def test_a_volume_that_is_removed_meanwhile_keeps_no_other_from_being_indexed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "site", volumes=("vault/private", "work/private"))
    filled(site.image(), {"a.txt": "a"})
    filled(site.image("vault/private"), {"b.txt": "b"})
    site.backup()
    commands = Indexed(site, capsys)
    contents = Context.contents

    @contextmanager
    def then_one_goes(*words: Any, **named: Any) -> Iterator[Any]:
        with contents(*words, **named) as found:
            yield found
        with site.open(writing=True) as archive:
            prune(archive, list(found.volumes[0].sessions))

    monkeypatch.setattr(Context, "contents", then_one_goes)
    key = ("--passphrase-file", str(commands.passphrase))
    out, error = commands.run("files", "index", "--json", *key)
    assert len(json.loads(out)["indexed"]) == 1
    assert error == "sparsebak: vault/private was removed meanwhile\n"


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


def test_a_copy_takes_nothing_from_where_another_machine_moved_it(
    indexed: Indexed, listed: Listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalWorkspace, "lock", lambda *_, **__: None)
    copy, archive, check = tmp_path / "copy", indexed.site.archive, name_index.check
    indexed.run("copy", str(copy))
    for path in copy.glob("volumes/*/*.names"):
        path.unlink()

    def late(storage: Any, name: str) -> None:
        if storage.describe() == str(archive) and name == name_index.of_session(series[0].file):
            monkeypatch.setattr(name_index, "check", check)
            with open_archive(str(archive), writing=True) as other:
                prune(other, [series[0]])
        check(storage, name)

    with open_archive(str(archive), writing=False) as other:
        (series,) = other.sessions().values()
    monkeypatch.setattr(name_index, "check", late)
    indexed.run("copy", str(copy))
    assert indexed.json("scrub", "--archive", str(copy))["damaged"] == []
