# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands in child processes: what hangs, dies, shows a traceback or eats memory is seen from
outside.

A child is forked from the test, so that a command begins at once. Its agent runs within it
(``kit.InProcess``).
"""

import contextlib
import io
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.in_process import InProcess

SECONDS = 60.0
MEMORY = 768 << 20
"""Bytes that a command may take beyond what the test's own process has."""
_LOGGED = re.compile(r"<\d>sparsebak-agent: ")
Step = tuple[str, ...] | Callable[[], object]
"""Words of ``sparsebak``, or what is to be called."""


@dataclass(frozen=True)
class Outcome:
    """What became of a step. ``code``: its exit code, the negative number of a signal, None for one
    that hung.
    """

    what: str
    code: int | None
    out: str
    err: str

    @property
    def fault(self) -> str:
        """What no command may do, whatever it meets; empty when it did not."""
        if self.code is None:
            return "it hung"
        if self.code < 0:
            return f"it died of signal {-self.code}"
        if "Traceback (most recent call last)" in self.err:
            return "traceback: " + " | ".join(self.err.strip().splitlines()[-4:])[-300:]
        return ""


class Child:
    """Steps in a process of their own, one after another."""

    def __init__(
        self,
        steps: Sequence[Step],
        environ: Mapping[str, str],
        before: Callable[[], object] = lambda: None,
        memory: int = MEMORY,
    ) -> None:
        self._steps, self._done = list(steps), 0
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            code = 1
            try:
                os.setsid()
                os.environ.update(environ)
                if memory:
                    _limit_memory(memory)
                _within(agent=environ.get("SPARSEBAK_AGENT"))
                before()
                for step in self._steps:
                    os.write(writing, json.dumps(_run(step)).encode() + b"\n")
                code = 0
            except BaseException:  # nobody else would show it
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(writing)
        self._pipe, self._rest = reading, b""

    def outcomes(self, seconds: float = SECONDS) -> Iterator[Outcome]:
        """As they end; after one that hung or died there are no more."""
        deadline = time.monotonic() + seconds
        while self._done < len(self._steps):
            if b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                code, out, err = json.loads(line)
                yield Outcome(_name(self._steps[self._done]), code, out, err)
                self._done += 1
                deadline = time.monotonic() + seconds
                continue
            waiting = select.poll()  # select() knows no descriptor beyond 1,023
            waiting.register(self._pipe, select.POLLIN)
            ready = waiting.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if ready and (data := os.read(self._pipe, 1 << 16)):
                self._rest += data
                continue
            code = self.kill() if ready else None
            what = _name(self._steps[self._done])
            self._done += 1
            yield Outcome(what, code, "", "")
            break
        self.kill()

    @property
    def done(self) -> int:
        """Steps that ended, in whichever way."""
        return self._done

    def kill(self) -> int:
        """End it, with all that it started, unless it ends by itself, all being done; returns how
        it ended.
        """
        if not self.pid:
            return 0
        until = time.monotonic() + (1.0 if self._done == len(self._steps) else 0.1)
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        while not ended and time.monotonic() < until:
            time.sleep(0.005)
            ended, status = os.waitpid(self.pid, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if not ended:
            _, status = os.waitpid(self.pid, 0)
        os.close(self._pipe)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


def run(
    steps: Sequence[Step],
    environ: Mapping[str, str],
    seconds: float = SECONDS,
    memory: int = MEMORY,
) -> list[Outcome]:
    """All the steps; a new child takes over after one that hung or died."""
    found: list[Outcome] = []
    while len(found) < len(steps):
        child = Child(steps[len(found) :], environ, memory=memory)
        found += child.outcomes(seconds)
    return found


def _name(step: Step) -> str:
    if not isinstance(step, tuple):
        return getattr(step, "__name__", "a call")
    return " ".join(word.rpartition("/")[2] if word.startswith("/") else word for word in step)


def _limit_memory(beyond: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + beyond
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _within(agent: str | None) -> None:
    """Let the agent that is named by its configuration run in this process."""
    from backup_vm.agent import transport

    if agent and agent.startswith("local:"):
        config = Path(agent.removeprefix("local:"))
        transport.open_transport = lambda *_: InProcess(config)


def _run(step: Step) -> tuple[int, str, str]:
    """One step, with its standard streams in files."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdin = open(0, closefd=False)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), write_through=True)
        sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), write_through=True)
        try:
            if isinstance(step, tuple):
                from backup_vm import cli

                code = int(cli.main(list(step)))
            else:
                step()
                code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return code, _read(out.fileno()), _read(err.fileno())


def _read(fd: int) -> str:
    """What was written, without the log of an agent in the same process."""
    return without_log(os.pread(fd, 1 << 20, 0).decode("utf-8", "replace"))


def without_log(text: str) -> str:
    """What was printed on standard error, without the log of an agent in the same process."""
    return "".join(line for line in text.splitlines(keepends=True) if not _LOGGED.match(line))


def signals_as_usual() -> None:
    """In the command, before it starts: what nohup, or a shell that runs the tests behind itself,
    has it ignore.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def begun(process: "subprocess.Popen[str]") -> None:
    """Wait until the command is there to take signals: before, they do what they do to any program
    that starts.
    """
    caught = 1 << (signal.SIGHUP - 1)
    for _ in range(2000):
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        ended = "State:\tZ" in status
        if ended or int(status.split("SigCgt:")[1].split()[0], 16) & caught:
            return
        time.sleep(0.01)
