# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore takes what differs from what is there, by what dom0 knows, and the rest stays where it
is: on real Btrfs and XFS.
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import common.clone
from dom0_agent.config import load
from dom0_agent.sources import fiemap, reflink
from dom0_agent.sources.extents import LENGTH, LOGICAL, SHIFT
from dom0_agent.tracking.state import VolumeState
from tests.commands import Commands
from tests.kit import GRAIN, Site, change, fill, punch, truly_changed

SIZE = 50 * GRAIN + 999
MakeCommands = Callable[[Site], Commands]


def put(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def places(path: Path) -> set[tuple[int, int]]:
    """Blocks of the disk that a file has, with where in the file they are."""
    fd = os.open(path, os.O_RDONLY)
    try:
        rows = [row for rows in fiemap.rows(fd, os.fstat(fd).st_size) for row in rows]
    finally:
        os.close(fd)
    return {
        (at, row[SHIFT])
        for row in rows
        for at in range(row[LOGICAL], row[LOGICAL] + row[LENGTH], 4096)
    }


def test_only_what_differs_is_wanted_and_written(reflink_site: Site) -> None:
    site = reflink_site
    with open(site.image(), "wb") as file:
        file.write(random.Random(1).randbytes(SIZE))
    site.backup()
    before = site.contents()
    assert site.restore() == 0 and site.contents() == before
    put(site.image(), 3 * GRAIN + 5, b"changed")
    put(site.image(), 9 * GRAIN - 1, b"xy")
    put(site.image(), SIZE - 1, b"z")
    clone = places(site.image())
    assert site.restore() == 4 and site.contents() == before
    assert len(places(site.image()) & clone) >= len(clone) - 4 * GRAIN // 4096
    done = site.backup().done[0]
    assert done.stored == 0 and done.changed <= 4 * GRAIN
    assert site.restore(whole=True) == 51 and site.contents() == before
    assert not places(site.image()) & clone
    assert site.restore() == 0, "all of it is elsewhere, and the same"
    assert site.contents() == before


def test_zeros_come_back_as_holes(reflink_site: Site) -> None:
    site = reflink_site
    with open(site.image(), "wb") as file:
        file.truncate(SIZE)
    put(site.image(), 5 * GRAIN, b"something")
    site.backup()
    before, room = site.contents(), site.image().stat().st_blocks
    put(site.image(), 20 * GRAIN - 77, os.urandom(5 * GRAIN))
    put(site.image(), SIZE - 3 * GRAIN, os.urandom(3 * GRAIN))
    os.sync()
    assert site.image().stat().st_blocks > room
    assert site.restore() == 6 + 4 and site.contents() == before
    os.sync()
    assert site.image().stat().st_blocks == room


def test_any_session_over_any_contents(reflink_site: Site) -> None:
    """Sessions that are pending, committed later, or given up meanwhile; other sizes; the last one
    or an old one: what is there after a restore is the session, and the next backup stores that.
    """
    site = reflink_site
    fill(site.image(), SIZE, 1)
    site.backup()

    @settings(max_examples=5)
    @given(
        st.integers(0, 1 << 30),
        st.lists(st.sampled_from("ccczbbpmaxrrr"), min_size=4, max_size=9),
    )
    def check(seed: int, acts: list[str]) -> None:
        rng = random.Random(seed)
        for act in [*acts, "r"]:
            run(site, act, rng)

    check()
    assert site.scrubbed() == []


def run(site: Site, act: str, rng: random.Random) -> None:
    """Do one thing; after a restore compare with the session, and with what there was to do."""
    if act == "c":
        change(site.image(), rng, resize=False)
    elif act == "z":
        change(site.image(), rng)
    elif act == "b":
        site.backup()
        assert list(site.images().values())[-1] == site.contents()
    elif act == "p":
        pending(site)
    elif act == "m":
        site.monitor()
    elif act == "x" and os.path.getsize(site.image()) > GRAIN:
        with open(site.image(), "r+b") as file:
            punch(file.fileno(), GRAIN, GRAIN)
    elif act == "a":
        with site.open() as archive:
            state = VolumeState(load(site.config).state_dir, "work", "private").load()
            for progress in state.follows.values():
                if progress.pending:
                    session = bytes.fromhex(progress.pending.session)
                    site.agent(archive).abort("work", "private", session)
    elif act == "r":
        images, now = list(site.images().values()), site.contents()
        at = rng.randrange(len(images))
        wanted = site.restore(at)
        assert site.contents() == images[at]
        if len(now) == len(images[at]):
            assert wanted >= len(truly_changed(now, images[at]))
        site.backup()
        assert list(site.images().values())[-1] == images[at]


def pending(site: Site) -> None:
    """Begin a session and extract it; whoever comes next commits it, resumes it or gives it up."""
    with site.open() as archive:
        agent, entry = site.agent(archive), site.listed(archive)[0]
        offer = agent.snapshot("work", "private", entry.session, 1, 0)
        with agent.extract("work", "private", offer.session, 0) as reply:
            reply.only()


def zero_chunks(site: Site) -> int:
    image = list(site.images().values())[-1]
    return sum(not any(image[at : at + GRAIN]) for at in range(0, SIZE, GRAIN))


def wanted_after(site: Site) -> int:
    """How many chunks are wanted for the newest session, which the image is made again."""
    before = list(site.images().values())[-1]
    wanted = site.restore()
    assert site.contents() == before
    return wanted


def test_where_dom0_is_not_certain_all_is_taken(
    reflink_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = reflink_site
    fill(site.image(), SIZE)
    site.backup()
    folder = VolumeState(load(site.config).state_dir, "work", "private").directory
    assert wanted_after(site) == 0
    with monkeypatch.context() as patched:
        patched.setattr(reflink, "changed_ranges", lambda *_: (None, b""))
        assert wanted_after(site) == 51
    with monkeypatch.context() as patched:  # as where a file system that cannot clone is mounted
        patched.setattr(common.clone, "_FICLONE", 0x1234)
        assert wanted_after(site) == 51
    (ids,) = folder.glob("*.ids")
    raw = bytearray(ids.read_bytes())
    raw[0] ^= 1
    ids.write_bytes(raw)
    assert wanted_after(site) == zero_chunks(site), "a page that does not prove is read"
    ids.with_name(ids.name + ".pages").unlink()
    assert wanted_after(site) == 51
    site.backup()
    assert wanted_after(site) == 0
    put(site.image(), 2 * GRAIN, b"monitored")
    site.monitor()
    (bitmap,) = folder.glob("*.map")
    raw = bytearray(bitmap.read_bytes())
    raw[-1] ^= 1
    bitmap.write_bytes(raw)
    zeros = zero_chunks(site)
    assert wanted_after(site) in (zeros, zeros + 1), "all is read, and zeros are made anyway"
    for snapshot in site.pool.rglob("*.snap"):
        snapshot.unlink()
        assert wanted_after(site) == 51
        snapshot.symlink_to(site.image())  # cannot be opened
    assert wanted_after(site) == 51
    (folder / "state.json").write_bytes(b"{")
    assert wanted_after(site) == 51


def test_assembled_onto_an_image(reflink_site: Site, commands_for: MakeCommands) -> None:
    """Whatever that is: what differs is written to a clone of it."""
    site, rng = reflink_site, random.Random(4)
    fill(site.image(), SIZE, 3)
    site.backup()
    change(site.image(), rng, resize=False)
    site.backup()
    shell, target = commands_for(site), site.root / "work.img"
    key = ["--passphrase-file", str(shell.passphrase)]
    for image, session in (site.image(), 0), (site.image(), 1), (Path("/dev/null"), 0):
        target.write_bytes(image.read_bytes())
        (name, expected) = list(site.images().items())[session]
        words = ["assemble", "work/private", "--session", name, "--onto", str(target), *key]
        shell.run(*words, expect=1)
        shell.run(*words, "--yes")
        assert target.read_bytes() == expected
    with open(target, "r+b") as file:
        file.write(b"something")
        file.truncate(SIZE + 5 * GRAIN)
    before = places(target)
    shell.run(*words, "--yes")
    assert target.read_bytes() == expected
    assert len(places(target) & before) >= len(places(target)) - GRAIN // 4096
    os.chown(target, 1234, 1235)
    target.chmod(0o640)
    with open(target, "rb"):
        assert "in use" in shell.fails(1, *words, "--yes")
    shell.run(*words, "--yes")
    found = target.stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, 1234, 1235)
    assert "leave out --from" in shell.fails(2, *words, "--yes", "--from", "backup-vm")
    words[words.index(str(target))] = str(site.root / "none.img")
    assert "no image file" in shell.fails(1, *words, "--yes")
