# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak files`` as users run it, on sessions of a volume."""

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive.packs import PackReader
from backup_vm.errors import DamagedError
from tests.commands import Commands
from tests.files import trees

EVIL = "x\x1b[31m\u202e\u2066\x07\x9b"


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stored(commands: Commands) -> Commands:
    """Three sessions: odd files; some changes; and one file more."""
    site = commands.site
    image = site.image()
    trees.made(image, "ext4")
    with trees.mounted(image) as folder:
        trees.names(folder / "names")
        (folder / "etc").mkdir()
        (folder / "etc" / "hosts").write_text("one\n")
        (folder / "etc" / "gone").write_text("gone")
        (folder / "etc" / "same").write_bytes(b"s" * 300_000)
        (folder / "etc" / EVIL).write_text(EVIL)
        os.symlink("etc", folder / "link")
        (folder / "etc" / "quiet").write_text("1111")
        os.utime(folder / "etc" / "quiet", ns=(5, 5))
    site.backup()
    with trees.mounted(image) as folder:
        (folder / "etc" / "hosts").write_text("two\n")
        (folder / "etc" / "gone").unlink()
        (folder / "etc" / "same").chmod(0o600)
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text("n")
    site.backup()
    with trees.mounted(image) as folder:
        (folder / "more").write_bytes(b"m" * 100_000)
    site.backup()
    return commands


def key(commands: Commands) -> tuple[str, str]:
    return "--passphrase-file", str(commands.passphrase)


def test_what_is_there_is_listed_found_and_shown(stored: Commands) -> None:
    def run(action: str, *words: str) -> str:
        return stored.run("files", action, "work/private", *words, *key(stored))[0]

    top = ["etc", "link", "lost+found", "more", "names", "new"]
    assert run("ls").splitlines() == top
    assert "link -> etc" in run("ls", "-l")
    first = stored.names()[0]
    assert run("ls", "--session", first).splitlines() == ["etc", "link", "lost+found", "names"]
    assert run("cat", "link/../etc/./hosts") == "two\n"
    assert run("cat", "etc/hosts", "--session", first) == "one\n"
    assert run("find", "--name", "h*s", "--type", "f") == "/etc/hosts\n"
    assert "  hosts\n" in run("tree", "etc") and "hosts" not in run("tree", "--depth", "1")
    about = stored.keyed("files", "stat", "work/private", "link")
    assert about["type"] == "link" and about["target"] == "etc"
    listed = stored.keyed("files", "ls", "work/private", "names")["files"]
    assert b"/names/\xff\xfe" in [os.fsencode(one["path"]) for one in listed]


def test_a_history_says_in_which_sessions_a_file_changed(
    stored: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changes(path: str) -> list[tuple[int, str]]:
        found = stored.keyed("files", "history", "work/private", path)["sessions"]
        return [(stored.names().index(one["session"]), one["change"]) for one in found]

    assert changes("etc/hosts") == [(0, "+"), (1, "M")]
    assert changes("etc/gone") == [(0, "+"), (1, "-")]
    assert changes("etc/same") == [(0, "+"), (1, "m")]
    assert changes("new/file") == [(1, "+")]
    assert "no session" in stored.fails(
        1, "files", "history", "work/private", "etc/never", *key(stored)
    )


def test_sessions_in_which_nothing_changed_are_not_read(
    stored: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backup_vm.files.session import SessionFiles
    from backup_vm.jobs.files import VolumeFiles

    opened: list[str] = []
    closed: list[str] = []
    monkeypatch.setattr(SessionFiles, "close", lambda self: closed.append("closed"))
    before = VolumeFiles.open
    site = stored.site
    with open(site.image(), "r+b") as file:  # where no file is
        file.seek(trees.FORMS["ext4"][2] * trees.MIB - 200_000)
        file.write(b"something else")
    site.backup()
    monkeypatch.setattr(
        VolumeFiles,
        "open",
        lambda self, session, watch=False: (
            opened.append(session.name) or before(self, session, watch)  # type: ignore[func-returns-value]
        ),
    )
    stored.run("files", "history", "work/private", "etc/hosts", *key(stored))
    assert len(opened) < len(stored.names()) == 4
    assert closed.count("closed") >= len(opened) - 1  # memory does not grow with sessions


def test_a_diff_is_one_of_files(stored: Commands) -> None:
    first, second, third = stored.names()

    def changed(*words: str) -> set[str]:
        return set(
            stored.run("files", "diff", "work/private", *words, *key(stored))[0].splitlines()
        )

    expected = {"M /etc/hosts", "- /etc/gone", "m /etc/same", "+ /new", "+ /new/file"}
    assert changed(first, second) == expected
    assert changed(first, second, "--contents") == expected
    assert changed(second, third) == {"+ /more"}
    assert changed(third, third) == set()
    assert changed(first, second, "new") == {"+ /new", "+ /new/file"}
    assert changed(first, second, "etc/gone") == {"- /etc/gone"}
    words = ("files", "diff", "work/private", first, second, "none", *key(stored))
    assert "neither session has none" in stored.fails(1, *words)
    assert changed(second, first, "etc") == {"M /etc/hosts", "+ /etc/gone", "m /etc/same"}


def test_copies_replace_nothing(stored: Commands) -> None:
    target = stored.site.root / "out"
    target.mkdir()
    words = ("files", "cp", "work/private", "etc/hosts", "new", str(target), *key(stored))
    stored.run(*words)
    assert (target / "hosts").read_text() == "two\n"
    assert (target / "new" / "file").read_text() == "n"
    assert "exists" in stored.fails(1, *words)
    assert sorted(os.listdir(target)) == ["hosts", "new"]
    for name, there in (("link", os.path.islink), ("link/", os.path.isdir)):
        path = target / f"of {name.strip('/')} {name.count('/')}"
        stored.run("files", "cp", "work/private", name, str(path), *key(stored))
        assert there(path) and path.is_symlink() == (name == "link")
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    words = ("files", "cp", "work/private", "etc/hosts/", str(target / "x"), *key(stored))
    assert "not a folder" in stored.fails(1, *words)
    stored.run("files", "cp", "work/private", "/", str(target / "all"), *key(stored))
    assert (target / "all" / "link").readlink() == Path("etc")


def test_names_and_contents_are_nothing_that_a_terminal_obeys(
    stored: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in (["ls", "-l"], ["tree"], ["find"], ["stat"], ["history"]):
        path = "etc" if action[0] in ("ls", "tree", "find") else f"etc/{EVIL}"
        out, err = stored.run("files", *action, "work/private", path, *key(stored))
        assert ("\\x1b" in out or action == ["history"]) and not any(
            x in out + err for x in EVIL[1:] if not x.isprintable()
        )
    _, err = stored.run("files", "cat", "work/private", f"etc/{EVIL}x", *key(stored), expect=1)
    assert "\x1b" not in err
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(raw, "utf-8", write_through=True))
    stored.outcome("files", "cat", "work/private", f"etc/{EVIL}", *key(stored))
    assert b"\\x1b" in raw.getvalue() and b"\x1b" not in raw.getvalue()


def test_what_is_damaged_in_the_archive_does_not_stop_a_copy(commands: Commands) -> None:
    site = commands.site
    trees.made(site.image(), "ext4")
    with trees.mounted(site.image()) as folder:
        for number in range(40):
            (folder / f"file-{number}").write_bytes(os.urandom(200_000))
    site.backup()
    (pack,) = site.archive.rglob("*.pack")
    with open(pack, "r+b") as file:
        file.seek(pack.stat().st_size // 2)
        file.write(b"damage" * 10)
    out = site.root / "out"
    words = ("files", "cp", "work/private", "/", str(out), *key(commands))
    _, err = commands.run(*words, expect=4)
    assert "Traceback" not in err and 1 <= err.count("\n") <= 3
    copied = [path for path in out.iterdir() if path.name.startswith("file-")]
    assert 37 <= len(copied) < 40 and all(path.stat().st_size == 200_000 for path in copied)


def test_what_cannot_be_is_one_line(stored: Commands) -> None:
    def fails(code: int, action: str, *words: str) -> str:
        return stored.fails(code, "files", action, "work/private", *words, *key(stored))

    assert "no /nowhere" in fails(1, "ls", "nowhere")
    assert "not a folder" in fails(1, "ls", "etc/hosts/x")
    assert "not a regular file" in fails(1, "cat", "etc")
    assert "not a folder" in fails(2, "tree", "etc/hosts")
    assert "no partition 3" in fails(1, "ls", "--partition", "3")
    assert "passphrase" in stored.fails(12, "files", "ls", "work/private")
    image = stored.site.image()
    with open(image, "r+b") as file:
        file.truncate(3 << 20)
    stored.site.backup()
    assert "beyond the image's end" in fails(1, "cp", "/", str(stored.site.root / "out"))
    image.write_bytes(os.urandom(1 << 20))
    stored.site.backup()
    assert "no file system in it" in fails(1, "ls")


def test_json_that_cannot_be_whole_is_an_object_or_nothing(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.made(commands.site.image(), "ext4")
    with trees.mounted(commands.site.image()) as folder:
        for number in range(1500):
            (folder / f"{number:0200}").touch()
    commands.site.backup()
    read, codes = PackReader.read, set()
    for upto in (4, 6, 8):
        left = upto

        def failing(self: PackReader, *place: Any) -> memoryview:
            nonlocal left
            left -= 1
            if left < 0:
                raise DamagedError("a bad sector")
            return read(self, *place)

        monkeypatch.setattr(PackReader, "read", failing)
        for action in ("ls", "find"):
            left = upto
            words = ("files", action, "work/private", "/", *key(commands), "--json")
            code, out, _ = commands.outcome(*words)
            codes.add(code)
            assert not out or json.loads(out)["files"] is not None, out[:200]
            assert code or len(json.loads(out)["files"]) > 1500
    assert 4 in codes
