# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may talk to the server: the browser that the user opened, and nobody else.

Any page in the same browser and any user of the same machine can reach a port of loopback. So a
request must have, all at once:

- the user's own id at the other end of its connection (see ``peer``);
- our address as ``Host``, so that a foreign name that was pointed at 127.0.0.1 is of no use;
- where the browser says from which page it comes, our own page;
- the cookie, which only the browser that brought the one-time token has;
- for data and for acts, the key as a header. A cookie is shared by all ports of a host: whoever
  gets the browser to visit another port of 127.0.0.1 is sent it. The key is kept by the page,
  and pages of other ports cannot read it nor send such a header.
"""

import errno
import secrets
import time
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from backup_vm.ui import peer

TOKEN_LIFE = 300.0
"""Seconds in which the token must be used."""
HEADER = "X-Sparsebak-Key"
_JSON = "application/json"
CSP = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "sparsebak",
}
"""On every answer."""


class Denied(Exception):
    """The request is not one of the user's page; the text is for tests and the log alone."""


@dataclass(frozen=True)
class Request:
    """What the guard looks at, of one request. ``untrusted_headers``: by name in lower case."""

    method: str
    path: str
    untrusted_headers: dict[str, str]
    remote: peer.Address
    local: peer.Address


@dataclass
class Guard:
    """The secrets of one run of the server, which listens on ``port`` of 127.0.0.1."""

    port: int
    uid: int
    _token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    key: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _made: float = field(default_factory=time.monotonic)

    @property
    def host(self) -> str:
        """What ``Host`` must be."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Where the browser is sent, with the one-time token."""
        return f"http://{self.host}/enter?token={self._token}"

    @property
    def cookie_name(self) -> str:
        """Each port has its own, for a browser holds one cookie of a name for all of them."""
        return f"sparsebak-{self.port}"

    @property
    def set_cookie(self) -> str:
        """The header's value; a session cookie, which the browser forgets at its end."""
        return f"{self.cookie_name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"

    def enter(self, untrusted_token: str) -> None:
        """Use the token up. Raises Denied."""
        good = bool(self._token) and _same(self._token, untrusted_token)
        if not good or time.monotonic() - self._made > TOKEN_LIFE:
            raise Denied("the token is wrong, used or old")
        self._token = ""

    def check(self, request: Request) -> None:
        """Raise Denied unless a request may be answered."""
        self._check_user(request)
        headers = request.untrusted_headers
        if headers.get("host") != self.host:
            raise Denied("another host")
        origin = headers.get("origin")
        if origin not in (None, f"http://{self.host}"):
            raise Denied("another origin")
        entering = request.path == "/enter"
        site = headers.get("sec-fetch-site")
        # A page outside can make the browser come to /enter, where only the token counts.
        if not entering and site not in (None, "none", "same-origin"):
            raise Denied("another site")
        if entering and request.method == "GET":
            return
        if request.method not in ("GET", "POST"):
            raise Denied("another method")
        if not self._has_cookie(headers.get("cookie", "")):
            raise Denied("no cookie")
        if not request.path.startswith("/api/"):
            if request.method != "GET":
                raise Denied("nothing to post to")
            return
        if not _same(self.key, headers.get(HEADER.lower(), "")):
            raise Denied("no key")
        if request.method == "POST":
            if origin is None:
                raise Denied("no origin")
            if headers.get("content-type") != _JSON:
                raise Denied("not JSON")

    def _check_user(self, request: Request) -> None:
        try:
            uid = peer.owner(request.remote, request.local)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM):
                return  # no such table here: the secrets have to do
            # Whoever opens connections until there are no descriptors left must not end the check.
            raise Denied("no table of users for now") from None
        if uid != self.uid:
            raise Denied("another user")

    def _has_cookie(self, untrusted_header: str) -> bool:
        try:
            found = SimpleCookie(untrusted_header).get(self.cookie_name)
        except CookieError:
            return False
        return found is not None and _same(self._cookie, found.value)


def _same(secret: str, untrusted: str) -> bool:
    return secrets.compare_digest(secret.encode(), untrusted.encode("utf-8", "replace"))
