# SPDX-License-Identifier: GPL-2.0-or-later
"""Objects in an S3-compatible store (also Google's and Azure's), through ``obstore``.

To list, read and add objects is enough to back up; only prune needs to delete.
"""

import os
import re
import time
from collections.abc import Coroutine
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from backup_vm.archive.storage import refusals
from backup_vm.archive.storage.credentials import require_credentials, require_usable, where_to_look
from backup_vm.archive.storage.objects import (
    Changed,
    Entry,
    Objects,
    Place,
    Unreachable,
)
from backup_vm.archive.storage.room import Room
from backup_vm.archive.storage.waiting import REQUESTS
from backup_vm.errors import ForbiddenError, SparsebakError
from common.override import override

if TYPE_CHECKING:
    from backup_vm.archive.storage.vault import Vault

Result = TypeVar("Result")
_PART = 8 << 20
"""Bytes of one part of an upload."""
_STREAM = 1 << 20
STORED = "stored"
"""What says in an object's metadata when it was stored, in Unix seconds: see ``past``."""
Listed = list[tuple[str, Entry]]
Level = tuple[list[str], Listed]
_FOLDERS = {"packs": 1, "volumes": 1, "parity": 1, "locks": 0}
"""Where our objects are, and how deep there are folders in it."""
_FOLDER = re.compile("(packs|parity)/[0-9a-f]{2}|volumes/[0-9a-f]{32}")
_FILES = ("archive.toml", "notes.json")
_MOST = 20_000_000
"""Objects in a listing beyond which it is taken for one without end: 64 MiB each would be 1.2 PiB.
"""


class ObjectStore(Objects):
    """A bucket, or the part of it below a path."""

    pages = True

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError:
            raise SparsebakError(
                "obstore is not installed", "install it: pip install obstore"
            ) from None
        require_usable(os.environ)
        require_credentials(url, os.environ)
        self._url, self._obstore, self._errors = url, obstore, exceptions
        self._prefix = urlsplit(url).path.strip("/")
        self.unreadable: list[str] = []
        self._versions: dict[str, str] | None = None
        """Ids of the versions that were stored, for the vault."""
        from_url: Any = store.from_url
        # No limit of time for a request as a whole: what is slow is no failure. What is silent is
        # told by the kernel's count of bytes, see ``waiting``.
        options: dict[str, Any] = {"timeout": "1day", "connect_timeout": "10s"}
        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            options["allow_http"] = True
        if bundle := os.environ.get("AWS_CA_BUNDLE"):
            options["root_certificate"] = Path(bundle).expanduser().read_bytes()
        # The client repeats nothing: storage/objects does.
        retry: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=30)}
        try:
            self._store: Any = from_url(url, client_options=options, retry_config=retry)
        except Exception as error:  # what it raises for a bad URL is of many kinds
            text = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise SparsebakError(f"{url}: {text}", where_to_look(url)) from None

    def _run(self, request: "Coroutine[Any, Any, Result]", name: str = "") -> Result:
        try:
            return REQUESTS.run(request)
        except (FileNotFoundError, self._errors.BaseError, PermissionError) as error:
            raise refusals.failure(str(error), name, lambda: _ahead(self._url)) from None

    @override
    def list(self) -> list[tuple[str, Entry]]:
        self.unreadable = []
        try:
            return self._run(self._listed(None))
        except refusals.UnreadableName:  # of another program's, perhaps nowhere near ours
            return self._ours()

    async def _listed(self, folder: str | None, after: str | None = None) -> Listed:
        found: dict[str, Entry] = {}
        async for batch in self._obstore.list(self._store, prefix=folder, offset=after):
            for item in batch:
                # A "folder" object, ``NAME/``, is listed after NAME, and as if it were that.
                found.setdefault(str(item["path"]), _entry(item))
            if len(found) > _MOST:
                raise SparsebakError(f"{self._url} lists more than {_MOST} objects")
        return list(found.items())

    async def _level(self, folder: str) -> Level:
        """What is directly in a folder: folders, and objects."""
        found = await self._obstore.list_with_delimiter_async(self._store, prefix=folder)
        folders = [str(name) for name in found["common_prefixes"]]
        return folders, [(str(item["path"]), _entry(item)) for item in found["objects"]]

    def _ours(self) -> Listed:
        """What is where our objects are."""
        found = [one for folder, deep in _FOLDERS.items() for one in self._below(folder, deep)]
        for name in _FILES:
            with suppress(FileNotFoundError):
                found.append((name, self._run(self._head(name), name)))
        return found

    async def _head(self, name: str) -> Entry:
        return _entry(await self._obstore.head_async(self._store, name))

    def _below(self, folder: str, deep: int) -> Listed:
        """What can be read in a folder of ours, which has folders of ours so ``deep``.

        obstore gives up a listing, all of it, for one name that it cannot read. So folders are
        listed one by one, and one with such a name directly in it from where our names begin: they
        begin with a digit or a letter, and before these sort all that is usual among the others, an
        empty part, ``.`` and control characters. Raises UnreadableName where that is not enough.
        """
        try:
            return self._run(self._listed(folder))
        except refusals.UnreadableName as error:
            self.unreadable.append(error.name.removeprefix(f"{self._prefix}/"))
        try:
            folders, found = self._run(self._level(folder))
        except refusals.UnreadableName:
            return self._run(self._listed(folder, f"{folder}/0"))
        if deep:
            ours = filter(_FOLDER.fullmatch, folders)
            found += [one for below in ours for one in self._below(below, deep - 1)]
        return found

    @override
    def get(self, name: str, entry: Entry, target: Path) -> None:
        with open(target, "wb") as file:
            self._run(self._read(name, entry, None, file.write), name)

    @override
    def get_range(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        parts: list[bytes] = []
        self._run(self._read(name, entry, (offset, offset + length), parts.append), name)
        return b"".join(parts)

    async def _read(self, name: str, entry: Entry, span: tuple[int, int] | None, take: Any) -> None:
        """Hand on what comes, never more than was asked for, whatever the store sends."""
        options: Any = self._which(name) | ({"range": span} if span else {})
        answer = await self._obstore.get_async(self._store, name, options=options)
        # Of the same answer, not asked before: the object may be replaced between two requests.
        if _entry(answer.meta) != entry:
            raise Changed(name)
        left = span[1] - span[0] if span else entry.size
        async for part in answer.stream(min_chunk_size=_STREAM):
            left -= len(part)
            if left < 0:
                break
            take(bytes(part))
        if left:
            raise Unreachable(f"{name} came with another length than the store says")

    def _which(self, name: str) -> dict[str, Any]:
        """What says which version of an object is meant; nothing for the newest."""
        return {}

    @override
    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        # A version is made of the contents: it need not be told from the old one.

        async def ask() -> str:
            with open(source, "rb") as file:
                said = {} if self._versions is None else {STORED: str(int(time.time()))}
                done = await self._obstore.put_async(
                    self._store, name, file, chunk_size=_PART, max_concurrency=2, attributes=said
                )
            if self._versions is not None and done["version"]:
                self._versions[name] = str(done["version"])
            if done["e_tag"]:
                return str(done["e_tag"])
            return _entry(await self._obstore.head_async(self._store, name)).version

        return self._run(ask(), name)

    @override
    def delete(self, name: str) -> None:

        async def ask() -> None:
            await self._obstore.delete_async(self._store, name)

        with suppress(FileNotFoundError):
            self._run(ask(), name)

    @override
    def times(self, folder: str) -> dict[str, float]:

        async def ask() -> dict[str, float]:
            found: dict[str, float] = {}
            after = f"{folder}/0"  # see ``_below``
            async for batch in self._obstore.list(self._store, prefix=folder, offset=after):
                for item in batch:
                    name = str(item["path"]).rpartition("/")[2]
                    found[name] = item["last_modified"].timestamp()
            return found

        return self._run(ask())

    @override
    def make(self, name: str, raw: bytes) -> bool | None:
        """Whether the store looks at the condition at all is tried out: some take it,
        and store anyway.
        """

        async def ask() -> bool:
            try:
                await self._obstore.put_async(self._store, name, raw, mode="create")
            except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
                return False
            return True

        try:
            if not self._run(ask(), name):
                return False
            # The same again must be refused now. A store that takes it looks at no condition, and a
            # lease made there would be worth nothing.
            if not self._run(ask(), name):
                return True
        except SparsebakError as error:
            if "NotImplemented" not in str(error):
                raise
            return None
        with suppress(ForbiddenError):
            self.delete(name)
        return None

    @override
    def put_small(self, name: str, raw: bytes, again: bool = False) -> None:

        async def ask() -> None:
            await self._obstore.put_async(self._store, name, raw)

        self._run(ask(), name)

    @override
    def get_small(self, name: str, limit: int) -> bytes:

        async def ask() -> bytes:
            answer = await self._obstore.get_async(self._store, name)
            raw = b""
            async for part in answer.stream(min_chunk_size=1):
                raw += bytes(part)
                if len(raw) >= limit:
                    break
            return raw[:limit]

        return self._run(ask(), name)

    @override
    def sweep(self) -> None:
        """What the store keeps of uploads that were cut is not among its objects."""

    @override
    def space(self) -> Room | None:
        return None

    @override
    def vault(self, place: Place, retention: int) -> "Vault":
        if not self._url.startswith("s3://"):
            return super().vault(place, retention)
        from backup_vm.archive.storage.vault import Vault

        self._versions = {}
        return Vault(self._url, place, self._versions, retention)


def _entry(meta: Any) -> Entry:
    return Entry(int(meta["size"]), str(meta["e_tag"] or meta["last_modified"]))


def _ahead(url: str) -> float | None:
    """Seconds by which our clock is ahead of the store's; None where that cannot be had."""
    with suppress(Exception):  # whatever it may be: the amount is a courtesy
        import email.utils
        import urllib.error
        import urllib.request

        region = os.environ.get("AWS_REGION", "us-east-1")
        bucket = url.partition("://")[2].partition("/")[0]
        endpoint = os.environ.get("AWS_ENDPOINT_URL", f"https://{bucket}.s3.{region}.amazonaws.com")
        request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=1.5) as answer:  # noqa: S310
                date = answer.headers["Date"]
        except urllib.error.HTTPError as error:
            date = error.headers["Date"]
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    return None
