# SPDX-License-Identifier: GPL-2.0-or-later
"""The server: its socket, what every request must pass, and its life from start to signal."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from backup_vm.errors import SparsebakError
from backup_vm.terminal import interrupts
from backup_vm.terminal.output import complain
from backup_vm.ui import guard as guards
from backup_vm.ui.api import Api
from backup_vm.ui.door import MOST, Doors
from backup_vm.ui.guard import Denied, Guard

PAGE = Path(__file__).parent / "page"
LARGEST = 64 << 10
"""Bytes of a request's body."""
LINGER = 1.0
"""Seconds for which the rest of a request is read that was refused, so that the answer arrives."""
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_ENTERED = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sparsebak</title>
<meta name="key" content="{}"><script type="module" src="/page/enter.js"></script></head>
<body></body></html>
"""
"""The answer to the token: the page that keeps the key, and leads to the app from within. A
redirect would not bring the cookie: the browser came from outside, and SameSite=Strict holds until
a page of ours leads to another.
"""
_DENIED = "Not allowed. Start it again with: sparsebak ui\n"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def listen(port: int) -> socket.socket:
    """A socket on loopback; 0 is any port. Raises SparsebakError."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    # what is left of connections to one that was killed keeps nobody from its port
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise SparsebakError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}", "choose another --port"
        ) from None
    return listening


def serve(
    listening: socket.socket,
    guard: Guard,
    make: Callable[[], Api],
    opened: Callable[[bool], None],
) -> None:
    """Serve until a signal comes. ``make``: called within the loop; ``opened``: called when the
    server answers, and again when the token was used.
    """
    # Any program of this machine can send what is no request, or open connections until there are
    # no descriptors left: the libraries would write tracebacks to the terminal for it.
    for name in ("aiohttp", "asyncio"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    handlers = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    try:
        asyncio.run(_serve(listening, guard, make, opened))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


async def _serve(
    listening: socket.socket,
    guard: Guard,
    make: Callable[[], Api],
    opened: Callable[[bool], None],
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in interrupts.SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stopped.set)
    api, doors = make(), Doors(guard.uid)
    # what strangers send that is no HTTP is nothing to be told, and tracebacks tell nobody anything
    logger = logging.getLogger("sparsebak.ui")
    logger.disabled = True
    runner = web.AppRunner(
        application(guard, api, opened, doors),
        access_log=None,
        logger=logger,
        lingering_time=LINGER,
    )
    await runner.setup()
    if runner.server is None:
        raise ValueError("a runner that was set up has a server")
    behind = doors.before(runner.server)
    server = await loop.create_server(behind, sock=listening, backlog=MOST)
    working = asyncio.ensure_future(api.queue.run())
    opened(False)
    await stopped.wait()
    working.cancel()
    server.close()
    await api.program.stop()
    # connections that still wait for news need not be told


def application(
    guard: Guard, api: Api, opened: Callable[[bool], None], doors: Doors
) -> web.Application:
    """The routes behind the guard."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            guard.check(_seen(request))
            doors.admitted(request.transport)
            response = await handler(request)
        except Denied:
            response = web.Response(status=403, text=_DENIED)
            response.force_close()
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
        except ConnectionError:  # whoever asked is gone
            raise
        except Exception as error:
            complain(f"sparsebak: ui: {request.method} {request.path}: {error!r}")
            response = web.Response(status=500, text="failed; the terminal says why\n")
        if not response.prepared:
            response.headers.update(guards.HEADERS)
        return response

    async def enter(request: web.Request) -> web.Response:
        guard.enter(request.query.get("token", ""))
        opened(True)
        api.warm()
        response = web.Response(text=_ENTERED.format(guard.key), content_type="text/html")
        response.headers["Set-Cookie"] = guard.set_cookie
        return response

    app = web.Application(middlewares=[guarded], client_max_size=LARGEST)
    app.router.add_get("/enter", enter)
    for route, file in _files().items():
        app.router.add_get(route, file)
    api.add_to(app)
    return app


def _seen(request: web.Request) -> guards.Request:
    """What the guard looks at. A header that came twice is none that a browser sends: the values
    joined are nothing that is allowed.
    """
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        headers[lower] = f"{headers[lower]}; {value}" if lower in headers else value
    transport = request.transport
    if transport is None:
        raise Denied("gone")
    remote = transport.get_extra_info("peername")
    local = transport.get_extra_info("sockname")
    if remote is None or local is None:
        raise Denied("gone")
    return guards.Request(request.method, request.path, headers, remote[:2], local[:2])


def _files() -> dict[str, Handler]:
    """The page's own files, by path: those that are there at the start, and no other."""
    found: dict[str, Handler] = {}
    for file in sorted(PAGE.iterdir()):
        if file.suffix in TYPES:
            route = "/" if file.name == "index.html" else f"/page/{file.name}"
            found[route] = _file(file.read_bytes(), TYPES[file.suffix])
    return found


def _file(data: bytes, kind: str) -> Handler:
    async def send(request: web.Request) -> web.StreamResponse:
        return web.Response(body=data, content_type=kind, charset="utf-8")

    return send
