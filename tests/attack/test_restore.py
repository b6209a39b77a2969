# SPDX-License-Identifier: GPL-2.0-or-later
"""Everything that can be done to a session on its way back: refused, with the volume and dom0's
state as they were.
"""

import os
import resource
import shutil
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.attack.kit import Attacker, Stream
from tests.kit import GRAIN, Site, fill
from wire.chunks import OVERHEAD, ZERO_ID, Keys, Sealer, derive
from wire.messages import LENGTH
from wire.records import RECORD_SIZE, open_record
from wire.status import STATUS_OLDER, Code

REFUSED = (Code.NOT_AUTHENTIC, Code.BAD_REQUEST)


def both(attacker: Attacker, stream: Stream | bytes, *codes: Code) -> None:
    """Neither restored nor called authentic."""
    attacker.refused(lambda: attacker.restore(stream), *(codes or REFUSED))
    attacker.refused(lambda: attacker.verify(stream), *(codes or REFUSED))


def test_what_is_right_is_taken(attacker: Attacker) -> None:
    stream = attacker.stream(0)
    assert attacker.verify(stream).code == Code.OK
    assert attacker.restore(stream).code == Code.OK
    assert attacker.restore(attacker.stream(-1)).code == Code.OK


def test_chunks_swapped_repeated_moved_dropped_cut(attacker: Attacker) -> None:
    stream = attacker.stream()
    a, b = stream.data[0], stream.data[-1]
    assert stream.ids[a] != stream.ids[b]
    both(attacker, stream.but(sealed={**stream.sealed, a: stream.sealed[b], b: stream.sealed[a]}))
    both(attacker, stream.but(sealed={**stream.sealed, b: stream.sealed[a]}))
    swapped = stream.but()
    swapped.ids[a], swapped.ids[b] = swapped.ids[b], swapped.ids[a]  # chunks and ids together
    swapped.sealed[a], swapped.sealed[b] = swapped.sealed[b], swapped.sealed[a]
    both(attacker, swapped)
    dropped = stream.but()
    dropped.ids[b] = ZERO_ID
    both(attacker, dropped)
    for cut in (0, 1, OVERHEAD - 1, len(stream.sealed[a]) - 1):
        both(attacker, stream.but(sealed={**stream.sealed, a: stream.sealed[a][:cut]}))
    both(attacker, stream.but(sealed={**stream.sealed, a: stream.sealed[a] + b"x"}))
    both(attacker, stream.but(sealed={**stream.sealed, a: os.urandom(len(stream.sealed[a]))}))


def test_every_bit_of_a_chunk_and_of_the_record_counts(attacker: Attacker) -> None:
    stream = attacker.stream()
    number = stream.data[0]
    for at in (0, 1, 17, 29, len(stream.sealed[number]) - 1):
        raw = bytearray(stream.sealed[number])
        raw[at] ^= 1
        attacker.refused(
            lambda raw=raw: attacker.restore(
                stream.but(sealed={**stream.sealed, number: bytes(raw)})
            ),
            *REFUSED,
        )
    for at in range(0, RECORD_SIZE, 7):
        raw = bytearray(stream.record)
        raw[at] ^= 0x10
        attacker.refused(
            lambda raw=raw: attacker.restore(stream.but(record=bytes(raw))),
            *REFUSED,
            Code.NO_ARCHIVE,
        )


def test_an_older_session_is_told_and_parts_of_it_do_not_mix(attacker: Attacker) -> None:
    old, new = attacker.stream(0), attacker.stream(-1)
    assert attacker.verify(old).flags & STATUS_OLDER
    assert not attacker.verify(new).flags & STATUS_OLDER
    both(attacker, new.but(record=old.record))
    differing = next(n for n in new.data if new.ids[n] != old.ids[n] and old.ids[n] != ZERO_ID)
    both(attacker, new.but(sealed={**new.sealed, differing: old.sealed[differing]}))


def test_another_qubes_session_volume_or_archive(attacker: Attacker) -> None:
    vault = attacker.stream(name="vault/private")
    attacker.refused(lambda: attacker.restore(vault), Code.WRONG_VOLUME)
    attacker.refused(lambda: attacker.restore(attacker.stream(), target="vault"), Code.WRONG_VOLUME)
    both(attacker, vault.but(record=attacker.stream().record))
    other = attacker.site.root / "other"
    attacker.site.add_archive("other", other)
    attacker.site.backup(folder=other)
    shutil.move(attacker.site.archive, attacker.site.root / "aside")
    other.rename(attacker.site.archive)
    theirs = attacker.stream()
    both(attacker, theirs)
    attacker.refused(
        lambda: attacker.call("Restore", attacker.request(label="other") + vault.to_bytes()),
        *REFUSED,
    )


def test_ids_that_do_not_match_the_root_or_each_other(attacker: Attacker) -> None:
    stream = attacker.stream()
    parts = stream.parts()
    for at in (1, 2):  # the ids as sent first, and as sent again
        raw = bytearray(parts[at])
        raw[40] ^= 1
        both(attacker, b"".join([*parts[:at], bytes(raw), *parts[at + 1 :]]))
    for at in range(0, len(parts[1]), 32 * 8):
        raw = bytearray(parts[1])
        raw[at] ^= 1
        both(attacker, b"".join([parts[0], bytes(raw), bytes(raw), *parts[3:]]), Code.NOT_AUTHENTIC)


def test_interrupted_at_every_frame_and_a_little_later(attacker: Attacker) -> None:
    parts = attacker.stream().parts()
    for at in range(len(parts)):
        raw = b"".join(parts[:at])
        attacker.refused(lambda raw=raw: attacker.restore(raw), *REFUSED)
        if len(parts[at]) > 1:
            raw += parts[at][: len(parts[at]) // 2]
            attacker.refused(lambda raw=raw: attacker.restore(raw), *REFUSED)


@pytest.mark.parametrize(
    "length", [0, 1, OVERHEAD - 1, GRAIN + OVERHEAD + 1, 1 << 31, (1 << 32) - 1]
)
def test_lengths_near_the_limits_take_no_memory(attacker: Attacker, length: int) -> None:
    stream = attacker.stream()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    both(
        attacker,
        b"".join([*stream.parts()[:3], LENGTH.pack(length), bytes(1000)]),
        Code.BAD_REQUEST,
    )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


@pytest.mark.parametrize("size", [(1 << 32) - 1, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_sizes_near_the_limits(attacker: Attacker, size: int) -> None:
    stream = attacker.stream()
    at = 8 + 48 + 16  # the field "size" of the part in clear
    record = stream.record[:at] + struct.pack("<Q", size) + stream.record[at + 8 :]
    both(attacker, stream.but(record=record))
    assert open_record(stream.record, keys(attacker.site)).size != size


def keys(site: Site) -> Keys:
    with site.open() as archive:
        return site.keys(archive)


def forged(attacker: Attacker, plain: bytes, method: int) -> Stream:
    """A session by somebody who has the key: one chunk whose sealed data are whatever he likes,
    bound to ids and root.
    """
    stream, site_keys = attacker.stream(), keys(attacker.site)
    number = stream.data[0]
    domain_keys = open_record(stream.record, site_keys).domain_keys(site_keys)
    good = Sealer(domain_keys, 3).seal(number, stream.ids[number], bytes(GRAIN))
    key = derive(domain_keys.sealing, b"stream", good[1:17])
    data = AESGCM(key).encrypt(good[17:29], plain, bytes([method]) + stream.ids[number])
    return stream.but(sealed={**stream.sealed, number: bytes([method]) + good[1:29] + data})


def test_a_bomb_made_with_the_key_does_not_go_off(attacker: Attacker) -> None:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=19, write_content_size=True)
    bomb = compressor.compress(bytes(256 << 20))
    lying = zstandard.ZstdCompressor(level=3, write_content_size=False).compress(bytes(64 << 20))
    assert len(bomb) < GRAIN
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for plain, method in (
        (bomb, 1),
        (lying, 1),
        (bomb[:GRAIN], 0),
        (b"", 1),
        (b"\x28\xb5\x2f\xfd" + os.urandom(100), 1),
        (b"x", 7),
    ):
        both(attacker, forged(attacker, plain, method), Code.NOT_AUTHENTIC)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_a_bomb_made_without_the_key(attacker: Attacker) -> None:
    import zstandard

    stream = attacker.stream()
    bomb = zstandard.ZstdCompressor(level=3).compress(bytes(64 << 20))[:GRAIN]
    both(
        attacker,
        stream.but(sealed={**stream.sealed, stream.data[0]: b"\x01" + os.urandom(28) + bomb}),
        Code.NOT_AUTHENTIC,
    )


def test_a_record_of_another_format_or_suite(attacker: Attacker) -> None:
    stream = attacker.stream()
    for at, value in ((4, b"\x01\x00"), (4, b"\x03\x00"), (6, b"\x01"), (6, b"\x03")):
        record = stream.record[:at] + value + stream.record[at + len(value) :]
        both(attacker, stream.but(record=record), Code.NOT_AUTHENTIC)


def test_more_than_the_session_does_no_harm(attacker: Attacker) -> None:
    stream = attacker.stream()
    both(attacker, stream.but(end=b"NOT!"))
    fill(attacker.site.image(), 3 * GRAIN)
    # What follows the end is never read.
    assert attacker.restore(stream.to_bytes() + os.urandom(5000)).code == Code.OK
    assert attacker.site.contents() == list(attacker.site.images().values())[-1]
