# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of the names in sessions: what is found by them is what reading the sessions finds,
whatever became of them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backup_vm import cli
from backup_vm.archive import name_index
from backup_vm.archive.archive import Archive
from backup_vm.archive.name_index import NO_SEGMENT, NameFile
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.storage.beneath import Beneath
from backup_vm.errors import DamagedError
from backup_vm.jobs import indexing
from backup_vm.terminal.text import size_text
from tests.files.indexed import STATES, Indexed, Listed, filled
from tests.kit import PASSPHRASE, Site, own_domains
from tests.run.test_telling import samples
from tests.steps import deaths


def test_what_is_found_is_what_reading_finds(
    plain: Indexed, unread: list[str], listed: Listed
) -> None:
    for words in (("--name", "*.txt"), ("b", "--type", "f")):
        plain.must_find(listed, *words)
    assert plain.found("e/../b/./", "--name", "c*") == plain.found("b", "--name", "c*") != []
    rows = plain.index()
    assert [row["full"] for row in rows] == [True] + [False] * 4 and not plain.index()
    unread.clear()
    for words in (
        ("--name", "*.txt"), ("--name", "?.t[x]t", "--type", "f"), (), ("b",), ("--type", "d"),
        ("/e/f/",), ("--name", "*now*"), ("--type", "l"), ("--name", "odd \udcff*"), ("none",),
    ):  # fmt: skip
        plain.must_find(listed, *words)
    assert not unread
    words = ("--name", "c.txt", "--session", "all", "--passphrase-file", str(plain.passphrase))
    text = plain.run("files", "find", "work/private", *words)[0].splitlines()
    assert plain.found("e/../b/./", "--name", "c*") == plain.found("b", "--name", "c*") != []
    none = ("files", "find", "work/private", "--name", "none", "--session", "all", *words[-2:])
    assert plain.run(*none) == ("", "")
    assert len(text) == 4 and all(line.endswith("/b/c.txt") for line in text[1:])


def test_a_history_is_the_same_with_and_without(plain: Indexed, unread: list[str]) -> None:
    def histories() -> list[Any]:
        found = []
        for path in ("a.txt", "b/c.txt", "/b/d.bin", "b", "e/f/g.txt", "link/c.txt", "b/../a.txt"):
            unread.clear()
            rows = plain.keyed("files", "history", "work/private", path)["sessions"]
            found.append(([(row["session"], row["change"]) for row in rows], len(unread)))
        return found

    before = histories()
    plain.index()
    after = histories()
    assert [rows for rows, _ in before] == [rows for rows, _ in after]
    assert all(now <= then for (_, now), (_, then) in zip(after, before, strict=True))
    assert sum(now for _, now in after) < sum(then for _, then in before)


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


def test_their_space_is_told(indexed: Indexed, tmp_path: Path) -> None:
    """Also after a prune, which hands on what of them is still wanted."""
    for turn in (1, 0):
        there = sum(path.stat().st_size for path in indexed.files())
        status = indexed.keyed("status")
        (volume,) = indexed.keyed("list")["volumes"]
        assert there == status["names"] == status["volumes"][0]["names"] == volume["names"] > 0
        assert status["names_files"] == len(indexed.files())
        assert f"{size_text(there)} of indexes of names" in indexed.run("status")[0]
        heads, row = indexed.run("list")[0].splitlines()[:2]
        assert heads.endswith("NAMES") and row.endswith(size_text(there))
        indexed.run("status", "--metrics", str(tmp_path / "a.prom"))
        told = samples(tmp_path / "a.prom")
        assert told["sparsebak_names_bytes"] == there
        indexed.run("prune", "work/private", "--session", indexed.names()[turn], "--yes")
    for path in indexed.files():
        path.unlink()
    assert "NAMES" not in indexed.run("list")[0] and indexed.keyed("status")["names"] == 0


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


def test_what_is_wrong_with_an_index_is_said_and_costs_nothing_else(indexed: Indexed) -> None:
    first, second, third, *_ = paths = indexed.files()
    whole = {path: path.read_bytes() for path in paths}
    words = ("files", "find", "work/private", "--name", "*.txt", "--session", "all", "--json")
    words += ("--passphrase-file", str(indexed.passphrase))
    expected = indexed.run(*words)[0]

    def put(*contents: tuple[Path, bytes | None]) -> None:
        for path in paths:
            path.write_bytes(whole[path])
        for path, raw in contents:
            path.unlink() if raw is None else path.write_bytes(raw)

    raw = whole[second]
    block = len(raw) - 60  # within the last sealed block
    for contents, told in (
        ([(second, None)], False),  # those that build on it are of no use
        ([(second, raw[:block] + bytes([raw[block] ^ 1]) + raw[block + 1 :])], True),
        ([(second, raw[:-1])], True),
        ([(second, raw[:10])], True),
        ([(second, b"")], True),
        ([(second, whole[third])], True),
        ([(first, whole[second]), (second, whole[first])], True),
        ([(second, raw.replace(b"SBNAME\0\2", b"SBNAME\0\3"))], True),
    ):
        put(*contents)
        out, err = indexed.run(*words)
        assert out == expected and bool(err) == told, err
        assert err.count("\n") == err.count("sparsebak files index"), err
    put((second, raw[:block] + bytes([raw[block] ^ 1]) + raw[block + 1 :]))
    assert len(indexed.index()) == 4 and indexed.run(*words) == (expected, "")
    put((second, raw.replace(b"SBNAME\0\2", b"SBNAME\0\3")))
    found = indexed.json("scrub", expect=4)["damaged"]
    assert len(found) == 1 and not second.exists()
    assert len(indexed.index()) == 4 and indexed.json("scrub")["damaged"] == []
    assert indexed.run(*words) == (expected, "")


def test_links_and_pipes_in_its_place_are_not_followed(indexed: Indexed) -> None:
    path = indexed.files()[2]
    aside = path.with_name("aside")
    path.rename(aside)
    path.symlink_to(aside)
    words = ("files", "find", "work/private", "--session", "all")
    key = ("--passphrase-file", str(indexed.passphrase))
    assert "is ignored" in indexed.run(*words, *key)[1]
    path.unlink()
    os.mkfifo(path)
    assert "is ignored" in indexed.run(*words, *key)[1]
    path.unlink()
    path.mkdir()
    (path / "mine").touch()
    indexed.run("files", "index", *key, expect=4)  # made of all other sessions
    assert sum(map(Path.is_file, indexed.files())) == len(STATES) - 1
    name = indexed.names()[2]
    indexed.run("prune", "work/private", "--session", name, "--yes")
    indexed.run("prune", "work/private", "--session", indexed.names()[0], "--yes")
    assert len(indexed.json("scrub", expect=4)["damaged"]) == 1
    assert (path / "mine").exists()


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


@pytest.mark.parametrize("place", ["archive", "copy"])
def test_indexes_of_a_folder_that_cannot_be_listed_are_not_taken_for_copied(
    indexed: Indexed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """As they are to be copied, and only then: the next copy has them."""
    copy, entries, now = tmp_path / "copy", Beneath.entries, name_index.copy

    def failing(self: Beneath, folder: str) -> list[tuple[str, bool]]:
        if self.root.name == place and folder.startswith("volumes/"):
            raise DamagedError(f"{folder} cannot be read")
        return entries(self, folder)

    def failing_now(source: Archive, target: Archive) -> Iterator[str]:
        with monkeypatch.context() as patch:
            patch.setattr(Beneath, "entries", failing)
            yield from now(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(name_index, "copy", failing_now)
        said = indexed.run("copy", str(copy), expect=4)[1]
    assert "indexes of names were not copied" in said and not [*copy.rglob("*.names")]
    indexed.run("copy", str(copy))
    found = {folder: len([*folder.rglob("*.names")]) for folder in (copy, indexed.site.archive)}
    assert found[copy] == found[indexed.site.archive] > 0


def test_one_of_another_partition_is_not_used(plain: Indexed, unread: list[str]) -> None:
    plain.index("--partition", "0")  # what is read by default, too
    unread.clear()
    plain.found("--name", "*.txt")
    plain.found("--name", "*.txt", "--partition", "0")
    assert not unread


def test_a_session_and_all_again(plain: Indexed, listed: Listed) -> None:
    names = plain.names()
    assert [row["session"] for row in plain.index("--session", names[2])] == [names[2]]
    assert [row["session"] for row in plain.index()] == [n for n in names if n != names[2]]
    assert len(plain.index("--again")) == len(names)
    plain.must_find(listed, "--name", "*.txt")


def test_a_volume_without_a_file_system_has_none(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    site.backup()
    words = ["--archive", str(site.archive)]
    (tmp_path / "pw").write_bytes(PASSPHRASE)
    key = ["--passphrase-file", str(tmp_path / "pw")]
    assert cli.main([*words, "files", "index", "work/private", *key]) == 1
    assert cli.main([*words, "files", "index", *key]) == 0
    assert cli.main([*words, "files", "index", "--session", "latest", *key]) == 2
    assert not list(site.archive.glob("volumes/*/*.names"))


def test_a_grant_opens_those_of_its_domain_and_no_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unread: list[str]
) -> None:
    from tests.run.test_grants import Granting

    with own_domains():
        site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
        for volume in site.volumes:
            filled(site.image(volume), STATES[0])
        site.backup()
        filled(site.image("work/private"), STATES[1])
        site.backup()
    granting = Granting(site, capsys)
    granting.use(site)
    for volume in site.volumes:
        granting.keyed("files", "index", volume)
    names = granting.names()
    grant = ("--grant", str(granting.grant("--session", names[-1])))
    unread.clear()
    words = ("files", "find", "work/private", "--name", "*.txt", "--session", "all")
    found = granting.json(*words, *grant)["files"]
    assert not unread and {(row["first"], row["last"]) for row in found} == {(names[-1],) * 2}
    # made by the holder of a grant as by whoever has the key
    for path in site.archive.glob("volumes/*/*.names"):
        path.unlink()
    assert len(granting.json("files", "index", "work/private", *grant)["indexed"]) == 1
    unread.clear()
    assert granting.json(*words, *grant)["files"] == found and not unread


def test_what_does_not_fit_takes_no_room(
    plain: Indexed, listed: Listed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many files have the name, of which few have the type."""
    monkeypatch.setattr(indexing, "MOST_ROWS", 5)  # of the versions of all sessions
    plain.must_find(listed, "--type", "l")
    plain.index()
    plain.must_find(listed, "--type", "l")
