# SPDX-License-Identifier: GPL-2.0-or-later
"""What is not certain is not used: lost packs and sessions, old catalogs, lies in the catalog,
files of other programs.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm.archive import lease as leases
from backup_vm.archive.archive import Archive
from backup_vm.archive.format import SessionFile
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.errors import DamagedError, LockedError
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from tests.certainty import (
    CHUNKS,
    cut_off_after,
    newest,
    packs_take,
    run,
    session_files,
    write,
)
from tests.commands import Commands
from tests.kit import GRAIN, Site
from tests.mutation.forms import fields_of, seal_session
from wire import LAST_SEQUENCE

Make = Callable[[Site], Commands]


pytestmark = pytest.mark.usefixtures("small_packs")


# Packs


@pytest.mark.parametrize("harm", ["lost", "cut"])
def test_a_lost_pack_is_named_once_and_healed(built: Site, commands_for: Make, harm: str) -> None:
    pack = max(built.archive.rglob("*.pack"), key=lambda path: path.stat().st_size)
    if harm == "lost":
        pack.unlink()
    else:
        os.truncate(pack, 100)
    commands = commands_for(built)
    error = commands.run("backup", expect=4)[1]
    assert pack.name in error and "spoilt" in error
    commands.run("backup")
    commands.run("verify", "--passphrase-file", str(commands.passphrase))
    assert newest(built) == [built.contents()]


def test_a_lost_pack_whose_chunks_come_back_heals_old_sessions_too(built: Site) -> None:
    images = list(built.images().values())
    for pack in built.archive.rglob("*.pack"):
        pack.unlink()
    built.image().write_bytes(images[0])
    assert run(built).spoilt and not run(built).spoilt
    for image in images[1:]:
        built.image().write_bytes(image)
        built.backup()
    assert list(built.images().values())[:3] == images and built.scrubbed() == []


def test_a_pack_that_is_put_back_is_believed_again(built: Site) -> None:
    images = built.images()
    pack = next(built.archive.rglob("*.pack"))
    pack.rename(built.root / "aside")
    with built.open() as archive:
        archive.catalog.count()
        assert archive.found, "readers find it, too"
    (built.root / "aside").rename(pack)
    assert built.images() == images and built.scrubbed() == []


def _prunes(archive: Archive) -> object:
    (series,) = archive.sessions().values()
    return prune(archive, series[:2])


@pytest.mark.parametrize(
    ("act", "harm"),
    [
        (_prunes, "*.pack"),
        (_prunes, "*.session"),
        (Archive.rebuild_catalog, "*.pack"),
        (lambda archive: list(scrub(archive, Progress())), "*.pack"),
    ],
)
def test_a_writer_that_has_lost_its_lease_calls_nothing_damaged(
    built: Site, monkeypatch: pytest.MonkeyPatch, act: Callable[[Archive], object], harm: str
) -> None:
    """Another machine has the lease by then, and moves what this one reads."""
    with pytest.raises(LockedError, match="is lost"), built.open(True) as archive:
        for path in sorted(built.archive.rglob(harm))[:-1]:
            path.unlink()
        monkeypatch.setattr(leases, "_HALF", 0.0)
        act(archive)
    monkeypatch.undo()
    with built.open() as archive:
        archive.catalog.count()
        assert archive.found or archive.lost, "whoever has the lease finds it"


# Interrupted runs


@pytest.mark.parametrize("harm", ["rot", "lost"])
def test_what_a_partial_session_lists_is_checked_when_it_is_resumed(built: Site, harm: str) -> None:
    write(built, 9, 0, CHUNKS)
    cut_off_after(built, 12)
    with built.open() as archive:
        (partial,) = archive.partials()
        ids = {raw[at : at + 32] for raw in partial.ids() for at in range(0, len(raw), 32)}
        partial.close()
        place = min(archive.catalog.places(ids).values())
    pack = built.archive / place.pack
    if harm == "lost":
        pack.unlink()
    else:
        with open(pack, "r+b") as file:
            file.seek(place.offset + 40)
            file.write(b"rot" * 5)
        assert built.scrubbed()
    assert run(built).done[0].resumed
    built.verify_all()
    assert newest(built) == [built.contents()]


# Session files


def test_a_missing_session_is_found_and_healed_and_nothing_freed_meanwhile(
    built: Site, commands_for: Make
) -> None:
    images, commands = built.images(), commands_for(built)
    victim, kept = session_files(built)[1], built.root / "kept"
    victim.rename(kept)
    before = packs_take(built)
    assert victim.name.partition("-")[2][:32] in commands.run("scrub", expect=4)[1]
    write(built, 7, 0)
    commands.run("backup")  # scrub has said it; this run heals
    assert newest(built) == [built.contents()]
    said = commands.run("prune", "work", "--session", next(iter(images)), expect=4)[1]
    assert "what is left: spoilt: " in said and "nothing was pruned: " in said.splitlines()[-1]
    assert packs_take(built) >= before
    kept.rename(victim)
    found = built.images()
    assert {name: found[name] for name in images} == images
    built.verify_all()
    commands.run("prune", "--keep-last", "1")
    assert packs_take(built) < before and built.scrubbed() == []


def test_the_first_to_notice_a_missing_session_is_backup(built: Site, commands_for: Make) -> None:
    session_files(built)[1].unlink()
    commands = commands_for(built)
    error = commands.run("backup", expect=4)[1]
    assert "builds on" in error
    commands.run("backup")
    assert newest(built) == [built.contents()]
    assert commands.run("scrub", expect=4)[1], "what stays spoilt is named until it is pruned"
    commands.run("prune", "--keep-last", "1")
    commands.run("scrub")


def test_a_missing_session_and_a_run_that_died(built: Site) -> None:
    """Chunks without a session are dropped from the catalog then; those of the missing one's
    successors stay.
    """
    write(built, 9, 0, CHUNKS)
    cut_off_after(built, 6)
    images, victim, kept = built.images(), session_files(built)[1], built.root / "kept"
    victim.rename(kept)
    run(built)
    kept.rename(victim)
    found = built.images()
    assert {name: found[name] for name in images} == images


@pytest.mark.parametrize("which", [slice(2, 3), slice(0, 3)], ids=["newest", "all"])
def test_the_newest_session_is_missed_and_can_be_put_back(
    built: Site, commands_for: Make, which: slice
) -> None:
    """Nothing that is there builds on it: only the catalog knows."""
    images, commands, kept = built.images(), commands_for(built), built.root / "kept"
    copy = built.root / "copy"
    commands.run("copy", str(copy))
    kept.mkdir()
    gone = session_files(built)[which]
    for path in gone:
        path.rename(kept / path.name)
    error = commands.run("copy", str(copy), "--delete", "--yes", expect=4)[1]
    assert gone[-1].name in error and built.images(folder=copy) == images
    assert gone[-1].name in commands.run("list", "--passphrase-file", str(commands.passphrase))[1]
    before = packs_take(built)
    words = ["prune", "--keep-last", "1", "--passphrase-file", str(commands.passphrase)]
    error = commands.run(*words, expect=4)[1]
    assert gone[-1].name in error and "no space is reclaimed" in error
    commands.run("scrub")
    assert packs_take(built) == before
    for path in gone:
        (kept / path.name).rename(path)
    assert newest(built) == [list(images.values())[-1]] and built.scrubbed() == []


@pytest.mark.parametrize("words", [("delete", "work/private", "--yes"), ("prune", "--session")])
def test_what_was_removed_by_name_is_not_missed(
    built: Site, commands_for: Make, words: tuple[str, ...]
) -> None:
    """Not even when the run that removed it died before its end."""
    commands, before = commands_for(built), packs_take(built)
    if words[0] == "prune":
        words = ("prune", "work", "--session", list(built.images())[-1])
    key = ("--passphrase-file", str(commands.passphrase))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backup_vm.archive.prune.reclaim", dies)
        commands.run(*words, *key, expect=None)
    assert len(session_files(built)) < 3
    assert "missing" not in commands.run("list", *key)[1]
    assert "missing" not in commands.run("scrub")[1] and packs_take(built) < before


def test_damage_to_one_volume_leaves_the_others_alone(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", volumes=("work/private", "other/private"))
    for turn in range(3):
        for at, name in enumerate(site.volumes):
            if turn == 0:
                site.image(name).write_bytes(random.Random(at).randbytes(CHUNKS * GRAIN))
            write(site, 10 * turn + at, turn, name=name)
        site.backup()
    with site.open() as archive:
        keys = site.keys(archive)
        ids = {volume.name: volume.id for volume in stored_volumes(archive, keys, {})}
    damaged = sorted((site.archive / "volumes" / ids["other/private"]).iterdir())[1]
    damaged.write_bytes(b"not a session")
    before = packs_take(site)
    with site.open(True) as archive:
        series = archive.sessions(ids["work/private"])[ids["work/private"]]
        done = prune(archive, series[:1])
        assert (
            done.sessions == 1
            and done.space == 0
            and "no space is reclaimed" in str(archive.warnings)
        )
        theirs = archive.sessions(ids["other/private"])[ids["other/private"]]
        with pytest.raises(DamagedError, match="left as it is"):
            prune(archive, theirs[:1])
    assert packs_take(site) == before
    run(site)
    run(site)
    assert newest(site) == [site.contents(name) for name in site.volumes]
    with site.open(True) as archive:
        doomed = [s for series in archive.sessions().values() for s in series[:-1]]
        assert prune(archive, doomed).space > 0
        assert not archive.damaged and not damaged.exists()
    assert site.scrubbed() == []


@pytest.mark.parametrize("number", [LAST_SEQUENCE + 1, 5 * 10**9, 10**10 - 1])
def test_a_session_of_a_number_that_dom0_does_not_give(
    built: Site, commands_for: Make, number: int
) -> None:
    """Whoever writes to the disk made it: it is damage, and keeps no volume from being stored."""
    images, commands = built.images(), commands_for(built)
    last = session_files(built)[-1]
    raw = bytearray(last.read_bytes())
    fields = {field.name: field for field in fields_of(SessionFile, bytes(raw))}
    at, session = fields["record.clear.sequence"].at, fields["record.clear.session"]
    raw[at : at + 8] = number.to_bytes(8, "little")
    raw[session.at : session.at + 16] = b"forged" + bytes(10)
    forged = last.with_name(f"{number:010}-{(b'forged' + bytes(10)).hex()}.session")
    forged.write_bytes(seal_session(bytes(raw)))
    assert built.images() == images
    report = run(built)
    assert not report.failed and len(report.done) == len(built.volumes)
    assert newest(built) == [built.contents(name) for name in built.volumes]
    assert forged.name in commands.run("scrub", expect=4)[1]
    forged.unlink()
    run(built)
    assert newest(built) == [built.contents(name) for name in built.volumes]
    assert built.scrubbed() == []


def test_notes_that_are_gone_are_missed_once(built: Site, commands_for: Make) -> None:
    """Without them no session seems to have a tag, and the next prune may take one that had."""
    commands, notes = commands_for(built), built.archive / "notes.json"
    commands.run("scrub")
    assert commands.run("backup")[1] == "", "it was there all along"
    commands.keyed(
        "tag", built.volumes[0].partition("/")[0], "--session", "latest", "--add", "gold"
    )
    notes.unlink()
    error = commands.run("backup")[1]
    assert "notes.json is missing" in error and error.count("\n") == 1
    assert commands.run("backup")[1] == commands.run("scrub")[1] == ""


# Files of other programs


def test_what_has_not_exactly_our_names_is_ignored(built: Site, commands_for: Make) -> None:
    images, commands = built.images(), commands_for(built)
    session, pack = session_files(built)[1], next(built.archive.rglob("*.pack"))
    foreign = [
        session.with_name(f"{session.stem} (conflicted copy 2026-11-01).session"),
        session.with_name(f"{session.stem}.sync-conflict-20261101-120000-ABCDEFG.session"),
        session.with_name("._" + session.name),
        session.with_name(session.name.upper()),
        session.with_name("0" + session.name),
        pack.with_name(f"{pack.stem} (1).pack"),
        pack.parent.with_name("zz") / pack.name,
        pack.with_name("00" + pack.name[2:] if pack.name[:2] != "00" else "01" + pack.name[2:]),
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(session if path.suffix == ".session" else pack, path)
    assert built.images() == images
    error = commands.run("scrub")[1]
    assert all(path.name in error for path in foreign)
    commands.run("verify", "--passphrase-file", str(commands.passphrase))
    commands.run("prune", "--keep-last", "2")
    assert not run(built).done[0].full
    assert all(path.exists() for path in foreign)
