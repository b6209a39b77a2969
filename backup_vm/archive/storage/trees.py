# SPDX-License-Identifier: GPL-2.0-or-later
"""The folders at a place, each kind of place with as few requests as it can do with: what
``finding`` looks through.
"""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from backup_vm.archive.storage.beneath import Beneath
from backup_vm.archive.storage.finding import MARK, NAMES, Looked, Tree
from backup_vm.archive.storage.objects import Place
from backup_vm.archive.storage.refusals import UnreadableName
from backup_vm.archive.storage.s3 import Level, ObjectStore
from backup_vm.archive.storage.sftp import SftpHost
from backup_vm.archive.storage.sftp_protocol import Attributes, Client, Endless
from backup_vm.errors import DamagedError, ForbiddenError, SparsebakError
from common.override import override

_THREADS = 8
"""Requests to an object store at a time."""
_PATIENCE = 60.0
"""Seconds in which a folder's listing must end: it is held in memory, and some have no end."""
_ENDLESS = "it has more names than are read"


class LocalTree(Tree):
    """A folder of this machine."""

    def __init__(self, root: Path) -> None:
        self._beneath = Beneath(root)

    @override
    def look(self, folders: list[str]) -> Iterator[Looked]:
        for folder in folders:
            try:
                looked = self._look(folder)
            except (OSError, DamagedError) as error:
                text = error.strerror if isinstance(error, OSError) else None
                looked = Looked(problem=text or str(error))
            yield looked

    def _look(self, folder: str) -> Looked:
        parts = folder.split("/") if folder else []
        names = list[str]()
        with (
            self._beneath.telling(folder),
            self._beneath.opened(parts, listed=True) as fd,
            os.scandir(fd) as entries,
        ):
            for seen, entry in enumerate(entries, 1):
                if entry.name == MARK:
                    return Looked(archive=True)
                if seen > NAMES:
                    return Looked(problem=_ENDLESS)
                if entry.is_dir(follow_symlinks=False):
                    names.append(entry.name)
        return Looked(untrusted_folders=names)


class SftpTree(SftpHost, Tree):
    """A folder on a host that is reached by SFTP."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._place = Place(url)

    @override
    def look(self, folders: list[str]) -> Iterator[Looked]:
        """All at once, as one round trip; one by one where the server refuses one of them."""
        try:
            yield from self._place.ask(lambda: self._look(folders))
            return
        except ForbiddenError as error:
            if len(folders) == 1:
                yield Looked(problem=str(error))
                return
        for folder in folders:
            yield from self.look([folder])

    def _look(self, folders: list[str]) -> list[Looked]:
        found = [Looked(problem="there is no such folder") for _ in folders]
        with self._asking() as client:
            paths = [self._path(folder) for folder in folders]
            for at, entries in self._listed(client, paths):
                if any(raw == MARK.encode() for raw, _ in entries):
                    found[at] = Looked(archive=True)
                    continue
                names = [
                    raw.decode(errors="surrogateescape")
                    for raw, attributes in entries
                    if raw not in (b".", b"..") and _may_be_folder(raw, attributes)
                ]
                found[at] = Looked(untrusted_folders=names)
        return found

    @staticmethod
    def _listed(
        client: Client, paths: list[bytes]
    ) -> Iterator[tuple[int, list[tuple[bytes, Attributes]]]]:
        try:
            yield from client.folders(paths, NAMES)
        except Endless:  # which asking again does not help
            raise ForbiddenError(_ENDLESS) from None


def _may_be_folder(raw: bytes, attributes: Attributes) -> bool:
    """Whether to look into it; a server that does not say what it is says so then."""
    folder = attributes.is_folder
    return folder if folder is not None else not raw.startswith(b".")


class ObjectTree(ObjectStore, Tree):
    """A bucket, or the part of it below a path: what has a slash after it is a folder."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._place = Place(url)

    @override
    def look(self, folders: list[str]) -> Iterator[Looked]:
        """For each one request that asks for archive.toml, and one more that lists the folders in
        what is no archive: an archive's own objects are many, and are not listed.
        """
        with ThreadPoolExecutor(min(_THREADS, len(folders))) as pool:
            asked = [pool.submit(self._look, folder) for folder in folders]
            try:
                for future in asked:
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _look(self, folder: str) -> Looked:
        name = f"{folder}/{MARK}".lstrip("/")
        try:
            self._place.ask(lambda: self._run(self._head(name), name))
            return Looked(archive=True)
        except FileNotFoundError:
            pass
        except ForbiddenError as error:
            return self._refused(folder, error)
        try:
            below, objects = self._place.ask(lambda: self._run(self._soon(folder)))
        except (ForbiddenError, UnreadableName) as error:
            return self._refused(folder, error)
        except TimeoutError:
            return Looked(problem=_ENDLESS)
        if len(below) + len(objects) > NAMES:
            return Looked(problem=_ENDLESS)
        return Looked(untrusted_folders=[path.rpartition("/")[2] for path in below])

    async def _soon(self, folder: str) -> Level:
        async with asyncio.timeout(_PATIENCE):
            return await self._level(folder)

    @staticmethod
    def _refused(folder: str, error: SparsebakError) -> Looked:
        if not folder:
            raise error
        return Looked(problem=str(error))
