# SPDX-License-Identifier: GPL-2.0-or-later
"""What a grant gives: its sessions' images, and nothing of another qube, domain or session; and
what a backup VM, or whoever holds a grant, cannot make of it.
"""

import io
import random
import shutil
from collections.abc import Iterator

import pytest

from backup_vm.archive import sessions
from backup_vm.archive.format import NO_BASE
from backup_vm.errors import DamagedError, WrongKeyError
from backup_vm.jobs.lazy_image import ChunkCache, LazyImage
from backup_vm.jobs.reading import assemble, open_image
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from common.text import session_name
from dom0_agent.admin import granting
from dom0_agent.config import load
from tests.attack.kit import Attacker
from tests.kit import GRAIN, Site, change, fill, own_domains
from wire.chunks import ZERO_ID, ChunkIds, Keys, NotAuthentic, Opener, Sealer, open_bytes
from wire.grants import Grant
from wire.messages import KIND_RECORD, LENGTH, Status
from wire.records import CLEAR_SIZE, RECORD_SIZE, open_record, read_clear
from wire.status import Code, Refused
from wire.stream import send, write_frame

VOLUMES = ("work/private", "vault/private")


@pytest.fixture(scope="module")
def attacker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    """Two volumes with chunks in common, each a domain of its own, of three sessions each; no
    attempt here changes anything.
    """
    with own_domains():
        site = Site(tmp_path_factory.mktemp("granted") / "site", volumes=VOLUMES)
        for name in VOLUMES:
            fill(site.image(name), 40 * GRAIN + 5, 1)
        for turn in range(3):
            site.backup()
            for name in VOLUMES:
                change(site.image(name), random.Random(turn), resize=False)
        yield Attacker(site)


def make(attacker: Attacker, *sessions: int, name: str = "work/private") -> Grant:
    """As dom0 makes one, of records that the backup VM gives; for these sessions of three."""
    of = granting.find(load(attacker.site.config), name, None)
    records = [attacker.stream(one, name).record for one in range(3)]
    wanted = [session_name(open_record(records[one], keys(attacker)).time) for one in sessions]
    return granting.make(of, records, wanted, False)


def keys(attacker: Attacker) -> Keys:
    with attacker.site.open() as archive:
        return attacker.site.keys(archive)


def test_nothing_else_is_in_it(attacker: Attacker) -> None:
    """Not the master key, a key of the archive's or of another domain, another session or name."""
    grant, owner = make(attacker, 1), keys(attacker)
    raw = grant.build()
    theirs = open_record(attacker.stream(name="vault/private").record, owner)
    other = theirs.domain_keys(owner)
    secrets = [
        *(owner.sub_key("records"), owner.sub_key("volume ids"), owner._master),
        *(other.ids, other.sealing, other.root, theirs.root, theirs.dedup_domain, b"vault"),
    ]
    for number in (0, 2):
        record = open_record(attacker.stream(number).record, owner)
        secrets += [record.session, record.root]
    assert not any(secret in raw for secret in secrets)
    assert {record.session for record in grant.records} == {
        open_record(attacker.stream(1).record, owner).session
    }


def test_chunks_of_another_domain_do_not_open(attacker: Attacker) -> None:
    """Real ones, with the ids that the archive shows; not even those with the same contents."""
    grant = make(attacker, 0, 1, 2)
    ours, theirs = attacker.stream(), attacker.stream(name="vault/private")
    ids, opener = ChunkIds(grant.keys, GRAIN), Opener(grant.keys)
    assert ours.data and theirs.data and not set(ours.ids) & (set(theirs.ids) - {ZERO_ID})
    for number in ours.data:
        opener.open(ours.ids[number], ours.sealed[number], ids, GRAIN)
    for number in theirs.data:
        for chunk_id in (theirs.ids[number], ours.ids[number]):
            with pytest.raises(NotAuthentic):
                opener.open(chunk_id, theirs.sealed[number], ids, GRAIN)


def test_no_key_of_a_grant_opens_a_record(attacker: Attacker) -> None:
    """Of a session that it is not for, or of its own."""
    grant = make(attacker, 1)
    for number, name in ((0, "work/private"), (1, "work/private"), (1, "vault/private")):
        record = attacker.stream(number, name).record
        for key in (grant.keys.ids, grant.keys.sealing, grant.keys.root):
            with pytest.raises(NotAuthentic):
                open_bytes(key, record[CLEAR_SIZE:], record[:CLEAR_SIZE])
        if (number, name) != (1, "work/private"):
            with pytest.raises(NotAuthentic, match="not for this session"):
                grant.record_of(record)


def test_sessions_that_are_not_granted_stay_shut(attacker: Attacker) -> None:
    """With the archive at hand, in every way that images are opened."""
    site, grant = attacker.site, make(attacker, 1)
    images = list(site.images().values())
    with site.open() as archive:
        for volume in stored_volumes(archive, keys(attacker), {}):
            for number, session in enumerate(volume.sessions):
                image, out = archive.image(volume.series, session), site.root / "out.img"
                if (number, volume.name) == (1, "work/private"):
                    assemble(archive, image, grant, volume.name, out, Progress())
                    assert out.read_bytes() == images[1]
                    continue
                with pytest.raises(WrongKeyError):
                    assemble(archive, image, grant, volume.name, out.with_name("none"), Progress())
                with pytest.raises(WrongKeyError):
                    LazyImage(archive, image, grant, volume.name, ChunkCache())
        assert [(v.name, len(v.sessions)) for v in stored_volumes(archive, grant, {})] == [
            ("work/private", 1)
        ]


def test_a_session_forged_of_granted_chunks_is_refused(attacker: Attacker) -> None:
    """Its record is the granted one, byte by byte or nearly; its chunks are all of the domain and
    open: but it is not the image that dom0 sealed.
    """
    site, grant = attacker.site, make(attacker, 1)
    real, other = attacker.stream(1), attacker.stream(2)
    swapped = list(real.ids)
    a, b = real.data[:2]
    swapped[a], swapped[b] = swapped[b], swapped[a]
    less = [*real.ids[:a], ZERO_ID, *real.ids[a + 1 :]]
    for number, (record, ids, error, words) in enumerate(
        (
            (real.record, swapped, DamagedError, "not complete or not authentic"),
            (real.record, less, DamagedError, "not complete or not authentic"),
            (real.record, other.ids, DamagedError, "not complete or not authentic"),
            (other.record, real.ids, WrongKeyError, "not for this session"),
            (as_if(real.record, other.record), other.ids, DamagedError, "not that of the granted"),
        )
    ):
        folder = site.root / f"forged{number}"
        shutil.copytree(site.archive, folder)
        shutil.rmtree(folder / "volumes")
        with site.open(True, folder) as archive:
            numbers = [n for n, one in enumerate(ids) if one != ZERO_ID]
            columns = [n.to_bytes(8, "little") for n in numbers], [ids[n] for n in numbers]
            made = sessions.write(archive.storage, record, NO_BASE, 0, len(numbers), *columns)
            with pytest.raises(error, match=words):
                open_image(archive, archive.image([made], made), grant, "forged")


def as_if(record: bytes, other: bytes) -> bytes:
    """The part in clear of another session, but with the id of this one."""
    mine, theirs = read_clear(record), read_clear(other)
    return theirs.replaced(session=mine.session).build() + record[CLEAR_SIZE:]


def test_whoever_has_a_grant_cannot_make_a_session(attacker: Attacker) -> None:
    """He can seal chunks of the domain and compute roots: dom0 takes none of it, under the ids of
    sealed images or others.
    """
    grant, real = make(attacker, 0, 1, 2), attacker.stream()
    ids, forged = ChunkIds(grant.keys, GRAIN), b"planted" * GRAIN
    chunk, number = forged[:GRAIN], real.data[0]
    for chunk_id in (real.ids[number], ids.of(chunk)):
        sealed = Sealer(grant.keys, 3).seal(number, chunk_id, chunk)
        planted = real.but(sealed={**real.sealed, number: sealed})
        planted.ids[number] = chunk_id
        attacker.refused(lambda planted=planted: attacker.restore(planted), Code.NOT_AUTHENTIC)
        attacker.refused(lambda planted=planted: attacker.verify(planted), Code.NOT_AUTHENTIC)
    for key in (grant.keys.ids, grant.keys.sealing, grant.keys.root):
        owner = Keys(key)  # as if one were the master key
        record = grant.records[0].replaced(size=GRAIN).seal(owner)
        status = attacker.verify(real.but(record=record))
        assert status.code == Code.NOT_AUTHENTIC


def test_within_its_domain_a_grant_opens_every_chunk_whose_id_is_known(attacker: Attacker) -> None:
    """As docs/security.md says: with the archive at hand a grant is a key for all of the volume's
    sessions, only not one that proves them. What limits it is who gives the sealed chunks.
    """
    grant, other = make(attacker, 1), attacker.stream(2)
    ids, opener = ChunkIds(grant.keys, GRAIN), Opener(grant.keys)
    image = list(attacker.site.images().values())[2]
    assert other.data
    for number in other.data:
        chunk = opener.open(other.ids[number], other.sealed[number], ids, GRAIN)
        assert chunk.startswith(image[number * GRAIN :][:GRAIN])


def framed(*records: bytes) -> io.BytesIO:
    out = io.BytesIO()
    for record in records:
        write_frame(out, KIND_RECORD, record)
    send(out, Status(Code.OK))
    out.seek(0)
    return out


def test_what_the_backup_vm_gives_in_place_of_records(attacker: Attacker) -> None:
    """Nothing is made of it, and no more is read than records can be."""
    of = granting.find(load(attacker.site.config), "work/private", None)
    good = [attacker.stream(one).record for one in range(3)]
    theirs = attacker.stream(name="vault/private").record
    flipped = [
        good[0][:at] + bytes([good[0][at] ^ 1]) + good[0][at + 1 :] for at in range(RECORD_SIZE)
    ]
    for records in (*([one] for one in flipped), [theirs], [*good, theirs], []):
        with pytest.raises(Refused):
            granting.make(of, records, (), True)
    with pytest.raises(Refused, match="twice"):
        granting.make(of, [good[0], good[0]], (), True)
    with pytest.raises(Refused, match="does not know"):  # an old one as the newest
        granting.make(of, good[:2], (), False)


class Endless:
    """Sends one frame again and again."""

    def __init__(self, frame: bytes) -> None:
        self.frame, self.taken = frame, 0

    def read(self, size: int) -> bytes:
        part = (self.frame * (2 + size // len(self.frame)))[self.taken % len(self.frame) :][:size]
        self.taken += len(part)
        return part


def test_records_without_end_and_frames_of_any_length(attacker: Attacker) -> None:
    record = attacker.stream().record
    endless = Endless(framed(record).read()[: 5 + RECORD_SIZE])
    with pytest.raises(Refused, match="more than"):
        granting.read_records(endless, "it")
    assert endless.taken < 30 << 20
    for raw in (
        b"",
        framed(record).read()[:-1],
        bytes([KIND_RECORD]) + LENGTH.pack((1 << 32) - 1),
        bytes([KIND_RECORD]) + LENGTH.pack(RECORD_SIZE - 1) + record[1:],
        bytes([99]) + LENGTH.pack(0),
        framed(record[1:]).read(),
        framed().read()[:5] + Status(Code.DENIED).build(),
    ):
        with pytest.raises(Refused, match="gave no records"):
            granting.read_records(io.BytesIO(raw), "it")
    assert granting.read_records(framed(record, record), "it") == [record, record]
