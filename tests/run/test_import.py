# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions that are imported while something goes wrong."""

import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive.format import NO_BASE
from backup_vm.archive.intake import Entry, Incoming
from backup_vm.archive.pack_writer import PackWriter
from backup_vm.archive.scrub import scrub
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError
from backup_vm.jobs.copy import copy
from backup_vm.terminal.progress import Progress
from tests.commands import Commands
from tests.exports import drop, images, with_sessions
from tests.kit import GRAIN, Site, change, fill
from tests.steps import deaths


@pytest.fixture(autouse=True)
def small_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStorage, "pack_size", 4 * GRAIN)


@pytest.fixture
def built(site: Site) -> Site:
    return with_sessions(site)


class Changing(io.BytesIO):
    """A file that is another one when it is read again, as a store that lies can make it."""

    def __init__(self, first: bytes, then: bytes) -> None:
        super().__init__(first)
        self._then = then

    def seek(self, at: int, whence: int = 0) -> int:
        if at == whence == 0:
            self.truncate(0)
            super().seek(0)
            self.write(self._then)
        return super().seek(at, whence)


@pytest.mark.parametrize("harm", ["another chunk", "cut short"])
def test_a_file_that_changes_while_it_is_imported(built: Site, harm: str) -> None:
    from backup_vm.jobs.export import export, take_in

    out, before = io.BytesIO(), built.images()
    with built.open() as archive:
        (series,) = archive.sessions().values()
        export(archive, archive.image(series, series[1]), "work/private", out, Progress())
    drop(built, built.archive, 1)
    left, packs = built.images(), sorted(built.archive.rglob("*.pack"))
    raw = out.getvalue()
    at = len(raw) - 100
    then = raw[:at] if harm == "cut short" else raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    with (
        built.open(True) as archive,
        pytest.raises(DamagedError, match="changed while it was read"),
    ):
        take_in(archive, Changing(raw, then), Path("x"), Progress(), built.keys(archive))
    assert built.images() == left
    assert sorted(built.archive.rglob("*.pack")) == packs
    with built.open(True) as archive:
        take_in(archive, io.BytesIO(raw), Path("x"), Progress(), built.keys(archive))
    assert built.images() == before and built.scrubbed() == []


def test_what_was_begun_with_other_entries_is_begun_again(built: Site) -> None:
    target = built.root / "copy"
    with built.open() as archive:
        copy(archive, str(target), Progress())
    before = images(built, target)
    drop(built, target, 1)
    with built.open() as source, built.open(True, target) as archive:
        (series,) = source.sessions().values()
        writer = PackWriter(archive)
        first = Incoming(archive, writer, series[1].record, NO_BASE, 0, b"1" * 16)
        for number in range(3):
            first.take(Entry(number, bytes([number + 1]) * 32, b"sealed"))
        writer.flush()
        first.close()
        assert Incoming(archive, writer, series[1].record, NO_BASE, 0, b"1" * 16).position == 3, (
            "resumed"
        )
        again = Incoming(archive, writer, series[1].record, NO_BASE, 0, b"2" * 16)
        assert again.position == 0 and not writer.holds(b"\x01" * 32)
        again.close()
        writer.close()
    with built.open() as source:
        assert copy(source, str(target), Progress()).sessions >= 1
    assert images(built, target) == before
    with built.open(True, target) as archive:
        assert list(scrub(archive, Progress())) == [] and archive.warnings == []


def test_an_import_killed_at_every_step(
    tmp_path: Path, commands_for: Callable[[Site], Commands]
) -> None:
    site = Site(tmp_path / "site")
    fill(site.image(), 8 * GRAIN)
    for turn in range(3):
        site.backup()
        change(site.image(), random.Random(turn))
    before, commands = site.images(), commands_for(site)
    commands.keyed("export", "work", "--session", list(before)[1], "-o", str(site.root / "one"))
    drop(site, site.archive, 1)
    left, kept = site.images(), tmp_path / "kept"
    shutil.copytree(site.archive, kept)

    def attempt() -> None:
        from backup_vm.jobs.export import take_in

        with site.open(True) as archive, open(site.root / "one", "rb") as stream:
            take_in(archive, stream, site.root / "one", Progress())

    for _ in deaths(attempt):
        found = site.images()
        assert found in (left, before)
        if found == left:
            attempt()
        assert site.images() == before
        shutil.rmtree(site.archive)
        shutil.copytree(kept, site.archive)
    assert os.path.exists(kept)
    with pytest.raises(DamagedError), site.open(True) as archive:
        (site.root / "empty").write_bytes((site.root / "one").read_bytes()[:2000])
        from backup_vm.jobs.export import take_in

        with open(site.root / "empty", "rb") as stream:
            take_in(archive, stream, site.root / "empty", Progress())
