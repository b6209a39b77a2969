# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials for object stores.

They and the endpoint come from the environment, as for the store's own tools: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL. The credentials of the machine itself, from a
cloud's metadata address, are asked for only with SPARSEBAK_INSTANCE_CREDENTIALS=1.
"""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from backup_vm.errors import SparsebakError, UsageError

ASKED = "SPARSEBAK_INSTANCE_CREDENTIALS"
CREDENTIALS = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE",),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
        ("AWS_SKIP_SIGNATURE",),
    ),
    "gs": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("GOOGLE_SERVICE_ACCOUNT",),
        ("GOOGLE_SERVICE_ACCOUNT_PATH",),
        ("GOOGLE_SERVICE_ACCOUNT_KEY",),
        ("GOOGLE_SKIP_SIGNATURE",),
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_KEY",),
        ("AZURE_STORAGE_ACCESS_KEY",),
        ("AZURE_STORAGE_SAS_KEY",),
        ("AZURE_STORAGE_SAS_TOKEN",),
        ("AZURE_STORAGE_CLIENT_SECRET",),
        ("AZURE_CLIENT_SECRET",),
        ("AZURE_FEDERATED_TOKEN_FILE",),
        ("AZURE_USE_AZURE_CLI",),
        ("AZURE_SKIP_SIGNATURE",),
    ),
}
"""Sets of environment variables, by kind of URL, each of which is enough."""

_ENDPOINTS = (
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AZURE_ENDPOINT",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
_SECRETS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
)
_SENDABLE = re.compile(r"[\x20-\x7e]*")
_REGION = re.compile(r"[A-Za-z0-9._-]*")
_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*[A-Za-z_-][A-Za-z0-9_-]*\.?")
"""Of a host: the last part does not begin with a digit, as those of addresses do."""


def require_usable(environment: Mapping[str, str]) -> None:
    """Raise UsageError for what the environment says of stores in a form that no request can have:
    the library would die of it.
    """
    for name in _SECRETS:
        if not _SENDABLE.fullmatch(environment.get(name, "")):
            hint = "a line's end, perhaps, came with it from a file: set it again"
            raise UsageError(f"{name} has characters that cannot be sent", hint)
    for name in _REGIONS:
        if not _REGION.fullmatch(environment.get(name, "")):
            raise UsageError(f"{name}: {environment[name]} is no region", "such as us-east-1")
    for name in _ENDPOINTS:
        if (given := environment.get(name)) and not _is_address(given):
            raise UsageError(
                f"{name}: {given} is no address", "write https://HOST or https://HOST:PORT"
            )


def _is_address(text: str) -> bool:
    """Whether a URL begins as one of HTTP does, with the name of a host or an address of IP."""
    try:
        parts = urlsplit(text)
        host, numbered = parts.hostname or "", parts.port is None or parts.port > 0
        if "[" in parts.netloc:
            ipaddress.IPv6Address(host)
        elif not _NAME.fullmatch(host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    printable = _SENDABLE.fullmatch(text) is not None and not set(text) & set(' "<>\\^`{|}')
    return text.startswith(("http://", "https://")) and numbered and printable


def require_credentials(url: str, environment: Mapping[str, str]) -> None:
    """Raise SparsebakError where the library would ask the machine's cloud for credentials, and
    nobody wants that.
    """
    kind = url.partition("://")[0]
    google = (
        Path(environment.get("HOME", "/")) / ".config/gcloud/application_default_credentials.json"
    )
    if (
        any(all(environment.get(name) for name in names) for names in CREDENTIALS[kind])
        or (kind == "gs" and google.exists())
        or environment.get(ASKED, "") not in ("", "0")
    ):
        return
    raise SparsebakError(f"there are no credentials for {url}", which(kind))


def which(kind: str) -> str:
    """What to set, for people."""
    names = " and ".join(CREDENTIALS[kind][0])
    return f"set {names} in the environment; {ASKED}=1 takes those that a cloud gives its machines"


def where_to_look(url: str) -> str:
    """Where to look for what is wrong with an address, for people."""
    begins = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}[url.partition("://")[0]]
    return f"look at the address, and at variables of the environment that begin with {begins}"
