# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.late FROM TO MILLISECONDS``: the sockets of a resident agent once more, in
another folder, each call beginning so much later, as over qrexec. SIGUSR1 has it print how many
calls there were since the last one.
"""

import asyncio
import functools
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_BLOCK = 1 << 18


class Relay:
    """Passes on what comes, after a delay in seconds at the beginning of each call."""

    def __init__(self, origin: Path, delay: float) -> None:
        self._origin, self._delay, self.calls = origin, delay, 0
        self._running = set[asyncio.Task[None]]()

    async def answer(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One call."""
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._running.discard)
        self.calls += 1
        await asyncio.sleep(self._delay)
        try:
            there, here = await asyncio.open_unix_connection(self._origin / name)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pump(reader, here), _pump(there, writer))
        for one in (writer, here):
            one.close()

    def tell(self) -> None:
        """Print how many calls there were, and count again."""
        print(self.calls, flush=True)
        self.calls = 0


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_BLOCK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError, RuntimeError):
        writer.write_eof()


async def _serve(origin: Path, folder: Path, delay: float) -> None:
    relay = Relay(origin, delay)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, relay.tell)
    folder.mkdir()
    for place in origin.iterdir():
        answer = functools.partial(relay.answer, place.name)
        await asyncio.start_unix_server(answer, folder / place.name, backlog=512)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Late:
    """Such sockets, in a process of their own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def calls(self) -> int:
        """How many there were since this was asked last."""
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGUSR1)
        return int(self._process.stdout.readline())


@contextmanager
def late(origin: Path, folder: Path, milliseconds: float) -> Iterator[Late]:
    """Sockets in ``folder`` that lead to those in ``origin``."""
    command = [sys.executable, "-m", "bench.late", origin, folder, milliseconds]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        yield Late(process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]) / 1000))
