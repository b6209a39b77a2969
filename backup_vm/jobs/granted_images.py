# SPDX-License-Identifier: GPL-2.0-or-later
"""The child of ``opening`` that shows the sessions of a grant as image files, until the disposable
goes.

Run as a program, with the grant on standard input, and as arguments the qube to read from, a
folder, and the folders of modules. On standard output it says by a status how it began; errors are
a line.
"""

import sys

if __name__ == "__main__":
    sys.path[:] = sys.argv[3:]

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backup_vm.jobs.lazy_image import OpenedImage


def main(qube: str, folder: str) -> int:
    """Serve until the mount ends."""
    from backup_vm.agent.sealed_reader import NotGiven
    from backup_vm.errors import SparsebakError
    from backup_vm.jobs.serving import code_of
    from backup_vm.unsealing import read_grant
    from wire.status import Code

    try:
        from backup_vm.jobs.libfuse import mfusepy
        from backup_vm.jobs.mount import SessionImages, shown_from
    except (ImportError, OSError) as error:  # a library that is not there is an OSError
        return _failed(Code.NOT_INSTALLED, f"libfuse or mfusepy is not installed: {error}")
    try:
        # each is proven before anything is shown, so that what is wrong can still be told
        lazy = shown_from(qube, read_grant(Path("-")))
        shown = [replace(one, open=partial(_same, one.open())) for one in lazy]
    except SparsebakError as error:
        code = error.status if isinstance(error, NotGiven) else code_of(error)
        return _failed(code, str(error))

    class Files(SessionImages):
        """Says that it is there, and nothing from then on."""

        def init(self, path: str) -> None:
            """See fuse(4)."""
            super().init(path)
            _say(Code.OK)
            null = os.open(os.devnull, os.O_RDWR)
            for number in range(3):
                os.dup2(null, number)
            os.close(null)

    files = Files(shown, lambda text: None)
    try:
        names = {"fsname": "sparsebak", "subtype": "sparsebak"}
        mfusepy.FUSE(files, folder, foreground=True, ro=True, **names)
    except RuntimeError as error:
        if not files.mounted:
            text = f"cannot mount on {folder}: libfuse ended with {error}"
            return _failed(Code.NOT_INSTALLED, text)
    return 0


def _say(code: int) -> None:
    """How it began."""
    from wire.messages import Status
    from wire.stream import send

    send(sys.stdout.buffer, Status(code))
    sys.stdout.buffer.flush()


def _failed(code: int, text: str) -> int:
    _say(code)
    print(text, file=sys.stderr)
    return 1


def _same(image: "OpenedImage") -> "OpenedImage":
    return image


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
