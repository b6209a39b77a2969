# SPDX-License-Identifier: GPL-2.0-or-later
"""Downloads: a link that works once, the bytes as a command writes them, and for the page how it
ended, for a browser says of a download that it failed, and never why.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from aiohttp import web

from backup_vm.errors import Exit
from backup_vm.ui import asked
from backup_vm.ui.guard import HEADERS
from backup_vm.ui.program import Failed, Program, collect, interrupt, streams
from backup_vm.ui.reads import Reads

LIFE = 60.0
"""Seconds in which a link must be used."""
STILL = 300.0
"""Seconds for which nothing is taken, after which a download is given up: the archive cannot be
written to meanwhile.
"""
KEPT = 100
"""Downloads of which it is remembered how they ended."""
_PIECE = 1 << 18


@dataclass
class Download:
    """One of them. ``code``: how its command ended, None until then."""

    words: tuple[str, ...]
    name: str
    kind: str
    made: float = field(default_factory=time.monotonic)
    begun: bool = False
    code: int | None = None
    errors: list[str] = field(default_factory=list)
    ended: bool = False


class Downloads:
    """All that were asked for, by their tickets."""

    def __init__(self, program: Program, reads: Reads) -> None:
        self._program, self._reads = program, reads
        self._known: dict[str, Download] = {}

    def ticket(self, body: Mapping[str, Any]) -> str:
        """A link that works once, for a file, or for a folder as a tar file: a download has no
        header of ours. Raises BadRequest.
        """
        path, volume = asked.needed(body, "path"), asked.needed(body, "volume")
        session = asked.needed(body, "session")
        folder = asked.flag(body, "folder")
        last = path.rstrip("/").rpartition("/")[2]
        if folder:
            name, kind = f"{last or volume.replace('/', '-')}.tar", "application/x-tar"
        else:
            name, kind = last or "file", "application/octet-stream"
        action = "tar" if folder else "cat"
        words = ("files", action, f"--session={session}", "--", volume, path)
        for key in list(self._known)[: max(0, len(self._known) - KEPT + 1)]:
            del self._known[key]
        ticket = secrets.token_urlsafe(24)
        self._known[ticket] = Download(words, name, kind)
        return f"/download/{ticket}"

    def outcome(self, link: str) -> dict[str, Any]:
        """How a download is, or ended."""
        download = self._known.get(link.removeprefix("/download/"))
        if download is None:
            return {"ended": True, "code": None, "errors": []}
        if not download.begun and time.monotonic() - download.made > LIFE:
            download.ended = True
        return {"ended": download.ended, "code": download.code, "errors": download.errors}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """The download itself."""
        download = self._known.get(request.match_info["ticket"])
        if (
            download is None
            or download.begun
            or request.headers.get("Range")  # nothing is sent in parts
            or time.monotonic() - download.made > LIFE
        ):
            raise web.HTTPNotFound
        download.begun = True
        try:
            async with self._reads.download():
                return await self._send(request, download)
        except Failed as error:
            download.code, download.errors = error.code, error.errors
            return _refused(download)
        finally:
            download.ended = True

    async def _send(self, request: web.Request, download: Download) -> web.StreamResponse:
        process = await self._program.start(download.words, data=False)
        stdout, stderr = streams(process)
        complaints = asyncio.ensure_future(collect(stderr, download.errors.append))
        try:
            part = await stdout.read(_PIECE)
            if not part:  # an empty file, or one that cannot be read
                await complaints
                download.code = await process.wait()
                if download.code:
                    return _refused(download)
            response = web.StreamResponse()
            response.headers.update(HEADERS)
            response.headers["Content-Type"] = download.kind
            response.headers["Content-Disposition"] = (
                f"attachment; filename*=UTF-8''{_quoted(download.name)}"
            )
            await response.prepare(request)
            try:
                while part:
                    await asyncio.wait_for(response.write(part), STILL)
                    part = await stdout.read(_PIECE)
                await complaints
                download.code = await process.wait()
            except TimeoutError:
                text = f"given up: nothing of it was taken for {STILL:.0f} seconds"
                download.errors.append(text)
            # What is cut off must not look whole. A tar file that lacks files is, and names them.
            if download.code not in (Exit.OK, Exit.INCOMPLETE) and request.transport is not None:
                request.transport.abort()
            return response
        finally:
            interrupt(process)
            complaints.cancel()
            self._program.ended(process)


def _refused(download: Download) -> web.Response:
    return web.Response(status=409, text="\n".join(download.errors) + "\n")


def _quoted(name: str) -> str:
    # what turns the direction of writing would make another ending of a name seem its own
    name = "".join(letter if letter.isprintable() else "_" for letter in name)
    return quote(name.encode("utf-8", "replace"), safe="")
