# SPDX-License-Identifier: GPL-2.0-or-later
"""The resident agent: everything is imported once, and each call is a forked process of its own, as
it would be without it.

A call costs 3.5 ms, a fork, where one to a service file costs 55: Python's own start takes 10 of
them, and imports nearly all of the rest. A run over 30 volumes in which nothing changed takes 0.74
seconds with it, 4.4 without.

qrexec hands a call to a service that is a socket as a connection, which first says
``SERVICE+ARGUMENT SOURCE TYPE TARGET`` and a NUL byte (core-qrexec, ``libqrexec/exec.c``, "socket
services"); then come the caller's bytes. Nothing that a call does can stay behind in the parent: it
accepts, reads that first line and no more, forks, and reaps.
"""

import os
import select
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from dom0_agent.log import INFO, WARNING, log
from dom0_agent.rpc.dispatch import answer, confine
from dom0_agent.rpc.heads import LONGEST, Words, parse_head
from dom0_agent.rpc.limits import EVERY, FIRST_BYTE, HEAVY, HEAVY_SERVICES
from dom0_agent.rpc.streams import PatientReader, PatientWriter
from wire.stream import SEND_BUFFER

IDLE = 120.0
"""Seconds without a call after which the agent ends; its sockets stay with systemd, which starts it
again.
"""
HEAD_PATIENCE = 10.0
"""Seconds that the beginning of a connection may take: qrexec sends it at once."""
NAMELESS, SILENT, QUEUED = 256, 32, 512
"""Connections held whose beginning has not come; of each caller, those whose request has not, and
those that have no place yet. Of the silent the oldest gives way: a caller that begins many loses
its own."""
AHEAD = 3
"""Calls of a caller that are begun before their request comes, so that they are ready for it."""
STOPPING = 3.0
"""Seconds after SIGTERM in which a request may still come."""


class Held:
    """A connection that is not answered yet. ``words`` are known once its beginning was read."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection, self.deadline = connection, deadline
        self.untrusted_head = b""
        self.words: Words | None = None
        self.ready = False

    @property
    def caller(self) -> str:
        """Who calls; nobody, as long as the beginning has not been read."""
        return self.words.caller if self.words else ""


class Resident:
    """The parent: it holds connections until their request comes, for a silent one costs no more
    than a descriptor then.

    It never waits for one caller: beginnings are read as they come, and a caller that has all its
    places waits alone.
    """

    def __init__(self, sockets: list[socket.socket], config_path: Path) -> None:
        self._listening = {one.fileno(): one for one in sockets}
        self._config_path = config_path
        self._held: dict[int, Held] = {}
        self._running: dict[int, Words] = {}
        self._poll = select.poll()
        self._stopping = 0.0
        for fd, one in self._listening.items():
            one.setblocking(False)
            self._poll.register(fd, select.POLLIN)
        self._wake, other = socket.socketpair()  # a signal ends a poll
        self._other = other
        for end in (self._wake, other):
            end.setblocking(False)
        self._poll.register(self._wake.fileno(), select.POLLIN)
        signal.set_wakeup_fd(other.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: object) -> None:
        self._stopping = self._stopping or time.monotonic()

    def run(self, idle: float | None) -> None:
        """Accept calls until none came for ``idle`` seconds and none is running; None: for ever.

        SIGTERM lets the calls that run, and those whose request is there, come to their end, and
        accepts no more.
        """
        log(INFO, f"ready on {len(self._listening)} sockets")
        last = time.monotonic()
        while True:
            self._reap()
            self._drop_silent(time.monotonic())
            self._start_ready()
            if self._held or self._running:
                last = time.monotonic()
            elif self._stopping:
                return
            elif idle is not None and time.monotonic() - last >= idle:
                log(INFO, "no calls; exiting")
                return
            for fd, _ in self._poll.poll(1000):
                self._happened(fd)

    def _happened(self, fd: int) -> None:
        if fd in self._listening:
            self._accept(self._listening[fd])
        elif fd in self._held:
            self._read(self._held[fd])
        elif fd == self._wake.fileno():
            with suppress(BlockingIOError):
                self._wake.recv(1 << 12)

    def _accept(self, listening: socket.socket) -> None:
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptor, no memory: what nobody speaks on goes first
            log(WARNING, f"a call cannot be accepted: {error.strerror}")
            if silent := [held for held in self._held.values() if not held.ready]:
                self._drop(min(silent, key=lambda held: held.deadline))
            time.sleep(0.05)
            return
        held = Held(connection, time.monotonic() + HEAD_PATIENCE)
        self._held[connection.fileno()] = held
        self._poll.register(connection.fileno(), select.POLLIN)
        self._make_room(held, NAMELESS)

    def _make_room(self, new: Held, most: int) -> None:
        """Drop a caller's oldest silent connection, where it has more than ``most`` of them."""
        silent = [
            held for held in self._held.values() if held.caller == new.caller and not held.ready
        ]
        if len(silent) > most:
            self._drop(min(silent, key=lambda held: held.deadline))

    def _read(self, held: Held) -> None:
        """A connection has something to say: its beginning, or the first byte of its request, which
        stays for the call.
        """
        try:
            # Looked at, and not taken: the parent reads the beginning to its NUL byte, and all that
            # comes behind it is for the call's own process.
            untrusted_bytes = held.connection.recv(LONGEST, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if held.words is None:
                end = untrusted_bytes.find(b"\0")
                held.untrusted_head += held.connection.recv(
                    end + 1 if end >= 0 else len(untrusted_bytes), socket.MSG_DONTWAIT
                )
        except BlockingIOError:
            return
        except OSError:
            untrusted_bytes = b""
        if not untrusted_bytes:  # it went: begun ahead and not needed
            self._drop(held)
        elif held.words is not None:
            held.ready = True
            self._poll.unregister(held.connection.fileno())
            of_caller = sum(one.ready and one.caller == held.caller for one in self._held.values())
            if of_caller > QUEUED:
                self._drop(held)
        elif held.untrusted_head.endswith(b"\0"):
            held.words = parse_head(held.untrusted_head[:-1])
            held.deadline = time.monotonic() + FIRST_BYTE
            if held.words is None:
                self._refuse(held)
            else:
                self._make_room(held, SILENT)
        elif len(held.untrusted_head) >= LONGEST:
            self._refuse(held)

    def _refuse(self, held: Held) -> None:
        log(WARNING, "a connection that does not begin as qrexec's do")
        self._drop(held)

    def _drop(self, held: Held) -> None:
        del self._held[held.connection.fileno()]
        if not held.ready:
            self._poll.unregister(held.connection.fileno())
        held.connection.close()

    def _drop_silent(self, now: float) -> None:
        """Drop connections that were silent for too long; of an agent that is to stop, soon."""
        if self._stopping:
            for fd in self._listening:
                with suppress(KeyError):
                    self._poll.unregister(fd)
            if now >= self._stopping + STOPPING:
                for pid in self._running:
                    os.kill(pid, signal.SIGUSR1)  # not reaped yet, so that it is ours
        for held in [held for held in self._held.values() if not held.ready]:
            if now >= held.deadline or (self._stopping and now >= self._stopping + STOPPING):
                self._drop(held)

    def _start_ready(self) -> None:
        """Begin the calls for which there is a place, in the order in which they came; a few of
        each caller ahead.
        """
        for held in list(self._held.values()):
            if held.words is not None and self._has_place(held):
                try:
                    pid = os.fork()
                except OSError as error:
                    log(WARNING, f"a call cannot be answered yet: {error.strerror}")
                    time.sleep(0.05)
                    return
                if pid == 0:
                    self._child(held, held.words)
                self._running[pid] = held.words
                self._drop(held)

    def _has_place(self, held: Held) -> bool:
        words, running = held.words, self._running.values()
        if words is None or (
            not held.ready and sum(one.caller == words.caller for one in running) >= AHEAD
        ):
            return False
        limits = [(EVERY, list(running))]
        if words.service in HEAVY_SERVICES:
            limits.append((HEAVY, [one for one in running if one.service in HEAVY_SERVICES]))
        return all(
            len(calls) < limit.total
            and sum(one.caller == words.caller for one in calls) < limit.caller
            for limit, calls in limits
        )

    def _child(self, held: Held, words: Words) -> NoReturn:
        """The call, in a process of its own, which keeps no connection but its own open."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection = held.connection.dup()
            for one in (*self._listening.values(), self._wake, self._other):
                one.close()
            for other in self._held.values():
                other.connection.close()
            code = _answer(connection, words, self._config_path)
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while self._running:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._running.clear()
                return
            if pid == 0:
                return
            words = self._running.pop(pid, None)
            if os.WIFSIGNALED(status) and words is not None:
                name = signal.Signals(os.WTERMSIG(status)).name
                log(WARNING, f"sparsebak.{words.service} from {words.caller} was killed: {name}")


def _answer(connection: socket.socket, words: Words, config_path: Path) -> int:
    """One call, in a process of its own."""
    confine()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    fd = connection.detach()
    reader = PatientReader(fd)

    def asked_to_end(number: int, frame: FrameType | None) -> None:
        """A call whose request has come continues to its end; any other ends without a word."""
        if not reader.begun:
            os._exit(1)

    signal.signal(signal.SIGUSR1, asked_to_end)
    return answer(words, config_path, reader, PatientWriter(fd))
