# SPDX-License-Identifier: GPL-2.0-or-later
"""What thin_delta and thin_dump print, however it is cut into reads, against a plain reading of the
same elements.
"""

import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.sources import thin_xml
from wire.status import Refused

BLOCK = 128 * 512
HEAD = (
    '<superblock uuid="" time="2" transaction="3" data_block_size="128" nr_data_blocks="0">\n '
    ' <diff left="2" right="3">\n'
)
TAIL = "  </diff>\n</superblock>\n"


def read(text: str, piece: int = 1 << 16) -> list[tuple[int, int]]:
    """What the parser makes of a text that arrives in pieces."""
    out, into = os.pipe()

    def feed() -> None:
        raw = text.encode()
        for at in range(0, len(raw), piece):
            os.write(into, raw[at : at + piece])
        os.close(into)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return list(thin_xml.ranges(out, "thin_delta"))
    finally:
        os.close(out)
        thread.join()


def joined(spans: Iterator[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in spans:
        if found and found[-1][1] == begin:
            found[-1] = (found[-1][0], end)
        else:
            found.append((begin, end))
    return found


ELEMENTS = st.lists(
    st.tuples(
        st.sampled_from(["same", "different", "left_only", "right_only"]),
        st.integers(0, 3),
        st.integers(1, 9),
    ),
    max_size=40,
)


@given(ELEMENTS, st.integers(1, 200))
def test_a_delta(elements: list[tuple[str, int, int]], piece: int) -> None:
    at, lines, expected = 0, [], []
    for name, gap, length in elements:
        at += gap
        lines.append(f'    <{name} begin="{at}" length="{length}"/>\n')
        if name != "same":
            expected.append((at * BLOCK, (at + length) * BLOCK))
        at += length
    assert read(HEAD + "".join(lines) + TAIL, piece) == joined(iter(expected))


def test_a_dump_names_what_is_mapped() -> None:
    text = """<superblock uuid="" time="2" transaction="3" flags="0" version="2"
      data_block_size="128" nr_data_blocks="0">
      <device dev_id="2" mapped_blocks="320" transaction="1" creation_time="1" snap_time="1">
        <single_mapping origin_block="3" data_block="99" time="0"/>
        <range_mapping origin_begin="4" data_begin="0" length="10" time="0"/>
        <single_mapping origin_block="20" data_block="7" time="0"/>
      </device></superblock>"""
    assert read(text) == [(3 * BLOCK, 14 * BLOCK), (20 * BLOCK, 21 * BLOCK)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD,
        "nonsense",
        HEAD + '<different begin="x" length="1"/>' + TAIL,
        HEAD + "<different/>" + TAIL,
        HEAD + '<different begin="1" length="0"/>' + TAIL,
        HEAD + '<different begin="-1" length="2"/>' + TAIL,
        HEAD + '<reshaped begin="1" length="2"/>' + TAIL,
        '<diff><different begin="1" length="2"/></diff>',
        HEAD.replace('"128"', '"0"') + '<different begin="1" length="2"/>' + TAIL,
    ],
)
def test_what_is_cut_short_or_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="invalid output"):
        read(text)


def test_a_million_entries_in_little_memory() -> None:
    import resource

    out, into = os.pipe()

    def feed() -> None:
        with open(into, "wb") as pipe:
            pipe.write(HEAD.encode())
            for at in range(0, 2_000_000, 2):
                pipe.write(b'<different begin="%d" length="1"/>\n' % at)
            pipe.write(TAIL.encode())

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    thread = threading.Thread(target=feed)
    thread.start()
    assert (
        sum(end - begin for begin, end in thin_xml.ranges(out, "thin_delta")) == 1_000_000 * BLOCK
    )
    thread.join()
    os.close(out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # KiB
