# SPDX-License-Identifier: GPL-2.0-or-later
"""What an S3-compatible bucket is asked for that ``obstore`` has no call for: versions of objects,
and the dates until which they are locked.

The keys come from the environment as for all else (see ``credentials``), but only those that are
there: a token file, or a cloud's metadata, is not asked here. What the store answers is bounded,
and no XML is parsed that declares anything.
"""

import asyncio
import base64
import email.utils
import hashlib
import http.client
import os
import ssl
import threading
import time
import urllib.request
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, unquote_plus, urlsplit

from backup_vm.archive.storage import refusals
from backup_vm.archive.storage.credentials import require_usable
from backup_vm.archive.storage.objects import Silent, Unreachable
from backup_vm.archive.storage.signing import (
    Credentials,
    Query,
    Request,
    encoded_path,
    encoded_query,
    signed_headers,
)
from backup_vm.archive.storage.waiting import REQUESTS
from backup_vm.errors import ForbiddenError, SparsebakError

MODE = "COMPLIANCE"
"""Not GOVERNANCE: most stores give one key all rights, the one to end such a lock included, and
whoever has it could end them.
"""
_PATIENCE = 20.0
"""Seconds for which a connection may be silent."""
_LONGEST = 16 << 20
"""Bytes of an answer: a thousand entries take less than one MiB."""
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_NO_LOCK = ("ObjectLockConfigurationNotFoundError", "NotImplemented", "MethodNotAllowed")
_MOST, _MOST_EMPTY = 40_000_000, 1000
"""Versions in a listing, and pages one after another without any, beyond which it is taken for one
without end.
"""
_LAST = 250_000_000_000
"""The last moment (Unix seconds, in the year 9892) that a store's clock is believed to show: dates
are reckoned from it, and there is none after the year 9999.
"""
_LARGEST = 1 << 60
"""Bytes of an object."""


class Version(NamedTuple):
    """One version of an object, or a ``marker`` that says that it was deleted. ``name`` is relative
    to the archive, and not to be believed; ``time`` in Unix seconds by the store's clock.
    """

    name: str
    id: str
    time: float
    size: int
    tag: str
    latest: bool
    marker: bool


class Bucket:
    """The bucket of an archive at ``s3://BUCKET/PATH``."""

    def __init__(self, url: str) -> None:
        require_usable(os.environ)
        parts = urlsplit(url)
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        key, secret = (os.environ.get(name, "") for name in names)
        if parts.scheme != "s3" or not (key and secret):
            raise SparsebakError(
                f"{url} cannot be asked for versions and locks of objects without an access key",
                f"set {' and '.join(names)} in the environment",
            )
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        self._credentials = Credentials(
            key, secret, region, os.environ.get("AWS_SESSION_TOKEN", "")
        )
        endpoint = urlsplit(
            os.environ.get("AWS_ENDPOINT_URL") or f"https://s3.{region}.amazonaws.com"
        )
        self._tls, self._host = endpoint.scheme != "http", endpoint.netloc
        hosted = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true")
        base = endpoint.path.strip("/")
        self._base = "/".join(("", *filter(None, (base, "" if hosted else parts.netloc))))
        self._prefix = unquote(parts.path).strip("/")
        self._url, self._open, self._ahead = url, threading.local(), 0.0
        self._answered = False

    def now(self) -> float:
        """What time it is by the store's clock, in Unix seconds: a clock of ours that is years
        ahead must not lock anything for years.
        """
        if not self._answered:
            with suppress(ForbiddenError):  # which tells the time, too
                self.locks()
        return time.time() - self._ahead

    def locks(self) -> bool:
        """Whether objects in the bucket can be locked."""
        try:
            answer = self._ask("GET", None, [("object-lock", "")])
        except (SparsebakError, FileNotFoundError) as error:
            if any(word in str(error) for word in _NO_LOCK):
                return False
            raise
        return _text(_parsed(answer), "ObjectLockEnabled") == "Enabled"

    def retain(self, name: str, until: int, version: str = "") -> int:
        """Lock an object (that version of it, else the newest) until a time in Unix seconds; a lock
        that ends later stays. Returns until when it is locked; raise FileNotFoundError.
        """
        date = datetime.fromtimestamp(until, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body = (
            f'<Retention xmlns="{_NAMESPACE}"><Mode>{MODE}</Mode>'
            f"<RetainUntilDate>{date}</RetainUntilDate></Retention>"
        )
        try:
            self._ask("PUT", name, _of("retention", version), body.encode())
        except ForbiddenError:
            # Nothing makes a lock shorter: one that ends later is refused another date.
            there = self.retained(name, version)
            if there < until:
                raise
            return there
        return until

    def retained(self, name: str, version: str = "") -> int:
        """Until when an object is locked so that no key can remove it; 0 where it is not."""
        try:
            answer = _parsed(self._ask("GET", name, _of("retention", version)))
            if _text(answer, "Mode") == MODE:
                return int(_time(_text(answer, "RetainUntilDate")))
        except (SparsebakError, FileNotFoundError, ValueError):  # it has none, or nobody may know
            pass
        return 0

    def remove(self, name: str, version: str) -> None:
        """Remove one version for good; raise ForbiddenError where it is locked, or the key may
        not.
        """
        with suppress(FileNotFoundError):
            self._ask("DELETE", name, [("versionId", version)])

    def versions(self) -> Iterator[Version]:
        """All versions of all objects of the archive, those of one name together, newest first."""
        prefix = f"{self._prefix}/" if self._prefix else ""
        query = [("versions", ""), ("prefix", prefix), ("encoding-type", "url")]
        after: list[tuple[str, str]] = []
        count = empty = 0
        while True:
            page = _parsed(self._ask("GET", None, [*query, *after]))
            coded, before = _text(page, "EncodingType") == "url", count
            for element in page:
                kind = _tag(element)
                if kind not in ("Version", "DeleteMarker"):
                    continue
                count += 1
                found = _version(element, prefix, coded, kind == "DeleteMarker")
                if found is not None:
                    yield found
            if _text(page, "IsTruncated") != "true":
                return
            key = _text(page, "NextKeyMarker")
            then = [("key-marker", _decoded(key, prefix, coded) or key)]
            if mark := _text(page, "NextVersionIdMarker"):
                then.append(("version-id-marker", mark))
            empty = empty + 1 if count == before else 0
            if then == after or count > _MOST or empty > _MOST_EMPTY:
                raise SparsebakError(f"{self._url} lists versions without end")
            after = then

    def _ask(self, method: str, name: str | None, query: Query, body: bytes = b"") -> bytes:
        """The body of the answer to a request about an object, or the bucket (None)."""
        key = "/".join(filter(None, (self._prefix, name))) if name is not None else ""
        path = encoded_path(f"{self._base}/{key}".removesuffix("/") or "/")
        headers = {"host": self._host}
        if body:
            digest = hashlib.md5(body, usedforsecurity=False).digest()
            headers["content-md5"] = base64.b64encode(digest).decode()
        request = Request(method, path, query, headers, body)

        async def ask() -> tuple[int, str, bytes]:
            # In a thread that nobody waits for once the run is to stop.
            return await asyncio.to_thread(self._send, request)

        status, reason, raw = REQUESTS.run(ask())
        if status < 300:
            return raw
        text = f"status code: {status} {reason}\n{raw.decode(errors='replace')}"
        raise refusals.failure(text, name or "", lambda: self._ahead if self._answered else None)

    def _send(self, request: Request) -> tuple[int, str, bytes]:
        """Status, its words, and the body of the answer; raise Unreachable, SparsebakError."""
        connection, fresh = self._connection()
        try:
            try:
                return self._exchange(connection, request)
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                if fresh:
                    raise
                return self._exchange(connection, request)  # the store had closed it meanwhile
        except ssl.SSLCertVerificationError as error:
            raise SparsebakError(
                f"no secure connection to the object store: {error.verify_message}",
                "AWS_CA_BUNDLE names a file with the certificate of an authority of your own",
            ) from None
        except TimeoutError:
            connection.close()
            raise Silent(_PATIENCE) from None
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Unreachable(str(error) or type(error).__name__) from None

    def _exchange(
        self, connection: http.client.HTTPConnection, request: Request
    ) -> tuple[int, str, bytes]:
        target = request.path
        if query := encoded_query(request.query):
            target += f"?{query}"
        headers = signed_headers(request, self._credentials, time.time())
        connection.request(request.method, target, request.body or None, headers)
        answer = connection.getresponse()
        raw = answer.read(_LONGEST + 1)
        if len(raw) > _LONGEST:
            connection.close()
            raise SparsebakError(f"{self._url} answers with more than can be")
        with suppress(TypeError, ValueError, OverflowError):
            date = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
            if 0 <= date <= _LAST:
                self._ahead, self._answered = time.time() - date, True
        return answer.status, answer.reason, raw

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether nothing was asked by it yet."""
        found: http.client.HTTPConnection | None = getattr(self._open, "connection", None)
        if found is not None:
            return found, found.sock is None
        scheme, host = ("https" if self._tls else "http"), self._host
        proxy = urllib.request.getproxies().get(scheme, "")
        through = urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc.rpartition("@")[2]
        if urllib.request.proxy_bypass(urlsplit(f"//{host}").hostname or ""):
            through = ""
        if self._tls:
            context = ssl.create_default_context()
            if bundle := os.environ.get("AWS_CA_BUNDLE"):
                context.load_verify_locations(Path(bundle).expanduser())
            found = http.client.HTTPSConnection(through or host, timeout=_PATIENCE, context=context)
        else:
            found = http.client.HTTPConnection(through or host, timeout=_PATIENCE)
        if through:
            found.set_tunnel(host)
        self._open.connection = found
        return found, True


def _of(what: str, version: str) -> Query:
    return [(what, ""), *([("versionId", version)] if version else [])]


def _parsed(untrusted_raw: bytes) -> ElementTree.Element:
    """XML, without any declaration of its own: nothing in it can grow."""
    if b"<!" in untrusted_raw:
        raise SparsebakError("the object store answers with XML that declares something")
    try:
        return ElementTree.fromstring(untrusted_raw)  # noqa: S314
    except ElementTree.ParseError as error:
        raise SparsebakError(f"the object store answers with what is no XML: {error}") from None


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _text(element: ElementTree.Element, name: str) -> str:
    """What an element within another one says; empty where there is none."""
    return next(((one.text or "").strip() for one in element.iter() if _tag(one) == name), "")


def _time(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def _size(text: str) -> int:
    """Bytes of an object; raise ValueError."""
    if not 0 <= (size := int(text)) <= _LARGEST:
        raise ValueError(f"an object of {text[:40]} bytes")
    return size


def _decoded(key: str, prefix: str, coded: bool) -> str | None:
    """A name as it is, beginning with the prefix; None for one that does not: some stores write a
    space in it as ``+``.
    """
    names = (unquote(key), unquote_plus(key)) if coded else (key,)
    return next((one for one in names if one.startswith(prefix)), None)


def _version(
    element: ElementTree.Element, prefix: str, coded: bool, marker: bool
) -> Version | None:
    """An entry of a listing; None for what is not the archive's."""
    key = _text(element, "Key")
    name = _decoded(key, prefix, coded)
    try:
        if name is None:
            return None
        return Version(
            name.removeprefix(prefix),
            _text(element, "VersionId"),
            _time(_text(element, "LastModified")),
            0 if marker else _size(_text(element, "Size")),
            _text(element, "ETag"),
            _text(element, "IsLatest") == "true",
            marker,
        )
    except ValueError as error:
        raise SparsebakError(f"the object store lists a version that cannot be: {error}") from None
