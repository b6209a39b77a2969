# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions of small file systems, and the commands that index and find what is in them."""

import os
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Commands
from tests.kit import Site

SIZE = "8M"


def filled(image: Path, files: dict[str, str], size: str = SIZE) -> None:
    """A file system with these files."""
    folder = image.with_name("tree")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(1, len(text) * 10**9))
    (folder / "link").symlink_to("b")
    image.unlink()
    words = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(folder), str(image), size]
    subprocess.run(words, check=True, env={**os.environ, "E2FSPROGS_FAKE_TIME": "1000000"})
    shutil.rmtree(folder)


def name(turn: int) -> str:
    return "odd " + "\udcff" * turn + ".txt"


STATES: list[dict[str, str]] = [
    {"a.txt": "a", "b/c.txt": "c", "b/d.bin": "d", name(1): "1"},
    {"a.txt": "a", "b/c.txt": "cc", "b/d.bin": "d", name(1): "1", "e/f/g.txt": "g"},
    {"a.txt": "a", "b/c.txt": "cc", "e/f/g.txt": "g", name(2): "2"},
    {"a.txt/now a folder.txt": "aa", "b/c.txt": "cc", name(2): "2"},
    {"a.txt": "a", "b/c.txt": "c", "b/d.bin": "d", name(1): "1"},
]


Listed = dict[str, list[Any]]
"""All files of each session, as reading it finds them."""


class Indexed(Commands):
    """The commands, on a site with a session of each state."""

    def __init__(self, site: Site, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(site, capsys)
        self.settings(f'archive = "{site.archive}"\nagent = "local:{site.config}"\n')

    def index(self, *words: str) -> Any:
        return self.keyed("files", "index", "work/private", *words)["indexed"]

    def found(self, *words: str) -> list[Any]:
        found = self.keyed("files", "find", "work/private", *words, "--session", "all")["files"]
        assert isinstance(found, list)
        return found

    def must_find(self, listed: Listed, *words: str) -> None:
        """What is found must be what fits of what reading the sessions finds."""
        options = dict(zip(words, words[1:], strict=False))
        kinds = {"f": "file", "d": "folder", "l": "link"}
        kind = kinds.get(options.get("--type", ""))
        pattern = os.fsencode(options.get("--name", "*"))
        top = f"/{words[0].strip('/')}/" if words and words[0][0] != "-" else "/"
        expected = {
            (session, row["path"], row["size"] if row["type"] != "folder" else 0)
            for session in self.names()
            for row in listed[session]
            if fnmatchcase(os.fsencode(row["path"].rpartition("/")[2]), pattern)
            and kind in (None, row["type"])
            and row["path"].startswith(top)
        }
        names, found = self.names(), set[tuple[str, str, int]]()
        for row in self.found(*words):
            first, last = names.index(row["first"]), names.index(row["last"])
            assert last - first + 1 == row["sessions"]
            size = row["size"] if row["type"] != "folder" else 0
            some = {(session, row["path"], size) for session in names[first : last + 1]}
            assert not some & found
            found |= some
        assert found == expected

    def files(self) -> list[Path]:
        return sorted(self.site.archive.glob("volumes/*/*.names"))
