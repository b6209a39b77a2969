# SPDX-License-Identifier: GPL-2.0-or-later
"""A restore of what differs alone, by a hostile backup VM: what is put in place is a session as a
whole, or nothing. What of it is there already, dom0 decides by what it knows.
"""

import random
from pathlib import Path

import pytest

from tests.attack.kit import Attacker, Stream, named
from tests.kit import GRAIN, Site, change, fill
from wire.chunks import ZERO_ID
from wire.merkle import PAGE_IDS
from wire.messages import (
    KIND_WANTED,
    LENGTH,
    REQUEST_DIFFERING,
    REQUEST_KNOWN,
    Offer,
    Request,
    Status,
)
from wire.status import Code
from wire.wanted import Wanted

REFUSED = (Code.NOT_AUTHENTIC, Code.BAD_REQUEST)


class Differing(Attacker):
    """One that sends what is wanted, and knows beforehand what that is: so it need not wait."""

    def parts(self, stream: Stream, wanted: set[int]) -> list[bytes]:
        """The parts of a session of which only those chunks are wanted."""
        pages = [
            b"".join(stream.ids[at : at + PAGE_IDS]) for at in range(0, len(stream.ids), PAGE_IDS)
        ]
        out = [stream.record, *pages]
        for index, page in enumerate(pages):
            within = [n for n in sorted(wanted) if n // PAGE_IDS == index]
            if within:
                out.append(page)
            for number in within:
                if stream.ids[number] != ZERO_ID:
                    out += [LENGTH.pack(len(stream.sealed[number])), stream.sealed[number]]
        return [*out, stream.end]

    def asked(self, raw: bytes) -> tuple[Code, set[int]]:
        """How such a restore ends, and what dom0 wanted."""
        argument = f"work+private+{named(raw)}+older"
        frames = self.frames(
            "Restore", self.request(flags=REQUEST_DIFFERING) + raw, "work", argument
        )
        wanted, at = Wanted(len(self.stream().ids)), 0
        for kind, payload in frames[:-1]:
            assert kind == KIND_WANTED
            at = wanted.take(at, payload)
        return Code(Status.parse(frames[-1][1]).code), {
            n for n in range(wanted.chunks) if n in wanted
        }

    def must_fail(self, raw: bytes) -> None:
        before = self.everything()
        code, _ = self.asked(raw)
        assert code in REFUSED, code
        assert self.everything() == before


@pytest.fixture
def attacker(btrfs_folder: Path) -> Differing:
    site = Site(btrfs_folder / "site", driver="reflink")
    fill(site.image(), 40 * GRAIN + 5, 1)
    for turn in range(3):
        site.backup()
        change(site.image(), random.Random(turn), resize=False)
    site.backup()
    change(site.image(), random.Random(9), resize=False)
    return Differing(site)


def told(attacker: Differing, stream: Stream) -> set[int]:
    """What is wanted of a session, found out by a try that ends there."""
    raw = b"".join([stream.record, *stream.ids])
    code, wanted = attacker.asked(raw)
    assert code == Code.BAD_REQUEST and wanted
    return wanted


def test_what_is_right_is_taken(attacker: Differing) -> None:
    images = list(attacker.site.images().values())
    for at in (-1, 0, 2, 1):
        stream = attacker.stream(at)
        wanted = told(attacker, stream)
        assert len(wanted) < 30
        code, again = attacker.asked(b"".join(attacker.parts(stream, wanted)))
        assert (code, again) == (Code.OK, wanted)
        assert attacker.site.contents() == images[at]


@pytest.mark.parametrize("session", [0, -1])
def test_neither_more_nor_less_nor_anything_else(attacker: Differing, session: int) -> None:
    stream, others = attacker.stream(session), attacker.stream(1)
    wanted = told(attacker, stream)
    data = [n for n in sorted(wanted) if stream.ids[n] != ZERO_ID]
    kept = [n for n in stream.data if n not in wanted]
    assert len(data) > 1 and kept
    for missing in (data[0], data[-1]):
        attacker.must_fail(b"".join(attacker.parts(stream, wanted - {missing})))
    attacker.must_fail(b"".join(attacker.parts(stream, wanted | {kept[0]})))
    attacker.must_fail(stream.to_bytes())
    attacker.must_fail(b"".join(attacker.parts(stream, set())))
    for a, b in ((data[0], data[-1]), (data[0], kept[0])):
        other = stream.but(sealed={**stream.sealed, a: stream.sealed[b]})
        attacker.must_fail(b"".join(attacker.parts(other, wanted)))
    # The ids of one session with the record of another; ids that say that nothing differs.
    attacker.must_fail(b"".join(attacker.parts(others.but(record=stream.record), wanted)))
    parts = attacker.parts(stream, wanted)
    for at in range(len(parts)):
        attacker.must_fail(b"".join(parts[:at]))
    for at in (1, 2):
        raw = bytearray(parts[at])
        raw[33] ^= 1
        attacker.must_fail(b"".join([*parts[:at], bytes(raw), *parts[at + 1 :]]))


def test_what_it_says_to_have_changes_nothing(attacker: Differing) -> None:
    """It begins, ends and gives up sessions as it likes, and says that it has what it has not: the
    ids that dom0 goes by are those of what dom0 read.
    """
    site, newest = attacker.site, attacker.stream(-1)
    images = list(site.images().values())
    for commit in (True, False):
        frames = attacker.frames("Snapshot", attacker.request(number=50))
        offer = Offer.parse(frames[0][1])
        claimed = b"".join(reversed(newest.ids))
        head = Request(archive=attacker.archive_id(), session=offer.session, flags=REQUEST_KNOWN)
        attacker.frames("Extract", head.build() + claimed)
        end = attacker.request(session=offer.session)
        assert attacker.call("Commit" if commit else "Abort", end).code == Code.OK
        change(site.image(), random.Random(5), resize=False)
        for at in (0, -1):
            stream = attacker.stream(at)
            wanted = told(attacker, stream)
            code, _ = attacker.asked(b"".join(attacker.parts(stream, wanted)))
            assert code == Code.OK and site.contents() == images[at]
            change(site.image(), random.Random(at), resize=False)


def test_only_restores_know_the_flag(attacker: Differing) -> None:
    for service in ("Verify", "List", "Snapshot", "Commit"):
        head = attacker.request(flags=REQUEST_DIFFERING)
        attacker.refused(lambda head=head, s=service: attacker.call(s, head), Code.BAD_REQUEST)
