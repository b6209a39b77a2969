# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores that do not behave: an HTTP server that answers as told, sockets that are silent or slow,
and objects that lie.
"""

import contextlib
import http.server
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from backup_vm.archive.storage.objects import Changed, Entry, Objects, Unreachable
from backup_vm.archive.storage.room import Room

Answer = tuple[int, bytes]


def refusal(status: int, code: str, message: str = "as it was set up to", more: str = "") -> Answer:
    """As S3 refuses."""
    text = f"<Error><Code>{code}</Code>\n<Message>{message}</Message>{more}</Error>"
    return status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + text.encode()


EMPTY = 200, b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


@contextlib.contextmanager
def http_store(
    answer: Callable[[int], Answer],
    date: float | None = None,
    tls: tuple[Path, Path] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """A port at which the n-th request is answered so, and the requests that came. ``date``: what
    it takes for now.
    """
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return super().date_time_string(date if timestamp is None else timestamp)  # type: ignore[arg-type]

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answer(len(requests))
            requests.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.command != "HEAD" else b"")

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_port, requests
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def raw_store(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port at which each connection is handed to a function, in a thread of its own."""
    kept: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)

    def take(one: socket.socket) -> None:
        with contextlib.suppress(OSError):
            serve(one)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                one = listener.accept()[0]
                kept.append(one)
                threading.Thread(target=take, args=(one,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.close()
        for one in kept:
            one.close()


def silent(one: socket.socket) -> None:
    """Take what comes, and say nothing."""
    while one.recv(1 << 16):
        pass


def headers_only(one: socket.socket) -> None:
    """Answer that something comes, and send nothing more."""
    one.recv(1 << 16)
    one.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 500\r\n\r\n<")
    silent(one)


def trickling(pause: float) -> Callable[[socket.socket], None]:
    """Answer an empty listing, slowly."""

    def serve(one: socket.socket) -> None:
        one.recv(1 << 16)
        one.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(EMPTY[1]))
        for at in range(0, len(EMPTY[1]), 10):
            time.sleep(pause)
            one.sendall(EMPTY[1][at : at + 10])

    return serve


class Lying(Objects):
    """Objects in a folder, after restic's mock of a backend: see the attributes for what is wrong
    with it.
    """

    unreadable: Collection[str] = ()
    pages = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.fails = 0
        """So many requests fail before one is answered."""
        self.short = 0
        """So many answers lack their end; they are noticed, as by a checked transfer."""
        self.late: dict[str, Entry] = {}
        """What listings have instead of what there is; see ``freeze``."""
        self.frozen = False
        self.gets = self.lists = self.looks = 0

    def freeze(self) -> None:
        """Listings show what there is now, whatever comes."""
        self.late, self.frozen = dict(self._all()), True

    def _try(self) -> None:
        if self.fails:
            self.fails -= 1
            raise Unreachable("as it was set up to")

    def _all(self) -> Iterator[tuple[str, Entry]]:
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(self.folder)), self._entry(path)

    @staticmethod
    def _entry(path: Path) -> Entry:
        there = path.stat()
        return Entry(there.st_size, f"{there.st_mtime_ns}-{there.st_ino}")

    def list(self) -> list[tuple[str, Entry]]:
        self.lists += 1
        self._try()
        return list(self.late.items() if self.frozen else self._all())

    def get(self, name: str, entry: Entry, target: Path) -> None:
        self.gets += 1
        target.write_bytes(self.get_range(name, entry, 0, entry.size))

    def get_range(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        self._try()
        if self._entry(self.folder / name) != entry:
            raise Changed(name)
        if self.short:
            self.short -= 1
            raise Unreachable("came with fewer bytes")
        return (self.folder / name).read_bytes()[offset : offset + length]

    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        self._try()
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{random.randrange(1 << 60)}")
        beside.write_bytes(source.read_bytes())
        beside.rename(path)
        return self._entry(path).version

    def times(self, folder: str) -> dict[str, float]:
        self.looks += 1
        there = self.folder / folder
        return (
            {path.name: path.stat().st_mtime for path in there.iterdir()} if there.exists() else {}
        )

    def make(self, name: str, raw: bytes) -> bool | None:
        if (self.folder / name).exists():
            return False
        self.put_small(name, raw)
        return True

    def put_small(self, name: str, raw: bytes, again: bool = False) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(raw)

    def get_small(self, name: str, limit: int) -> bytes:
        self._try()
        return (self.folder / name).read_bytes()[:limit]

    def delete(self, name: str) -> None:
        self._try()
        (self.folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        pass

    def space(self) -> Room | None:
        return None


class Slow(Lying):
    """Each request takes a while. ``most``: how many were under way at one time since that was set
    to 0; ``asked``: how many there were.
    """

    def __init__(self, folder: Path, delay: float) -> None:
        super().__init__(folder)
        self._delay, self._now, self._lock = delay, 0, threading.Lock()
        self.most = self.asked = 0

    @contextlib.contextmanager
    def _taking_long(self) -> Iterator[None]:
        with self._lock:
            self._now += 1
            self.asked += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self._delay)
            yield
        finally:
            with self._lock:
                self._now -= 1

    def get_range(self, name: str, entry: Entry, offset: int, length: int) -> bytes:
        with self._taking_long():
            return super().get_range(name, entry, offset, length)

    def put(self, name: str, source: Path, old: Entry | None = None) -> str:
        with self._taking_long():
            return super().put(name, source, old)

    def delete(self, name: str) -> None:
        with self._taking_long():
            super().delete(name)
