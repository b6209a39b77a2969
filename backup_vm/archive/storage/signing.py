# SPDX-License-Identifier: GPL-2.0-or-later
"""Signatures of requests to an S3-compatible store, version 4, for the few requests that
``obstore`` has no call for: it signs URLs, and no parameters in them.
"""

import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

_ALGORITHM = "AWS4-HMAC-SHA256"
_UNRESERVED = "-_.~"
_SERVICE = "s3"
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Credentials:
    """An access key, and the region that its signatures are for."""

    key: str
    secret: str = field(repr=False)
    region: str
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Request:
    """What is asked. ``path`` is percent-encoded; ``query`` is not; names of ``headers`` are in
    lower case, and ``host`` is among them.
    """

    method: str
    path: str
    query: Query = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


def encoded_path(path: str) -> str:
    """A path as it stands in a request."""
    return quote(path, safe=f"/{_UNRESERVED}")


def encoded_query(query: Query) -> str:
    """Parameters as they stand in a request, in the order in which they are signed."""
    pairs = (
        (quote(name, safe=_UNRESERVED), quote(value, safe=_UNRESERVED)) for name, value in query
    )
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def signed_headers(request: Request, credentials: Credentials, now: float) -> dict[str, str]:
    """All headers to send, the signature among them. ``now``: Unix seconds by our clock, which the
    store compares with its own.
    """
    digest = hashlib.sha256(request.body).hexdigest()
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    headers = {**request.headers, "x-amz-content-sha256": digest, "x-amz-date": moment}
    if credentials.token:
        headers["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        (
            request.method,
            request.path,
            encoded_query(request.query),
            *(f"{name}:{' '.join(headers[name].split())}" for name in sorted(headers)),
            "",
            names,
            digest,
        )
    )
    scope = f"{moment[:8]}/{credentials.region}/{_SERVICE}/aws4_request"
    text = "\n".join((_ALGORITHM, moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret}".encode()
    for part in scope.split("/"):
        key = _mac(key, part)
    signature = _mac(key, text).hex()
    headers["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.key}/{scope},SignedHeaders={names},"
        f"Signature={signature}"
    )
    return headers


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
