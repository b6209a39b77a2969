# SPDX-License-Identifier: GPL-2.0-or-later
"""What the backup VM, the disk, and a qube that works with them can learn; and what a clock or an
old copy of dom0 can do.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_agent import log
from tests.attack.kit import Attacker
from tests.kit import GRAIN, Site
from wire.chunks import ID_SIZE
from wire.layout import LAST_TIME
from wire.messages import REQUEST_KNOWN
from wire.status import Code


def words_of(site: Site) -> Iterator[bytes]:
    for path in site.archive.rglob("*"):
        yield str(path.relative_to(site.archive)).encode()
        if path.is_file():
            yield path.read_bytes()


def test_no_name_and_no_content_is_anywhere_in_a_sealed_archive(tmp_path: Path) -> None:
    site = Site(
        tmp_path / "site", volumes=("verysecretqube/privatevolume", "othersecretqube/rootvolume")
    )
    for name in site.volumes:
        site.image(name).write_bytes(b"the quick brown contents of a volume " * 20_000)
    site.backup()
    with site.open(True) as archive:
        archive.catalog.count()
    for text in (
        b"secretqube",
        b"privatevolume",
        b"rootvolume",
        b"quick brown",
        str(site.pool).encode(),
    ):
        for encoded in (text, text.decode().encode("utf-16-le"), text.hex().encode()):
            assert not any(encoded in raw for raw in words_of(site))


def test_equal_chunks_cannot_be_matched_across_archives(site: Site) -> None:
    site.image().write_bytes(b"the same in both " * 60_000)
    other = site.root / "other"
    site.add_archive("other", other)
    site.backup()
    site.backup(folder=other)

    def ids(folder: Path) -> set[bytes]:
        with site.open(folder=folder) as archive:
            (series,) = archive.sessions().values()
            image = archive.image(series, series[-1])
            return {chunk_id for _, page in image.windows() for chunk_id in page if any(chunk_id)}

    a, b = ids(site.archive), ids(other)
    assert a and b and not a & b
    assert {path.name for path in (site.archive / "volumes").iterdir()}.isdisjoint(
        p.name for p in (other / "volumes").iterdir()
    )


def test_claiming_ids_gets_nothing_out_of_dom0(attacker: Attacker) -> None:
    """A caller that says it knows ids is sent less, never more; nothing tells it whether another
    qube holds a chunk.
    """
    site = attacker.site
    with site.open() as archive:
        listed = {f"{v.qube}/{v.volume}": v for v in site.listed(archive)}
    vault = attacker.stream(name="vault/private")
    assert attacker.call("Snapshot", attacker.request(bytes(16), 9), "work").code == Code.OK
    with site.open() as archive:
        agent = site.agent(archive)
        offer = agent.snapshot("work", "private", bytes(16), 9, 0)
        known = b"".join(vault.ids)[: ID_SIZE * (-(-offer.size // GRAIN))]
        status = attacker.call(
            "Extract", attacker.request(offer.session, flags=REQUEST_KNOWN) + known
        )
        assert status.code in (Code.OK, Code.BAD_REQUEST)
    assert listed["vault/private"].qube == "vault"
    site.backup()
    assert list(site.images().values())[-1] == site.contents()


@pytest.mark.parametrize("shift", [-(10 * 365 * 86400), 10 * 365 * 86400])
def test_a_clock_set_far_ahead_or_back_loses_no_session(
    site: Site, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    site.image().write_bytes(b"first " * 30_000)
    site.backup()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + shift)
    site.image().write_bytes(b"second " * 30_000)
    site.backup()
    monkeypatch.setattr(time, "time", lambda: real() + 60)
    site.image().write_bytes(b"third " * 30_000)
    site.backup()
    with site.open() as archive:
        (series,) = archive.sessions().values()
        assert [session.clear.sequence for session in series] == sorted(
            {session.clear.sequence for session in series}
        )
        assert len({session.name for session in series}) == 3
    assert len(site.images()) == 3  # by their sequence, not their time, sessions follow each other
    assert list(site.images().values())[-1] == site.contents()


def test_the_caller_proposes_no_time_but_that_of_now(attacker: Attacker) -> None:
    with attacker.site.open() as archive:
        agent = attacker.site.agent(archive)
        for proposed in (1, int(time.time()) + 10**8, LAST_TIME):
            offer = agent.snapshot("work", "private", bytes(16), 3, proposed)
            assert abs(offer.time - time.time()) < 700
            agent.abort("work", "private", offer.session)


def test_dom0_cloned_and_both_going_on(site: Site) -> None:
    """Two dom0s with one key never seal two texts under one nonce: every stream's salt is
    its own.
    """
    site.image().write_bytes(b"x" * (4 * GRAIN))
    site.backup()
    copy = site.root / "copy"
    shutil.copytree(site.state, copy)
    salts = set()
    for turn in range(2):
        site.image().write_bytes(bytes([turn + 1]) * (4 * GRAIN))
        site.backup()
        sealed = Attacker(site).stream().sealed
        salts |= {raw[1:17] for raw in sealed.values()}
        shutil.rmtree(site.state)
        shutil.copytree(copy, site.state)
    assert len(salts) == 2
    site.backup()
    site.verify_all()


def test_nothing_printed_carries_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    log.log(log.WARNING, "a\x1b[31m\u202eb\nc\rd")
    printed = capsys.readouterr().err
    assert "\x1b" not in printed and "\u202e" not in printed and printed.count("\n") == 1
