# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage to an archive is found and named, what is intact can be restored, and the next backup
heals what it can.
"""

import hashlib
import random
import sqlite3
from pathlib import Path

import pytest

from backup_vm.archive import references
from backup_vm.archive.format import DIGEST_SIZE
from backup_vm.archive.image import split
from backup_vm.archive.packs import read_index
from backup_vm.archive.parameters import load
from backup_vm.archive.prune import prune
from backup_vm.archive.scrub import scrub
from backup_vm.archive.sessions import load as load_session
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.errors import DamagedError, NoArchiveError, SparsebakError
from backup_vm.terminal.progress import Progress
from tests.kit import GRAIN, Site, change, fill

SIZE = 30 * GRAIN


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Two volumes, three sessions each, some of them pruned, in several packs."""
    monkeypatch.setattr(LocalStorage, "pack_size", 8 * GRAIN)
    site = Site(tmp_path / "site", volumes=("work/private", "other/private"))
    rng = random.Random(5)
    for at, name in enumerate(site.volumes):
        fill(site.image(name), SIZE, at)
    for _ in range(4):
        site.backup()
        for name in site.volumes:
            change(site.image(name), rng, resize=False)
    with site.open(True) as archive:
        prune(archive, [series[1] for series in archive.sessions().values()])
    return site


def files(site: Site, pattern: str) -> list[Path]:
    return sorted(site.archive.rglob(pattern))


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def named(site: Site, path: Path) -> bool:
    """Whether scrub finds something and names the file."""
    return any(
        path.name in str(getattr(finding, "problem", finding)) for finding in site.scrubbed()
    )


@pytest.mark.parametrize("pattern", ["*.pack", "*.session"])
def test_any_flipped_byte_is_found_and_named(built: Site, pattern: str) -> None:
    rng = random.Random(3)
    for path in files(built, pattern):
        size, whole = path.stat().st_size, path.read_bytes()
        places = {0, 1, 9, 23, 24, 30, 70, size - 1, size - 9, size - 20, size - 36, size - 37}
        for at in sorted(places | {rng.randrange(size) for _ in range(12)}):
            flip(path, at)
            assert named(built, path), (path, at, size)
            path.write_bytes(whole)
            with built.open(True) as archive:
                archive.rebuild_catalog()
    assert built.scrubbed() == []


@pytest.mark.parametrize("pattern", ["*.pack", "*.session"])
def test_a_cut_or_missing_file_is_found_and_named(built: Site, pattern: str) -> None:
    for path in files(built, pattern):
        whole = path.read_bytes()
        for length in (0, 10, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            assert named(built, path), (path, length)
            path.write_bytes(whole)
            with built.open(True) as archive:
                archive.rebuild_catalog()
        path.unlink()
        findings = built.scrubbed()
        if pattern == "*.pack":
            assert findings, path
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(whole)
        with built.open(True) as archive:
            archive.rebuild_catalog()
    assert built.scrubbed() == []


def test_a_pack_of_damaged_chunks_costs_one_reading_of_the_sessions(
    built: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each of them is named with the sessions that list it."""
    pack = max(files(built, "*.pack"), key=lambda path: path.stat().st_size)
    name = f"packs/{pack.parent.name}/{pack.name}"
    with built.open(False) as archive:
        entries = read_index(archive.storage, name, archive.parameters.archive)
        needed = {
            entry.id: {
                file
                for file in archive.session_files()
                if any(entry.id in split(ids) for ids in references.ids(archive, file))
            }
            for entry in entries
        }
    for entry in entries:
        flip(pack, entry.offset + entry.length // 2)
    read: list[str] = []
    ids = references.ids
    with built.open(True) as archive:
        monkeypatch.setattr(
            references, "ids", lambda one, file: read.append(file) or ids(one, file)
        )
        found = list(scrub(archive, Progress(), [name]))
        sessions = archive.session_files()
    told = {
        one.problem.rpartition("chunk ")[2][:16]: set(one.sessions)
        for one in found
        if "chunk " in one.problem
    }
    assert {i.hex()[:16]: names for i, names in needed.items() if names}.items() <= told.items()
    # by whoever compares the catalog, looks for users, and looks for what is missing
    assert len(needed) > 3 and max(map(read.count, sessions)) <= 4


def test_damage_that_no_session_needs_any_more_is_reported_once(built: Site) -> None:
    """The chunk was sent again; what is left of it is in its pack until that is emptied."""
    built.backup()
    with built.open() as archive:
        (series, *_) = archive.sessions().values()
        image = archive.image(series, series[-1])
        ids = [chunk for _, part in image.windows() for chunk in part if any(chunk)]
        place = min(archive.catalog.places(ids).values())
    flip(built.archive / place.pack, place.offset + 40)
    assert built.scrubbed() != []
    built.backup()
    built.scrubbed()
    assert built.scrubbed() == []
    flip(built.archive / place.pack, place.offset + 40)
    assert built.scrubbed() == []


def test_a_missing_session_is_named_by_what_builds_on_it(built: Site) -> None:
    """Without any key."""
    volume = files(built, "*.session")[0].parent
    first = sorted(volume.glob("*.session"))[0]
    first.unlink()
    lost = first.stem.rpartition("-")[2]
    with built.open() as archive:
        series = archive.sessions(volume.name)[volume.name]
        for session in series:
            with pytest.raises(DamagedError, match=f"builds on session {lost}.*missing"):
                archive.image(series, session)
    with pytest.raises(DamagedError, match=lost):
        built.verify_all()


def test_a_session_of_an_impossible_time_is_damaged(built: Site) -> None:
    """Its time is in clear; the seal would tell, but only where the key is."""
    path = files(built, "*.session")[0]
    time = load_session(
        LocalStorage(built.archive), str(path.relative_to(built.archive))
    ).clear.time.to_bytes(8, "little")
    body = path.read_bytes()[:-DIGEST_SIZE].replace(time, time[:-1] + b"\x40", 1)
    path.write_bytes(body + hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest())
    assert named(built, path)
    with built.open() as archive:
        assert (
            sum(len(series) for series in archive.sessions().values())
            == len(files(built, "*.session")) - 1
        )


def test_archive_toml_is_checked(built: Site) -> None:
    path = built.archive / "archive.toml"
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        with pytest.raises(DamagedError, match="archive.toml"):
            load(LocalStorage(built.archive))
        path.write_bytes(whole)
    path.unlink()
    with pytest.raises(NoArchiveError):
        load(LocalStorage(built.archive))


def test_what_is_intact_stays_restorable(built: Site) -> None:
    contents = {name: built.images(name) for name in built.volumes}
    for path in files(built, "*.pack"):
        whole = path.read_bytes()
        for at in (40, len(whole) // 2, len(whole) - 5):
            flip(path, at)
            intact = broken = 0
            for name in built.volumes:
                for at_session in range(3):
                    try:
                        built.restore(at_session, name)
                    except SparsebakError:
                        broken += 1
                        continue
                    assert (
                        built.image(name).read_bytes() == list(contents[name].values())[at_session]
                    )
                    intact += 1
            assert intact + broken == 6 and (intact or len(files(built, "*.pack")) == 1)
            path.write_bytes(whole)


def test_a_damaged_session_spoils_only_its_own_volume_from_there_on(built: Site) -> None:
    series = sorted(files(built, "*.session")[0].parent.glob("*.session"))
    flip(series[1], 80)
    with built.open() as archive:
        volumes = archive.sessions()
        (mine,) = [found for found in volumes.values() if found[0].file.endswith(series[0].name)]
        assert len(mine) == 2 and len(archive.damaged) == 1
        archive.image(mine, mine[0])
        with pytest.raises(DamagedError, match=series[1].name):
            archive.image(mine, mine[1])
    with built.open(True) as archive, pytest.raises(DamagedError, match="nothing was pruned"):
        prune(archive, [mine[0]])


@pytest.mark.parametrize("pattern", ["*.pack", "*.session"])
def test_the_next_backup_heals(built: Site, pattern: str) -> None:
    """After scrub has found damage, what is lacking is compared and sent again."""
    path = files(built, pattern)[0]
    flip(path, path.stat().st_size // 2)
    assert named(built, path)
    built.backup()
    for name in built.volumes:
        with built.open() as archive:
            keys = built.keys(archive)
            from backup_vm.jobs.reading import assemble
            from backup_vm.terminal.progress import Progress
            from backup_vm.volumes import stored_volumes

            volume = next(v for v in stored_volumes(archive, keys, {}) if v.name == name)
            image, target = (
                archive.image(list(volume.sessions), volume.sessions[-1]),
                built.root / "healed.img",
            )
            assemble(archive, image, keys, name, target, Progress())
            assert target.read_bytes() == built.image(name).read_bytes()


@pytest.mark.parametrize(
    "harm", ["delete", "empty", "noise", "flip", "drop a table", "lose rows", "wrong places"]
)
def test_the_catalog_is_only_a_cache(built: Site, harm: str) -> None:
    path = built.archive / "catalog.sqlite"
    contents = {name: built.images(name) for name in built.volumes}
    if harm == "delete":
        path.unlink()
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "noise":
        path.write_bytes(random.Random(1).randbytes(20000))
    elif harm == "flip":
        for at in range(0, path.stat().st_size, 97):
            flip(path, at)
    else:
        database = sqlite3.connect(path)
        statement = {
            "drop a table": "DROP TABLE chunks",
            "lose rows": "DELETE FROM chunks",
            "wrong places": "UPDATE chunks SET offset = offset + 1",
        }[harm]
        database.execute(statement)
        database.commit()
        database.close()
    if harm in ("lose rows", "wrong places"):
        assert built.scrubbed() != []
    assert {name: built.images(name) for name in built.volumes} == contents
    built.backup()
    assert built.scrubbed() == []
    for name in built.volumes:
        assert list(built.images(name).values())[-1] == built.image(name).read_bytes()


def test_an_archive_on_a_read_only_disk_can_be_read(built: Site) -> None:
    import os
    import subprocess

    from tests.conftest import cannot

    if os.geteuid() != 0:
        cannot("a read-only bind mount needs root")
    contents = built.images()
    subprocess.run(["mount", "--bind", built.archive, built.archive], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", built.archive], check=True)
        assert built.images() == contents
        (built.root / "catalog").mkdir()
    finally:
        subprocess.run(["umount", built.archive], check=True)


def test_a_copy_that_could_not_be_given_back_is_no_damage(
    built: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that cannot punch holes, what was pruned and comes again is in two packs."""
    monkeypatch.setattr(LocalStorage, "punch", lambda *_: False)
    first = built.image().read_bytes()
    built.backup()
    fill(built.image(), SIZE, 77)
    built.backup()
    with built.open(True) as archive:
        prune(
            archive, [session for series in archive.sessions().values() for session in series[:-1]]
        )
    built.image().write_bytes(first)
    built.backup()
    assert built.scrubbed() == []
    assert list(built.images().values())[-1] == first
    with built.open(True) as archive:
        archive.rebuild_catalog()
    assert built.scrubbed() == [] and list(built.images().values())[-1] == first
