# SPDX-License-Identifier: GPL-2.0-or-later
"""What an object store's refusals and failures mean, as far as ``obstore`` hands them on: in a
text, the store's XML included.

What waiting cannot help is final; everything is one sentence with the store's own code and message.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from backup_vm.archive.storage.objects import Overloaded, Unreachable
from backup_vm.errors import ForbiddenError, NoRoomError, SparsebakError

_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_REGION = "set AWS_REGION to the bucket's region{region}, and AWS_ENDPOINT_URL to its endpoint"
_HINTS = {
    "NoSuchBucket": "make the bucket first, or correct the URL",
    "InvalidBucketName": "correct the bucket's name in the URL",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "InvalidToken": "check AWS_SESSION_TOKEN",
    "ExpiredToken": "renew the credentials (AWS_SESSION_TOKEN)",
    "AccessDenied": "the credentials do not allow this",
    "AllAccessDisabled": "the credentials do not allow this",
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "EntityTooLarge": "the store takes only smaller objects",
}
_FULL = frozenset(
    ("QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded")
)
_PASSING = frozenset(
    ("SlowDown", "RequestTimeout", "OperationAborted", "BadDigest", "IncompleteBody")
    + ("XAmzContentSHA256Mismatch", "TooManyRequests", "InternalError", "ServiceUnavailable")
)
"""Codes that say "later", whatever the status beside them."""
_PASSING_STATUS = frozenset((408, 425, 429, 500, 502, 503, 504))
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{0,400})")
_JSON_MESSAGE = re.compile(r'"message": ?"([^"]{0,400})')
_STATUS = re.compile(r"status code: (\d{3}) ?([\w -]{0,40})")
_SERVER_TIME = re.compile(r"<ServerTime>([^<]{1,40})</ServerTime>")
_REGION_NAMED = re.compile(r"<Region>([\w-]{1,40})</Region>|expecting '([\w-]{1,40})'")
_CERTIFICATE = re.compile(
    r"(InvalidCertificate\([^()]{0,80}(?:\([^()]{0,200}\))?|invalid peer certificate:"
    r" [^\"\n]{0,200}"
    r"|UnknownIssuer|InvalidContentType|AlertReceived\(\w+\)|NotValidForName)"
)
_CAUSE = re.compile(r'(?:message|error): "([^"]{1,200})"')
_ODD_NAME = re.compile(
    r'Encountered object with invalid path: (?:Path|.{0,40}?) ?"([^"\n]{1,300})"'
)
_NAME_UNKNOWN = ("Name or service not known", "No address associated", "nodename nor servname")


class UnreadableName(SparsebakError):
    """Another program's object has a name that obstore takes for impossible: ``name``."""

    name = ""


class Said(NamedTuple):
    """What a store answered: HTTP status (0: nothing), its code and message, and times and places
    it names.
    """

    status: int
    code: str
    message: str
    region: str
    server_time: str

    def __str__(self) -> str:
        words = ": ".join(word for word in (self.code, self.message) if word)
        return words if self.code else f"HTTP {self.status} {words}".strip()


def parse(text: str) -> Said:
    """Find what the store said in an error's text."""
    text = text[:65536]

    def found(pattern: re.Pattern[str]) -> str:
        match = pattern.search(text)
        return " ".join(next(filter(None, match.groups()), "").split()) if match else ""

    status = _STATUS.search(text)
    code, message = found(_CODE), found(_MESSAGE) or found(_JSON_MESSAGE)
    if "redirect without LOCATION" in text:
        code = "PermanentRedirect"
        message = "the bucket is at another endpoint, or in another region"
    if status and not message:
        message = status[2].strip()
    return Said(
        int(status[1]) if status else 0,
        code,
        message,
        found(_REGION_NAMED),
        found(_SERVER_TIME),
    )


def failure(text: str, name: str, ahead: Callable[[], float | None]) -> Exception:
    """The exception to raise for an error's text; ``name`` of the object that was asked for, empty
    for a listing. ``ahead``: by how many seconds our clock is ahead of the store's, if that is
    known; asked where the store refuses for the time.
    """
    said = parse(text)
    if not said.status and not said.code:
        return _not_reached(text)
    if said.code in _FULL:  # with a status that forbids, in some stores
        return NoRoomError(f"the object store refuses: {said}")
    if said.code in _PASSING or (said.status in _PASSING_STATUS and said.code not in _HINTS):
        return Overloaded(str(said))
    if said.code == "RequestTimeTooSkewed":
        return _skewed(said, ahead)
    if said.status == 404 and name and said.code != "NoSuchBucket":
        return FileNotFoundError(f"{name}: {said}")
    hint = _HINTS.get(said.code, "").format(region=f" ({said.region})" if said.region else "")
    kind = ForbiddenError if said.status in (401, 403) else SparsebakError
    return kind(f"the object store refuses: {said}", hint)


def _skewed(said: Said, ahead: Callable[[], float | None]) -> SparsebakError:
    """A clock that is off: no key helps, and no waiting."""
    off = None
    with suppress(ValueError):
        there = datetime.fromisoformat(said.server_time)
        off = time.time() - there.replace(tzinfo=there.tzinfo or UTC).timestamp()
    off = ahead() if off is None else off
    amount = ""
    if off is not None and abs(off) >= 60:
        amount = f"{_duration(abs(off))} {'ahead' if off > 0 else 'behind'}, "
    return SparsebakError(
        f"this machine's clock is {amount}too far off: the object store refuses ({said})",
        "set the clock, then try again",
    )


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days"


def _not_reached(text: str) -> Exception:
    certificate = _CERTIFICATE.search(text)
    if certificate:
        what = " ".join(certificate[1].split())
        return SparsebakError(
            f"no secure connection to the object store: {what}",
            "AWS_CA_BUNDLE names a file with the certificate of an authority of your own",
        )
    if odd := _ODD_NAME.search(text):
        failure = UnreadableName(
            f"the store lists an object of another program's, {odd[1]!r}, whose name cannot be"
            " read",
            "remove it; an archive is best kept under a path of its own",
        )
        failure.name = odd[1]
        return failure
    cause = _CAUSE.search(text)
    what = cause[1] if cause else _first_line(text)
    if any(words in what for words in _NAME_UNKNOWN):
        return Unreachable(f"{what}, or no such host", doubtful=True)
    if "refused" in what:
        return Unreachable(what, doubtful=True)
    if "TimedOut" in text or "timed out" in text or "deadline has elapsed" in text:
        return Unreachable("no connection within 10 s", waited=10)
    return Unreachable(what)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0][:300]
