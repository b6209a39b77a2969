# SPDX-License-Identifier: GPL-2.0-or-later
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.layout import LAST_TIME
from wire.messages import ArchiveEntry, Monitored, Offer, Request, Status, VolumeEntry
from wire.stream import CutShort, read_exactly, send

EVERY = [ArchiveEntry, Monitored, Offer, Request, Status, VolumeEntry]
u64 = st.integers(0, 2**64 - 1)
times = st.integers(0, LAST_TIME)
sixteen = st.binary(min_size=16, max_size=16)


@given(
    sixteen,
    sixteen,
    u64,
    times,
    st.integers(0, 2**16 - 1),
    st.from_regex(r"[A-Za-z0-9]{0,63}", fullmatch=True),
)
def test_a_request_survives_the_way(
    archive: bytes, session: bytes, number: int, time: int, flags: int, label: str
) -> None:
    request = Request(
        archive=archive, session=session, number=number, time=time, flags=flags, label=label
    )
    assert Request.parse(request.build()) == request


@given(sixteen, u64, times, u64, st.integers(0, 2**32 - 1))
def test_an_offer_survives_the_way(
    volume: bytes, sequence: int, time: int, size: int, chunk: int
) -> None:
    offer = Offer(volume, volume, volume, sequence, time, size, chunk, size, 3)
    assert Offer.parse(offer.build()) == offer


@pytest.mark.parametrize("layout", EVERY)
@given(raw=st.binary(max_size=400))
def test_parsing_gives_a_value_or_a_value_error(layout: type, raw: bytes) -> None:
    exact = (raw * (layout.length() // max(len(raw), 1) + 1))[: layout.length()]
    for attempt in (raw, exact):
        try:
            parsed = layout.parse(attempt)
        except ValueError:
            continue
        assert layout.parse(parsed.build()) == parsed


def test_reading_stops_at_a_cut() -> None:
    assert read_exactly(io.BytesIO(b"abcdef"), 4) == b"abcd"
    with pytest.raises(CutShort):
        read_exactly(io.BytesIO(b"abc"), 4)


def test_a_frame_is_kind_length_payload() -> None:
    out = io.BytesIO()
    send(out, Status(5, 1, 7))
    assert out.getvalue() == bytes.fromhex("00 0c000000 0500 0100 0700000000000000")
