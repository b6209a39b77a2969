# SPDX-License-Identifier: GPL-2.0-or-later
"""How the user's browser comes to the page, and nobody else's.

What is on a command line can be read by every user of the machine, so the browser is given a file
that only this user can read, and that leads to the page. It is removed when it was used.
"""

import os
import shutil
import subprocess
import tempfile
from html import escape
from pathlib import Path

from backup_vm.errors import SparsebakError

OPENERS = ("xdg-open", "gio")
_LEADS = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sparsebak</title>
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={url}"></head>
<body><p><a href="{url}">sparsebak</a></p></body></html>
"""


class Entrance:
    """The file that leads to the page, in a folder of its own."""

    def __init__(self, url: str) -> None:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        base = runtime if runtime and os.access(runtime, os.W_OK) else None
        self._folder = Path(tempfile.mkdtemp(prefix="sparsebak-ui-", dir=base))  # 0700
        self.file = self._folder / "open.html"
        try:
            fd = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, "w", encoding="utf-8") as out:
                out.write(_LEADS.format(url=escape(url, quote=True)))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """It leads nowhere any more."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def open(self) -> None:
        """Have the desktop open it. Raises SparsebakError where there is none."""
        found = next((name for name in OPENERS if shutil.which(name)), None)
        if found is None:
            raise SparsebakError("there is nothing here that opens a browser", "give --no-open")
        command = [found, "open"] if found == "gio" else [found]
        subprocess.Popen(
            [*command, str(self.file)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
