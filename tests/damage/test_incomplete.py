# SPDX-License-Identifier: GPL-2.0-or-later
"""Sessions that are known not to be whole: which these are, and that every command says so."""

import random
import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backup_vm.archive.archive import Archive
from backup_vm.archive.incomplete import incomplete
from backup_vm.errors import DamagedError
from backup_vm.jobs.reading import read_image
from backup_vm.terminal.progress import Progress
from tests.certainty import session_files
from tests.commands import Commands
from tests.kit import GRAIN, Site, change
from wire.chunks import ZERO_ID

pytestmark = pytest.mark.usefixtures("small_packs")
SESSIONS = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Sessions of a volume that grows, shrinks and is written to here and there."""
    site = Site(tmp_path_factory.mktemp("made") / "site")
    rng = random.Random(7)
    site.image().write_bytes(rng.randbytes(20 * GRAIN))
    for _ in range(SESSIONS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("backup_vm.archive.storage.local.LocalStorage.pack_size", 3 * GRAIN)
            site.backup()
        change(site.image(), rng)
    return site


def truly(archive: Archive) -> set[str]:
    """Files of the sessions of which the catalog lacks a chunk of the image."""
    found = set()
    for series in archive.sessions().values():
        for session in series:
            ids = {one for _, some in archive.image(series, session).windows() for one in some}
            if archive.catalog.lacking(ids - {ZERO_ID}):
                found.add(session.file)
    return found


@pytest.mark.parametrize("lost", range(4))
def test_they_are_those_whose_images_lack_a_chunk(made: Site, tmp_path: Path, lost: int) -> None:
    shutil.copytree(made.root, tmp_path / "site", symlinks=True)
    site = Site(tmp_path / "site", make=False)
    every = sorted(site.archive.rglob("*.pack"))
    for path in random.Random(lost).sample(every, lost):
        path.unlink()
    with site.open(True) as archive:
        assert set(incomplete(archive, archive.sessions())) == truly(archive)
        assert bool(lost) == bool(truly(archive))
    with site.open() as archive:  # as it was known before
        assert set(incomplete(archive, archive.sessions())) == truly(archive)


def test_a_session_file_that_is_damaged_spoils_all_that_cannot_be_proven(built: Site) -> None:
    """Wherever in it a byte has another value, once a scrub has found it."""
    path, catalog = session_files(built)[1], built.archive / "catalog.sqlite"
    raw, before = path.read_bytes(), catalog.read_bytes()
    for at in range(40, len(raw), 90):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        catalog.write_bytes(before)
        assert built.scrubbed()
        with built.open(True) as archive:
            archive.catalog.marks.storing = True  # the next run looks through all of it
        with built.open(True):
            pass
        with built.open() as archive:
            (series,), keys = archive.sessions().values(), built.keys(archive)
            known = set(incomplete(archive, archive.sessions()))
            for session in series:
                try:
                    image = archive.image(series, session)
                    read_image(archive, image, keys, "work/private", Progress(), None)
                except DamagedError:
                    assert session.file in known, at
            assert any(path.name in one for one in (*known, *archive.damaged)), at


@pytest.fixture
def spoilt(site: Site, commands: Commands) -> list[str]:
    """Names of four sessions of which the first lacks what the second and the third inherit."""
    names = []
    for number, blocks in enumerate((8, 1, 1, 8)):
        with open(site.image(), "r+b" if number else "wb") as image:
            image.write(random.Random(number).randbytes(blocks * GRAIN))
        names.append(site.backup().done[0].session)
        if not number:
            pack = max(site.archive.rglob("*.pack"), key=lambda path: path.stat().st_size)
    pack.unlink()
    assert commands.run("scrub", expect=4)[1]
    return names


def test_every_command_that_shows_or_takes_them_says_so(
    spoilt: list[str], commands: Commands, tmp_path: Path
) -> None:
    site, key = commands.site, ("--passphrase-file", str(commands.passphrase))
    (volume,) = commands.keyed("list")["volumes"]
    lacking = {one["session"]: one["spoilt"] is not None for one in volume["sessions"]}
    assert list(lacking) == spoilt and list(lacking.values()) == [True, True, True, False]
    status = commands.keyed("status")
    assert status["volumes"][0]["spoilt"] == 3
    assert len([one for one in status["problems"] if "work/private: spoilt: " in one]) == 1
    out, said = commands.run("list", "work", *key)
    assert out.count("spoilt") == 3 and said.count("work/private: spoilt: ") == 1
    out, _ = commands.run("status", *key)
    assert "3 spoilt" in out and "work/private: spoilt: " in out
    page = tmp_path / "page.html"
    commands.run("report", "-o", str(page), *key)
    assert "work/private: spoilt: " in page.read_text()
    metrics = tmp_path / "a.prom"
    commands.run("status", "--metrics", str(metrics), *key)
    (sample,) = [
        sample
        for family in text_string_to_metric_families(metrics.read_text())
        if family.name == "sparsebak_volume_spoilt_sessions"
        for sample in family.samples
    ]
    assert sample.value == 3
    bad = [
        one
        for one in commands.json("doctor", expect=1)["findings"]
        if one["state"] == "bad" and "spoilt" in one["what"]
    ]
    assert len(bad) == 1 and "sparsebak backup" in bad[0]["remedy"]
    first = f"work/private: spoilt: {spoilt[0]} ("
    image = site.image()
    before = image.read_bytes()
    assert (
        first
        in commands.run(
            "restore", "work/private", "--session", spoilt[0], "-u", "--yes", *key, expect=4
        )[1]
    )
    assert image.read_bytes() == before
    said = commands.run("prune", "work", "--session", spoilt[3], "-u", "--dry-run", *key)[1]
    assert "what is left: spoilt: " in said and "to be removed: spoilt" not in said
    said = commands.run("prune", "work", "--session", spoilt[1], "-u", "--dry-run", *key)[1]
    assert f"what is to be removed: spoilt: {spoilt[1]}" in said
    said = commands.run("copy", str(tmp_path / "copy"), expect=4)[1]
    assert said.startswith("sparsebak: volume ") and ": spoilt: " in said.splitlines()[0]
    out = tmp_path / "image"
    assert (
        first
        in commands.run(
            "assemble", "work/private", "--session", spoilt[0], "-o", str(out), *key, expect=4
        )[1]
    )
    assert not out.exists()
    said = commands.run("assemble", "work/private", "-o", str(out), *key)[1]
    assert not said and out.read_bytes() == before


def test_what_a_backup_has_stored_again_is_whole(spoilt: list[str], commands: Commands) -> None:
    site = commands.site
    with open(site.image(), "r+b") as image:
        image.write(random.Random(0).randbytes(8 * GRAIN))  # as in the first session
    site.backup()
    (volume,) = commands.keyed("list")["volumes"]
    assert [one["spoilt"] for one in volume["sessions"]] == [None] * 5
    assert commands.keyed("status")["volumes"][0]["spoilt"] == 0
    commands.keyed("verify", "--session", "all")
