"""Objects in an S3-compatible store (also Google's and Azure's), through ``obstore``.

Credentials and endpoint come from the environment, as for the store's own tools: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_REGION, AWS_ENDPOINT_URL. To list, read and add objects is enough to back up; only prune needs to delete.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from backup_vm.archive.storage.objects import Entry, Unreachable
from backup_vm.errors import ForbiddenError, SparsebakError

_PART = 8 << 20
"""Bytes of one part of an upload."""


class ObjectStore:
    """See Objects."""

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError:
            raise SparsebakError(
                "obstore is not installed", "install it: pip install sparsebak[remote]"
            ) from None
        self._obstore, self._errors = obstore, exceptions
        from_url: Any = store.from_url
        options: dict[str, Any] = {"timeout": "120s", "connect_timeout": "10s"}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["allow_http"] = True
        retry: Any = {
            "max_retries": 0,
            "retry_timeout": timedelta(seconds=30),
        }  # we do that ourselves
        try:
            self._store: Any = from_url(url, client_options=options, retry_config=retry)
        except Exception as error:  # what it raises for a bad URL is of many kinds
            raise SparsebakError(
                f"{url}: {_first_line(error)}", "credentials come from the environment: AWS_..."
            ) from None

    @contextmanager
    def _asking(self) -> Iterator[None]:
        errors = self._errors
        try:
            yield
        except (FileNotFoundError, errors.NotFoundError) as error:
            raise FileNotFoundError(_first_line(error)) from None
        except (
            PermissionError,
            errors.PermissionDeniedError,
            errors.UnauthenticatedError,
        ) as error:
            raise ForbiddenError(f"the object store refuses: {_first_line(error)}") from None
        except errors.BaseError as error:
            raise Unreachable(_first_line(error)) from None

    def list(self) -> Iterator[tuple[str, Entry]]:
        """See Objects."""
        with self._asking():
            for batch in self._obstore.list(self._store):
                for item in batch:
                    yield (
                        str(item["path"]),
                        Entry(int(item["size"]), str(item["e_tag"] or item["last_modified"])),
                    )

    def get(self, name: str, target: Path) -> None:
        """See Objects."""
        with self._asking(), open(target, "wb") as file:
            for part in self._obstore.get(self._store, name):
                file.write(part)

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See Objects."""
        with self._asking():
            return bytes(self._obstore.get_range(self._store, name, start=offset, length=length))

    def put(self, name: str, source: Path) -> str:
        """See Objects."""
        with self._asking(), open(source, "rb") as file:
            done = self._obstore.put(self._store, name, file, chunk_size=_PART, max_concurrency=2)
            return str(done["e_tag"])

    def delete(self, name: str) -> None:
        """See Objects."""
        with self._asking(), suppress(FileNotFoundError):
            self._obstore.delete(self._store, name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
