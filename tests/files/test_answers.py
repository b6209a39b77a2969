# SPDX-License-Identifier: GPL-2.0-or-later
"""A child that gives false answers: one that cannot be is an error, whatever is wrong with it."""

import json
import socket
import subprocess
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.files import answers, messages
from backup_vm.files.answers import Entry, FileSystemError, Stat
from backup_vm.files.parser import Parser

STAT = [0o100644, 1, 0, 0, 5, 0, 0, 0, 0, 0]


class Lying(Parser):
    """A parser whose child says what the test wants."""

    def __init__(self, *frames: bytes) -> None:
        super().__init__()
        self._frames = frames
        self.add(lambda offset, length: bytes(length), 1000)

    def _start(self) -> None:
        ours, its = socket.socketpair()
        self._socket.close()
        self._socket = ours
        self._process = subprocess.Popen(["sleep", "60"])

        def answer() -> None:
            with its, suppress(OSError):  # nobody may listen to the end
                its.recv(1 << 16)
                for frame in self._frames:
                    its.sendall(messages.LENGTH.pack(len(frame)) + frame)

        threading.Thread(target=answer, daemon=True).start()


def rows(*found: Any) -> bytes:
    return messages.ROWS + json.dumps(found).encode()


@pytest.mark.parametrize(
    "name", ["../x", "..", ".", "", "a/b", "a\0b", "x" * 256, "\ud800", "/etc/passwd"]
)
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with Lying(rows([name, 1, STAT]), messages.END) as parser, pytest.raises(FileSystemError):
        parser.names(1, 1)


@pytest.mark.parametrize(
    "frames",
    [
        (messages.ROWS + b"[[" * 100_000, messages.END),
        (messages.ROWS + b"9" * 10_000, messages.END),
        (rows(["a", 1, STAT], ["a", 2, STAT]), messages.END),
        (rows(["a", -1, STAT]), messages.END),
        (rows(["a", 1, [*STAT[:4], -5, *STAT[5:]]]), messages.END),
        (rows(["a", 1, [*STAT[:4], 1e9, *STAT[5:]]]), messages.END),
        (rows(["a", True, STAT]), messages.END),
        (messages.DATA + b"x", messages.END),
        (messages.FETCH + messages.RANGE.pack(1, 990, 20),),
        (messages.FETCH + messages.RANGE.pack(2, 0, 20),),
        (messages.FETCH + messages.RANGE.pack(1, 1 << 63, 1 << 20),),
        (messages.FETCH,),
        (messages.FAILED + b"{}",),
        (),
    ],
)
def test_an_answer_that_cannot_be_is_an_error(frames: tuple[bytes, ...]) -> None:
    with Lying(*frames) as parser, pytest.raises(FileSystemError):
        parser.names(1, 1)


@pytest.mark.parametrize(
    "name", ["\ud800", "user.\ud800", "user.a\0b", "", "user." + "\u20ac" * 200]
)
def test_an_attribute_has_a_name_that_can_be_one(name: str) -> None:
    with Lying(rows([name, "x"]), messages.END) as parser, pytest.raises(FileSystemError):
        parser.attributes(1, 1)


@pytest.mark.parametrize(
    "extents", [[[0, 9, 0]], [[0, 2, 999]], [[0, 2, 0], [1, 2, 5]], [[0, 0, 0]], [[0, 2, -1]]]
)
def test_contents_are_within_the_file_and_the_image(extents: list[Any]) -> None:
    with Lying(rows(*extents), messages.END) as parser, pytest.raises(FileSystemError):
        parser.extents(1, 1, 5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
)


@settings(max_examples=50)
@given(JSON)
def test_no_row_is_anything_but_an_entry_or_an_error(row: Any) -> None:
    try:
        for entry in answers.entries([row]):
            assert b"/" not in entry.name and entry.node >= 0
    except FileSystemError:
        pass


def test_entries_are_what_they_seem() -> None:
    assert list(answers.entries([["a", 1, STAT]])) == [Entry(b"a", 1, Stat(*STAT))]
    assert list(answers.entries([["a", 1, "damaged"]])) == [Entry(b"a", 1, None, "damaged")]
