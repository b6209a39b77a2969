# SPDX-License-Identifier: GPL-2.0-or-later
"""A line to a far server: ``python -m bench.line PORT SERVER-PORT --delay S --rate BYTES``.

A TCP proxy for machines whose kernel has no netem. Each direction has one rate for all connections
together; what is sent arrives after its turn on the line and the delay; a new connection costs a
round trip before its first bytes. As on a real line, no more is under way than a receive window a
connection. What it leaves out: packets that are lost, and the slow start of a connection.

Each line of its input is answered with its counts since the last: bytes to the server and back;
requests of HTTP by method (a message that begins with a method); turns, which is how often
something was sent after an answer had come, or on a new connection (of a client that asks one thing
after another, its round trips); and the times, by time.monotonic, at which each direction was busy.

With --kept a connection costs nothing where one before it has ended: moto's server closes each
after its answer, where a store keeps it for the next request, and so does the client.
"""

import argparse
import asyncio
import json
import re
import sys
from collections import Counter
from contextlib import suppress

WINDOW = 2 << 20
"""Bytes under way in a connection, in each direction: Linux's usual largest receive window is 6
MiB, 4 with its bookkeeping."""
PIECE = 32 << 10
MERGED = 0.0005
"""Seconds between two times at which the line was busy that count as none."""
REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP/1")


class Direction:
    """One way of the line: whose turn it is, and what has passed."""

    def __init__(self, rate: float) -> None:
        self.rate, self.free, self.passed = rate, 0.0, 0
        self.busy: list[list[float]] = []
        """From when until when, one after another."""

    def arrival(self, size: int, delay: float) -> float:
        """When so many bytes, sent now, are there; in the loop's time."""
        now = asyncio.get_running_loop().time()
        if size and (not self.busy or now > self.free + MERGED):
            self.busy.append([max(self.free, now), now])
        self.free = max(self.free, now) + size / self.rate
        if size:
            self.busy[-1][1] = self.free
        self.passed += size
        return self.free + delay

    def take(self) -> tuple[int, list[list[float]]]:
        """Bytes, and times, since this was last asked."""
        taken = self.passed, self.busy
        self.passed, self.busy = 0, []
        return taken


class Line:
    """Both directions, and every connection over them."""

    def __init__(self, server: int, delay: float, rate: float, kept: bool) -> None:
        self._server, self._delay, self._kept = server, delay, kept
        self._idle = 0
        self.up, self.down, self.requests = Direction(rate), Direction(rate), Counter[str]()
        self.turns = 0

    async def connection(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        self.turns += 1
        if self._idle:
            self._idle -= 1
        else:
            await asyncio.sleep(2 * self._delay)
        far, on = await asyncio.open_connection("127.0.0.1", self._server, limit=WINDOW)
        last: list[Direction] = []
        ways = (self._pass(near, on, self.up, last), self._pass(far, back, self.down, last))
        with suppress(OSError):
            await asyncio.gather(*ways)
        self._idle += self._kept
        for end in (on, back):
            end.close()

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        way: Direction,
        last: list[Direction],
    ) -> None:
        """One way of a connection: read at once, delivered when it is there. ``last``: which way
        something of this connection passed last.
        """
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW // PIECE)
        delivering = asyncio.create_task(_deliver(under_way, target))
        while data := await source.read(PIECE):
            if way is self.up:
                self.turns += last == [self.down]
                if found := REQUEST.match(data):
                    self.requests[found[1].decode()] += 1
            last[:] = [way]
            await under_way.put((way.arrival(len(data), self._delay), data))
        await under_way.put((way.arrival(0, self._delay), b""))
        await delivering

    def take(self) -> dict[str, object]:
        """The counts since this was last asked."""
        (up, busy_up), (down, busy_down) = self.up.take(), self.down.take()
        counts: dict[str, object] = {"up": up, "down": down, "turns": self.turns}
        counts |= {"requests": dict(self.requests), "busy": {"up": busy_up, "down": busy_down}}
        self.requests.clear()
        self.turns = self._idle = 0
        return counts


async def _deliver(
    under_way: "asyncio.Queue[tuple[float, bytes]]", target: asyncio.StreamWriter
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        at, data = await under_way.get()
        await asyncio.sleep(at - loop.time())
        if not data:
            with suppress(OSError):
                target.write_eof()
            return
        target.write(data)
        with suppress(OSError):
            await target.drain()


async def _serve(port: int, line: Line) -> None:
    server = await asyncio.start_server(line.connection, "127.0.0.1", port, limit=WINDOW)
    async with server:
        while await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(line.take()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.line")
    parser.add_argument("port", type=int)
    parser.add_argument("server", type=int)
    parser.add_argument("--delay", type=float, required=True, help="seconds, each way")
    parser.add_argument("--rate", type=float, required=True, help="bytes a second, each way")
    parser.add_argument("--kept", action="store_true", help="connections are used again")
    options = parser.parse_args()
    line = Line(options.server, options.delay, options.rate, options.kept)
    asyncio.run(_serve(options.port, line))


if __name__ == "__main__":
    main()
