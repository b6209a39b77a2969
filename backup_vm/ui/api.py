# SPDX-License-Identifier: GPL-2.0-or-later
"""What the page asks the server: JSON in, JSON out. The guard has let the request through."""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from backup_vm.config import Pruning
from backup_vm.paths import QREXEC_CLIENT, SYSTEMD
from backup_vm.reporting.rows import VolumeRow, row_name
from backup_vm.ui import asked, reads
from backup_vm.ui.asked import BadRequest
from backup_vm.ui.downloads import Downloads
from backup_vm.ui.program import Failed, Program
from backup_vm.ui.queue import Queue, QueueFull
from backup_vm.ui.reads import Reads
from common.existing import exists
from wire.slots import BadRecoveryKey, parse_recovery

PATIENCE = 20.0
"""Seconds that a request for news waits."""
LONGEST_KEY = 4096
_JSON = Callable[[web.Request], Awaitable[dict[str, Any]]]


class Api:
    """The routes below /api/, and what they share."""

    def __init__(self, program: Program, pruning: Pruning) -> None:
        self.program, self._pins = program, asked.pins(pruning)
        self._reads = Reads(program)
        self.queue = Queue(program, self._reads)
        self._recovery = False
        """Whether the recovery key was typed, and opened the archive."""
        self._downloads = Downloads(program, self._reads)

    def warm(self) -> None:
        """The page was opened: begin to look at what it will ask for."""
        self._reads.warm()

    def add_to(self, app: web.Application) -> None:
        """Declare the routes."""
        for name, get in {
            "status": self._status,
            "doctor": self._doctor,
            "sessions": self._sessions,
            "days": self._days,
            "moment": self._moment,
            "space": self._space,
            "frees": self._frees,
            "names": self._names,
            "here": self._here,
            "news": self._news,
        }.items():
            app.router.add_get(f"/api/{name}", _answering(get))
        for name, post in {
            "files": self._files,
            "history": self._history,
            "jobs": self._add_job,
            "cancel": self._cancel,
            "simulate": self._simulate,
            "tag": self._tag,
            "key": self._key,
            "refresh": self._refresh,
            "ticket": self._ticket,
            "outcome": self._outcome,
        }.items():
            app.router.add_post(f"/api/{name}", _answering(post))
        app.router.add_get("/download/{ticket}", self._downloads.answer)

    async def _status(self, request: web.Request) -> dict[str, Any]:
        row, warnings = await self._reads.get("status")
        keyed = self.program.passphrase is not None or self.program.key_file is not None
        return {
            "status": row,
            "warnings": warnings,
            "keyed": keyed,
            "recovery": self._recovery,
            "pins": self._pins,
            "systemd": exists(SYSTEMD),
        }

    async def _doctor(self, request: web.Request) -> dict[str, Any]:
        row, _ = await self._reads.get("doctor")
        return row

    async def _volumes(self) -> list[VolumeRow]:
        row, _ = await self._reads.get("list", "--no-space")
        volumes: list[VolumeRow] = row["volumes"]
        return volumes

    async def _sessions(self, request: web.Request) -> dict[str, Any]:
        query = request.query
        until = _number(query, "until") if query.get("until") else None
        return reads.sessions(
            await self._volumes(),
            query.get("volume", ""),
            query.get("tag", ""),
            until,
            _number(query, "offset"),
            _number(query, "limit") or reads.PAGE,
        )

    async def _days(self, request: web.Request) -> dict[str, Any]:
        query = request.query
        last = _number(query, "last") if query.get("last") else None
        return reads.days(await self._volumes(), query.get("volume", ""), last)

    async def _moment(self, request: web.Request) -> dict[str, Any]:
        at = _number(request.query, "time")
        return {"volumes": reads.moment(await self._volumes(), at)}

    async def _space(self, request: web.Request) -> dict[str, Any]:
        volumes, (status, _) = await asyncio.gather(self._volumes(), self._reads.get("status"))
        return reads.space(volumes, status)

    async def _frees(self, request: web.Request) -> dict[str, Any]:
        """What takes its time with very many sessions, and is shown when it is there."""
        row, _ = await self._reads.get("list", "--space")
        return {"largest": reads.largest(row["volumes"])}

    async def _names(self, request: web.Request) -> dict[str, Any]:
        return {"volumes": sorted(map(row_name, await self._volumes()))}

    async def _here(self, request: web.Request) -> dict[str, Any]:
        """What setup says for this machine: what dom0 is told that this qube is called."""
        return {"qube": socket.gethostname() if exists(QREXEC_CLIENT) else None}

    async def _news(self, request: web.Request) -> dict[str, Any]:
        return await self.queue.news(_number(request.query, "since"), PATIENCE)

    async def _files(self, request: web.Request) -> dict[str, Any]:
        """Asked for in a body: an address cannot hold a name that is no UTF-8."""
        body = await _body(request)
        path = asked.text(body, "path") or "/"
        volume, pattern = asked.needed(body, "volume"), asked.text(body, "name")
        # in all sessions only a name is searched for: all files of all of them are no page
        every = bool(pattern) and asked.flag(body, "all")
        where = (f"--session={'all' if every else asked.needed(body, 'session')}", "--")
        if pattern:
            words: tuple[str, ...] = (
                "files",
                "find",
                f"--name=*{_literal(pattern)}*",
                *where,
                volume,
                path,
            )
        else:
            words = ("files", "ls", *where, volume, path)
        row, warnings = await self._reads.get(*words)
        return {**row, "warnings": warnings}

    async def _history(self, request: web.Request) -> dict[str, Any]:
        body = await _body(request)
        volume, path = (asked.needed(body, name) for name in ("volume", "path"))
        row, _ = await self._reads.get("files", "history", "--", volume, path)
        return row

    async def _add_job(self, request: web.Request) -> dict[str, Any]:
        body = await _body(request)
        kind = asked.needed(body, "kind")
        words = asked.job_words(kind, body)
        try:
            job = await self.queue.add(kind, dict(body), words)
        except QueueFull:
            raise BadRequest("too much waits in the queue already") from None
        return {"id": job.id}

    async def _cancel(self, request: web.Request) -> dict[str, Any]:
        number = (await _body(request)).get("id")
        if type(number) is not int:
            raise BadRequest("id must be a number")
        return {"cancelled": await self.queue.cancel(number)}

    async def _simulate(self, request: web.Request) -> dict[str, Any]:
        words = asked.prune_words(await _body(request), dry_run=True)
        row, warnings = await self._reads.get(*words)
        return {**row, "warnings": warnings}

    async def _tag(self, request: web.Request) -> dict[str, Any]:
        words = asked.tag_words(await _body(request))
        async with self._reads.slot():  # it reads the sessions, too
            row, _ = await self.program.ask(words)
        self._reads.forget()
        return row

    async def _key(self, request: web.Request) -> dict[str, Any]:
        """Take a passphrase or recovery key, if it opens the archive; forget it if it is empty."""
        text = asked.text(await _body(request), "passphrase")
        if not text:
            self.program.passphrase, self._recovery = None, False
            self._reads.forget()
            return {"opened": False}
        key = text.encode("utf-8", "surrogateescape")
        if len(key) > LONGEST_KEY or b"\n" in key:
            raise BadRequest("a passphrase is one line")
        async with self._reads.slot():
            await self.program.ask(("list", "--no-space"), key)
        self.program.passphrase, self._recovery = key, False
        with suppress(BadRecoveryKey):
            self._recovery = bool(parse_recovery(text))
        self._reads.forget()
        return {"opened": True, "recovery": self._recovery}

    async def _refresh(self, request: web.Request) -> dict[str, Any]:
        self._reads.forget()
        return {}

    async def _ticket(self, request: web.Request) -> dict[str, Any]:
        return {"link": self._downloads.ticket(await _body(request))}

    async def _outcome(self, request: web.Request) -> dict[str, Any]:
        return self._downloads.outcome(asked.needed(await _body(request), "link"))


def _literal(pattern: str) -> str:
    """What is typed to search for, with brackets as letters; * and ? stay what they are."""
    return pattern.replace("[", "[[]")


def _answering(handle: _JSON) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler whose result is sent, and whose errors are words for the page."""

    async def answer(request: web.Request) -> web.Response:
        try:
            return _json(await handle(request), 200)
        except BadRequest as error:
            return _json({"errors": [str(error)]}, 400)
        except Failed as error:
            return _json({"errors": error.errors or [str(error)], "code": error.code}, 409)

    return answer


def _json(data: dict[str, Any], status: int) -> web.Response:
    # ASCII: a name that is no UTF-8 has halves of surrogates, which no encoding has
    return web.json_response(data, status=status, dumps=json.dumps)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise BadRequest("the body must be JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be an object")
    return found


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise BadRequest(f"{name} must be a number")
    return int(text)
