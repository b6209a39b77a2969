# SPDX-License-Identifier: GPL-2.0-or-later
"""Files whole or not at all; a terminal that is gone."""

import os
from pathlib import Path
from typing import Any

import pytest

from backup_vm.errors import SparsebakError
from backup_vm.terminal.output import Forgiving, replacing


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target, link = tmp_path / "page", tmp_path / "link"
    link.symlink_to(target)
    with replacing(link) as beside:
        beside.write_text("one")
    assert link.is_symlink() and target.read_text() == "one"
    full, other = OSError(28, "No space left"), OSError(5, "Input/output error", "archive")
    for error, raised in (
        (full, SparsebakError),
        (other, OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(raised) as caught, replacing(target) as beside:
            beside.write_text("tw")
            raise error
        assert str(target) in str(caught.value) or error is not full
    assert target.read_text() == "one" and {*os.listdir(tmp_path)} == {"page", "link"}
    with pytest.raises(SparsebakError, match="exists"), replacing(target, force=False):
        raise AssertionError
    ends = os.pipe()  # what /dev/stdout is a link to, where that is a pipe
    for odd in (tmp_path, Path(os.devnull), Path(f"/proc/self/fd/{ends[1]}")):
        with pytest.raises(SparsebakError, match=f"{odd} is not a regular file"), replacing(odd):
            raise AssertionError
    for end in ends:
        os.close(end)


def test_nobody_elses_file_is_written_to(tmp_path: Path) -> None:
    mine = tmp_path / "page.part"
    mine.write_text("mine")
    with replacing(tmp_path / "page") as beside:
        assert beside.stat().st_mode & 0o077 == 0
        beside.write_text("one")
    with replacing(tmp_path / "open", public=True) as beside:
        pass
    assert mine.read_text() == "mine" and (tmp_path / "page").read_text() == "one"
    mask = os.umask(0o077)
    os.umask(mask)
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_terminal_that_is_gone() -> None:
    class Gone:
        encoding = "utf-8"

        def write(self, text: str = "") -> None:
            raise OSError(5, "Input/output error")

        flush: Any = write

        def fileno(self) -> int:
            raise ValueError("I/O operation on closed file")

    stream = Forgiving(Gone())
    assert stream.write("abc") == 3 and stream.encoding == "utf-8"
    stream.flush()
