# SPDX-License-Identifier: GPL-2.0-or-later
"""What whoever can write at the place may put there: it keeps no other archive from being kept."""

import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backup_vm.archive.damage import text_checksum
from backup_vm.archive.parameters import _CHECK
from backup_vm.errors import Exit
from backup_vm.reporting.kept_rows import State
from common.override import override
from tests.upkeep.kit import Office

TAG = '<script src="x">&amp;<!-- \'"'
LINE = 'a"b\\n} 1'


class Page(HTMLParser):
    """The tags of a page, and what is in the cells of its table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.cells, self._cell = set[str](), list[str](), False
        self.feed(text)
        self.close()

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._cell = tag in ("td", "th")
        if self._cell:
            self.cells.append("")

    @override
    def handle_endtag(self, tag: str) -> None:
        self._cell = False

    @override
    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells[-1] += data


def _there(office: Office, name: str) -> Path:
    return Path(office.place) / name


def _other_version(folder: Path) -> None:
    file = folder / "archive.toml"
    body, check, _ = file.read_bytes().rpartition(_CHECK.encode())
    body = re.sub(rb"^format = .*$", b"format = 99", body, count=1, flags=re.MULTILINE)
    file.chmod(0o600)
    file.write_bytes(body + check + f'"{text_checksum(body)}"\n'.encode())


def _lost_pack(folder: Path) -> None:
    next(folder.rglob("*.pack")).unlink()


def _cut_pack(folder: Path) -> None:
    os.truncate(next(folder.rglob("*.pack")), 100)


def _no_parameters(folder: Path) -> None:
    (folder / "archive.toml").unlink()
    (folder / "archive.toml").mkdir()


def _all_junk(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o600)
            file.write_bytes(b"\0junk\xff" * 9)


def _link_out(folder: Path) -> None:
    packs = folder / "packs"
    shutil.rmtree(packs)
    packs.symlink_to("/etc")


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (_other_version, Exit.FAILED),
        (_lost_pack, Exit.DAMAGED),
        (_cut_pack, Exit.DAMAGED),
        (_no_parameters, Exit.DAMAGED),
        (_all_junk, Exit.DAMAGED),
        (_link_out, Exit.DAMAGED),
    ],
)
def test_a_bad_archive_keeps_no_other_from_being_kept(
    office: Office, harm: Callable[[Path], None], code: Exit
) -> None:
    office.add("anna", "ben", "cleo", grains=2)
    office.rules.write_text('sample = "all"\n')
    harm(_there(office, "ben"))
    rows = office.rows(expect=code)
    assert rows["anna"]["state"] == State.WELL == rows["cleo"]["state"]
    assert rows["ben"]["state"] == (State.DAMAGED if code == Exit.DAMAGED else State.FAILED)
    assert rows["ben"]["problems"]
    assert "unexpected" not in " ".join(rows["ben"]["problems"])
    told = [*rows["ben"]["problems"], *rows["ben"]["notes"]]
    assert len(set(told)) == len(told), "nothing is told twice"


def test_junk_links_and_an_archive_within_one_are_no_archives(office: Office) -> None:
    office.add("anna", "team/ben", grains=1)
    place = Path(office.place)
    shutil.copytree(place / "team/ben", place / "anna/inner")
    (place / "link").symlink_to("anna")
    (place / "loop").symlink_to(".")
    (place / "junk/a/b/c/d/e").mkdir(parents=True)
    (place / "junk/archive.toml.old").write_text("junk")
    os.mkfifo(place / "pipe")
    (place / ".snapshots").mkdir()
    shutil.copytree(place / "team/ben", place / ".snapshots/ben")
    assert set(office.rows()) == {"anna", "team/ben"}
    assert "inner" in os.listdir(place / "anna"), "what is not ours is not removed"


def test_an_impossible_name_is_told_and_not_looked_into(office: Office) -> None:
    office.add("anna", grains=1)
    for raw in (b"\x1b[31mred\nben", b"\xff\xfe", "\u202egnp".encode()):
        os.mkdir(os.fsencode(office.place) + b"/" + raw)
        Path(os.fsdecode(os.fsencode(office.place) + b"/" + raw), "archive.toml").touch()
    report = office.folder / "page.html"
    done, error = office.keep("--report", str(report), expect=Exit.FAILED)
    assert [row["state"] for row in done["archives"]] == [State.WELL]
    assert len(done["problems"]) == 3, done["problems"]
    page = report.read_text()
    for text in (error, page):
        assert not set(text) & set("\x1b\u202e\udcff")


def test_a_name_is_text_in_the_page_and_in_the_metrics(office: Office) -> None:
    office.add("anna", grains=1)
    for name in (TAG, LINE):
        _there(office, "anna").rename(_there(office, "x"))
        shutil.copytree(_there(office, "x"), _there(office, name))
        _there(office, "x").rename(_there(office, "anna"))
    report, metrics = office.folder / "page.html", office.folder / "all.prom"
    names = {"anna", TAG, LINE}
    rows = office.rows("--report", str(report), "--metrics", str(metrics))
    assert set(rows) == names
    page = Page(report.read_text())
    assert "script" not in page.tags and names <= set(page.cells)
    told = {
        value
        for family in text_string_to_metric_families(metrics.read_text())
        for sample in family.samples
        for value in sample.labels.values()
    }
    assert names <= told


def test_a_home_that_is_no_folder(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    office.add("alice")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/dev/null")
    nothing, error = office.keep(expect=1)
    assert nothing is None and error.count("\n") == 1
    assert "no folder /dev/null/" in error and "set HOME or XDG_STATE_HOME" in error
