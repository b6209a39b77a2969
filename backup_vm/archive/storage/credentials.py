# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials for object stores.

They and the endpoint come from the environment, as for the store's own tools: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL. The credentials of the machine itself, from a
cloud's metadata address, are asked for only with SPARSEBAK_INSTANCE_CREDENTIALS=1.
"""

from collections.abc import Mapping
from pathlib import Path

from backup_vm.errors import SparsebakError
from common.existing import exists

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
        or (kind == "gs" and exists(google))
        or environment.get(ASKED, "") not in ("", "0")
    ):
        return
    raise SparsebakError(f"there are no credentials for {url}", which(kind))


def which(kind: str) -> str:
    """What to set, for people."""
    names = " and ".join(CREDENTIALS[kind][0])
    return f"set {names} in the environment; {ASKED}=1 takes those that a cloud gives its machines"
