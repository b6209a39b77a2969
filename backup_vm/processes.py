# SPDX-License-Identifier: GPL-2.0-or-later
"""What of sparsebak runs on this machine, by what the kernel says of processes: also what other
users run, on archives that this one does not know of.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
_NAMES = ("sparsebak", "spbk-assemble")
"""Of a script the kernel takes the file's name for the process's (execve(2), proc(5))."""
_HIDDEN = "sparsebak-wait"
_LONGEST = 100


class Process(NamedTuple):
    """A process, and what it was started with, from the program's name on."""

    pid: int
    command: str


def hide_from_others() -> None:
    """Let those that wait for this machine to be quiet not wait for this process."""
    (_PROC / "self/comm").write_text(_HIDDEN)


def others() -> list[Process]:
    """Those that run now, without this one."""
    return sorted(_others())


def _others() -> Iterator[Process]:
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended
            name = (folder / "comm").read_text(errors="replace").rstrip("\n")
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # of one that has ended, and that nobody has waited for, no words are left
            if name in _NAMES and words != [""]:
                yield Process(int(folder.name), _command(name, words))


def _command(name: str, words: list[str]) -> str:
    own = next((at for at, word in enumerate(words) if Path(word).name == name), 0)
    return " ".join([name, *words[own + 1 :]]).strip()[:_LONGEST]
