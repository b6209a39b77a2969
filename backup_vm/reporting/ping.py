# SPDX-License-Identifier: GPL-2.0-or-later
"""Telling a service that watches over regular jobs (healthchecks.io, and others of its kind) that a
backup begins, succeeded, or failed. What cannot be told is a warning and changes nothing else.
"""

import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException

from backup_vm import stopping
from backup_vm.errors import UsageError
from wire import VERSION

PATIENCE = 5.0
"""Seconds that the service has to answer. All of a backup may wait so long at its end."""
_STEP = 0.1


def check_url(url: str) -> str:
    """A URL to be told; raise UsageError for one that is not of http or https."""
    try:
        parts = urllib.parse.urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{url[:200]!r} is no URL of http:// or https://")
    return url


class Ping:
    """Tells of one run: ``URL/start``, then ``URL`` or ``URL/fail``."""

    def __init__(self, url: str, warn: Callable[[str], None]) -> None:
        self._url, self._warn = check_url(url), warn
        self._telling: list[threading.Thread] = []

    def started(self) -> None:
        """Tell in the background that the run begins."""
        self._tell("/start")

    def ended(self, succeeded: bool) -> None:
        """Tell how it went, and wait for the answer, for PATIENCE seconds at most."""
        self._wait()
        self._tell("" if succeeded else "/fail")
        self._wait()

    def _tell(self, ending: str) -> None:
        parts = urllib.parse.urlsplit(self._url)
        url = parts._replace(path=parts.path.rstrip("/") + ending).geturl()
        # In a thread of its own: looking up a name knows no time limit.
        thread = threading.Thread(target=self._get, args=(url,), daemon=True)
        thread.start()
        self._telling.append(thread)

    def _wait(self) -> None:
        """Wait in steps, so that a signal ends it."""
        left = PATIENCE
        for thread in self._telling:
            while thread.is_alive() and left > 0:
                stopping.check()
                thread.join(_STEP)
                left -= _STEP
            if thread.is_alive():
                self._warn(f"the ping URL did not answer within {PATIENCE:g} s")
        self._telling = []

    def _get(self, url: str) -> None:
        request = urllib.request.Request(  # noqa: S310, its scheme was checked
            url, headers={"User-Agent": f"sparsebak/{VERSION}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310
                pass
        except (OSError, HTTPException, ValueError) as error:
            reason = error if type(error) is not urllib.error.URLError else error.reason
            # Not the URL: who knows it can tell the service what he likes.
            self._warn(f"the ping URL could not be told: {reason}")
