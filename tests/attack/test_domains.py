# SPDX-License-Identifier: GPL-2.0-or-later
"""What the keys of one deduplication domain open: its images, and nothing of another domain."""

import os
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.archive import Archive
from backup_vm.archive.image import Image
from backup_vm.errors import DamagedError
from backup_vm.jobs.reading import prove_image, read_chunks
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from tests.attack.kit import Attacker
from tests.kit import GRAIN, Site, own_domains
from wire.chunks import SUITES, ZERO_ID, ChunkIds, DomainKeys, Keys, NotAuthentic, Opener, Sealer
from wire.merkle import Tree
from wire.records import Record, open_record
from wire.status import Code

SIZE = 1 << 16
domains = st.binary(min_size=16, max_size=16)


@given(
    ours=domains,
    theirs=domains,
    master=st.binary(min_size=32, max_size=32),
    seed=st.binary(min_size=1, max_size=100),
    suite=st.sampled_from(sorted(SUITES)),
    padding=st.sampled_from([0, 4096]),
)
def test_keys_of_one_domain_open_nothing_of_another(
    ours: bytes, theirs: bytes, master: bytes, seed: bytes, suite: int, padding: int
) -> None:
    """Not even told the ids, which whoever has the archive sees; the same chunk has another id and
    another root there.
    """
    own, other = Keys(master).of_domain(ours, suite), Keys(master).of_domain(theirs, suite)
    chunk = (seed * SIZE)[:SIZE]
    own_ids, other_ids = ChunkIds(own, SIZE), ChunkIds(other, SIZE)
    chunk_id, pages = own_ids.of(chunk), [seed.ljust(32, b"\0")[:32]]
    sealed = Sealer(own, 1, padding).seal(0, chunk_id, chunk)
    assert Opener(own).open(chunk_id, sealed, own_ids, SIZE) == chunk
    if ours == theirs:
        assert own == other
        return
    assert not {own.ids, own.sealing, own.root} & {other.ids, other.sealing, other.root}
    assert chunk_id == ZERO_ID or other_ids.of(chunk) != chunk_id
    assert Tree(own).page(chunk_id) != Tree(other).page(chunk_id)
    assert Tree(own).root(SIZE, SIZE, pages) != Tree(other).root(SIZE, SIZE, pages)
    for ids in (own_ids, other_ids):
        with pytest.raises(NotAuthentic):
            Opener(other).open(chunk_id, sealed, ids, SIZE)
        with pytest.raises(NotAuthentic):
            Opener(DomainKeys(suite, own.ids, other.sealing, own.root)).open(
                chunk_id, sealed, ids, SIZE
            )


@pytest.fixture
def two(tmp_path: Path) -> Site:
    """Two volumes with the same contents, each a domain of its own."""
    with own_domains():
        site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
        contents = os.urandom(3 * GRAIN) + bytes(GRAIN) + b"text" * GRAIN
        for name in site.volumes:
            site.image(name).write_bytes(contents)
        site.backup()
        return site


def opened(archive: Archive, keys: Keys, name: str) -> tuple[Image, Record]:
    volume = next(one for one in stored_volumes(archive, keys, {}) if one.name == name)
    image = archive.image(list(volume.sessions), volume.sessions[-1])
    return image, open_record(image.session.record, keys)


def test_an_image_opens_with_its_domains_keys_and_no_others(two: Site) -> None:
    with two.open() as archive:
        keys = two.keys(archive)
        found = {name: opened(archive, keys, name) for name in two.volumes}
        for name, (image, record) in found.items():
            (theirs,) = (other for other_name, (_, other) in found.items() if other_name != name)
            parts: list[tuple[int, bytes]] = []
            proven = prove_image(archive, image, record, record.domain_keys(keys), name)
            take = partial(lambda into, at, chunks: into.append((at, b"".join(chunks))), parts)
            read_chunks(archive, image, proven, Progress(), take)
            assert all(two.contents(name)[at:][: len(part)] == part for at, part in parts)
            assert sum(len(part) for _, part in parts) == len(two.contents(name)) - GRAIN
            with pytest.raises(DamagedError, match="not complete or not authentic"):
                prove_image(archive, image, record, theirs.domain_keys(keys), name)


def test_nothing_of_two_domains_is_stored_once(two: Site) -> None:
    with two.open() as archive:
        keys = two.keys(archive)
        ids = {
            name: {
                chunk_id
                for _, window in opened(archive, keys, name)[0].windows()
                for chunk_id in window
            }
            for name in two.volumes
        }
    assert ids["work/private"] & ids["vault/private"] == {ZERO_ID}


def test_chunks_of_another_domain_are_not_restored(two: Site) -> None:
    with own_domains():
        attacker = Attacker(two)
        ours, theirs = attacker.stream(), attacker.stream(name="vault/private")
        number = ours.data[0]
        for forged in (
            ours.but(sealed={**ours.sealed, number: theirs.sealed[number]}),
            ours.but(ids=theirs.ids, sealed=theirs.sealed),
        ):
            attacker.refused(lambda forged=forged: attacker.restore(forged), Code.NOT_AUTHENTIC)
            attacker.refused(lambda forged=forged: attacker.verify(forged), Code.NOT_AUTHENTIC)
        assert attacker.verify(ours).code == Code.OK
