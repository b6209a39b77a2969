# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak`` as a child process: how it is started, and what it answers."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backup_vm.errors import Exit

_TREE = Path(__file__).resolve().parents[2]
_START = (
    f"import sys; sys.path.insert(0, {str(_TREE)!r}); from backup_vm.cli import main;"
    " sys.exit(main())"
)
KEYED = frozenset({"list", "status", "prune", "tag", "verify", "copy", "restore", "files", "drill"})
"""Commands that take the archive's key, and are given it where the user gave it."""
MOST = 64 << 20
"""Bytes of an answer that are read; a list of 100,000 sessions has 40 MB."""
LONGEST_LINE = 4096
PATIENCE = 1.9
"""Seconds that children have to end at the end of the server: a little more than they take."""


class Failed(Exception):
    """A command answered no data; ``errors`` are its own words."""

    def __init__(self, code: int, errors: list[str]) -> None:
        super().__init__("; ".join(errors) or f"sparsebak ended with {code}")
        self.code, self.errors = code, errors


@dataclass
class Program:
    """``general``: the options that ``ui`` was given, which every command gets; ``key_file``: as
    --passphrase-file names it.
    """

    general: tuple[str, ...] = ()
    key_file: str | None = None
    passphrase: bytes | None = None
    """As typed in the page. It is in memory only, and comes to a child through a pipe."""
    _running: set[asyncio.subprocess.Process] = field(default_factory=set)
    _starting: set["asyncio.Task[asyncio.subprocess.Process]"] = field(default_factory=set)
    _ending: bool = False

    @contextmanager
    def _command(
        self, words: tuple[str, ...], progress: int | None, data: bool, passphrase: bytes | None
    ) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """The whole command line, and the descriptors that the child gets."""
        command = [sys.executable, "-I" if sys.flags.isolated else "-P", "-c", _START]
        command += [*self.general, "--unattended"]
        fds: list[int] = []
        if data:
            command.append("--json")
        if progress is not None:
            command.append(f"--progress-fd={progress}")
            fds.append(progress)
        command.append(words[0])
        reading = None
        if words[0] in KEYED and passphrase is not None:
            reading, writing = os.pipe()
            with open(writing, "wb") as pipe:
                pipe.write(passphrase + b"\n")  # far less than a pipe holds
            fds.append(reading)
            # of "files" the option belongs to the action
            place = 2 if words[0] == "files" else 1
            words = (*words[:place], f"--passphrase-file=/dev/fd/{reading}", *words[place:])
        elif words[0] in KEYED and self.key_file is not None:
            place = 2 if words[0] == "files" else 1
            words = (*words[:place], f"--passphrase-file={self.key_file}", *words[place:])
        try:
            yield command + list(words[1:]), tuple(fds)
        finally:
            if reading is not None:
                os.close(reading)

    async def start(
        self,
        words: tuple[str, ...],
        progress: int | None = None,
        data: bool = True,
        passphrase: bytes | None = None,
    ) -> asyncio.subprocess.Process:
        """A child that runs a command, in a session of its own: a Ctrl-C reaches it through us.
        ``passphrase``: one to try in place of the one that is known. Raises Failed where it cannot
        be started, or the server ends.
        """
        if self._ending:
            raise Failed(Exit.INTERRUPTED, ["the page is being closed"])
        # Cancelled while it connects a child's pipes, asyncio waits for the child for ever (Python
        # 3.11 and 3.12): so the start is a task of its own, which stop() waits for.
        starting = asyncio.ensure_future(self._start(words, progress, data, passphrase))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(self._unwanted)
            raise

    def _unwanted(self, started: "asyncio.Task[asyncio.subprocess.Process]") -> None:
        """Whoever had a child started is gone."""
        if not started.cancelled() and started.exception() is None:
            interrupt(started.result())
            self.ended(started.result())

    async def _start(
        self, words: tuple[str, ...], progress: int | None, data: bool, passphrase: bytes | None
    ) -> asyncio.subprocess.Process:
        key = self.passphrase if passphrase is None else passphrase
        try:
            with self._command(words, progress, data, key) as (command, fds):
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=fds,
                )
        except OSError as error:  # too many open files, say
            reason = f"sparsebak cannot be started: {error.strerror or error}"
            raise Failed(Exit.FAILED, [reason]) from None
        self._running.add(process)
        return process

    def ended(self, process: asyncio.subprocess.Process) -> None:
        """Whoever started it waited for its end."""
        self._running.discard(process)

    async def ask(
        self, words: tuple[str, ...], passphrase: bytes | None = None
    ) -> tuple[dict[str, Any], list[str]]:
        """What a command prints with --json, and its warnings; see start. Raises Failed."""
        process = await self.start(words, passphrase=passphrase)
        errors: list[str] = []
        try:
            stdout, stderr = streams(process)
            out, _ = await asyncio.gather(whole(stdout), collect(stderr, errors.append))
            code = await process.wait()
        finally:
            interrupt(process)
            self.ended(process)
        try:
            found = json.loads(out)
        except ValueError:
            raise Failed(code, errors) from None
        if not isinstance(found, dict):
            raise Failed(code, errors)
        return found, errors

    async def stop(self) -> None:
        """End all children as Ctrl-C does, and wait for them no longer than PATIENCE; start no
        other one.
        """
        self._ending = True
        if self._starting:
            await asyncio.wait(self._starting, timeout=PATIENCE)
        for process in self._running:
            interrupt(process)
        waits = [asyncio.ensure_future(process.wait()) for process in self._running]
        if waits:
            await asyncio.wait(waits, timeout=PATIENCE)


def interrupt(process: asyncio.subprocess.Process) -> None:
    """Ask a child to end, as Ctrl-C does."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)


def streams(
    process: asyncio.subprocess.Process,
) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
    """What a child prints, and what it complains of; ``start`` made both pipes."""
    if process.stdout is None or process.stderr is None:
        raise ValueError("the child was started without pipes")
    return process.stdout, process.stderr


async def whole(stream: asyncio.StreamReader) -> bytes:
    """All that a child prints, up to MOST bytes; what is more is read and dropped."""
    parts, size = [], 0
    while part := await stream.read(1 << 16):
        size += len(part)
        if size <= MOST:
            parts.append(part)
    return b"".join(parts) if size <= MOST else b""


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines as they come, the beginning of those that are too long."""
    left, skipping = b"", False
    while part := await stream.read(1 << 14):
        *complete, left = (left + part).split(b"\n")
        for line in complete:
            if not skipping:
                yield line[:LONGEST_LINE].decode("utf-8", "replace")
            skipping = False
        if len(left) > LONGEST_LINE:
            if not skipping:
                yield left[:LONGEST_LINE].decode("utf-8", "replace")
            left, skipping = b"", True
    if left and not skipping:
        yield left.decode("utf-8", "replace")


async def collect(
    stream: asyncio.StreamReader, tell: Callable[[str], Any], most: int = 500
) -> None:
    """Tell of each line that is not empty, of ``most`` at most."""
    count = 0
    async for line in lines(stream):
        if line.strip() and count < most:
            tell(line.removeprefix("sparsebak: "))
            count += 1
