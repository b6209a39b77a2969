"""Runs one RPC service: who calls, for which volume, and how the call ends. Every service module
has one ``main(call)``.
"""

import errno
import importlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from common.memory import keep_freed
from dom0_agent.archives import Archive, Archives
from dom0_agent.catalog import open_catalog
from dom0_agent.config import DEFAULT_PATH, Config, ConfigError, Volume, load, recall
from dom0_agent.log import ERROR, INFO, WARNING, log
from dom0_agent.rpc.limits import EVERY, FIRST_BYTE, HEAVY, HEAVY_SERVICES, slot
from dom0_agent.tracking.state import VolumeState
from wire.messages import Message, Request, Status
from wire.names import BadName, Restoring, parse_name, parse_restoring
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, Writer, read_exactly, send

BLOCK = 1 << 18
"""Bytes read at once from a caller, at most, whatever is asked for: about what a socket holds."""
IOV_MAX = 1024
"""Parts that writev takes at once, at most (Linux, UIO_MAXIOV)."""
PATIENCE = 300.0
"""Seconds without a byte from the caller after which a call is given up."""
LEAST = 1 << 20
"""Bytes that have to come, or to be taken, for every PATIENCE seconds of waiting: a trickle holds
as much as silence.
"""
SERVICES = (
    "List",
    "Enroll",
    "Monitor",
    "Snapshot",
    "Extract",
    "Commit",
    "Abort",
    "Verify",
    "Restore",
)

ABSENT = "@default"
"""Target of a call about a qube that does not exist: qrexec knows it by this name."""
_NOTHING = Request()
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True)
class Call:
    """One call: the qube it comes from, the qube it is about (None: dom0 itself, ABSENT: none), the
    volume name, its streams.

    ``asked``: what the argument of a Restore says.
    """

    caller: str
    target: str | None
    argument: str
    config: Config
    stdin: Reader
    stdout: Writer
    asked: Restoring | None = None

    def request(self, *used: str, flags: int = 0) -> Request:
        """Read the request every call begins with.

        Refused unless all is zero but the archive, the fields ``used`` and the ``flags`` that the
        service knows.
        """
        try:
            request = Request.parse(read_exactly(self.stdin, Request.length()))
        except ValueError as error:
            raise Refused(Code.BAD_REQUEST, str(error)) from None
        if request.flags & ~flags:
            raise Refused(Code.BAD_REQUEST, f"flags {request.flags:#x} are not all known")
        for name in {"session", "number", "time", "label"} - set(used):
            if getattr(request, name) != getattr(_NOTHING, name):
                raise Refused(Code.BAD_REQUEST, f"{name} means nothing here")
        return request

    def archives(self) -> Archives:
        """All archives; ``archive`` is for one that the caller names."""
        return Archives(self.config.state_dir)

    def archive(self, request: Request) -> Archive:
        """The archive the request names, if the caller may use it."""
        return self.archives().for_caller(request.archive, self.caller)

    def volume(self, restoring: bool = False) -> Volume:
        """The volume that target and argument name."""
        volume = open_catalog(self.config, self.caller).find(
            self.target or "dom0", self.argument, restoring
        )
        if volume is None:
            raise Refused(
                Code.NO_VOLUME,
                f"{self.caller} asked for {self.target}/{self.argument}, not in the catalog",
            )
        return volume

    def pending_volume(self) -> Volume:
        """The same, as Snapshot found it: to end a session, a volume need not be there any more,
        nor qubesd be asked.
        """
        try:
            place = (
                VolumeState(
                    self.config.state_dir,
                    self.target or "dom0",
                    parse_name(self.argument, "volume"),
                )
                .load()
                .place
            )
        except BadName as error:
            raise Refused(Code.BAD_REQUEST, str(error)) from None
        try:
            return self.volume() if place is None else recall(place)
        except (KeyError, TypeError, ValueError):  # written by another version
            return self.volume()

    def reply(self, message: Message) -> None:
        """Write one frame."""
        send(self.stdout, message)


class _Waiting:
    """Time spent waiting for the other side, and what came of it."""

    def __init__(self, patience: float) -> None:
        self._patience, self._waited, self._moved = patience, 0.0, 0

    def add(self, since: float, moved: int) -> bool:
        """Note a wait since a monotonic time; whether the other side is too slow to be waited for
        any longer.
        """
        self._waited += time.monotonic() - since
        self._moved += moved
        if self._waited <= self._patience:
            return False
        too_slow = self._moved < LEAST
        self._waited, self._moved = 0.0, 0
        return too_slow


class PatientReader:
    """Standard input, given up when nothing comes for ``patience`` seconds: a silent caller must
    not hold a volume's lock.

    The first byte may take ``first`` seconds: calls are started ahead, and nothing is held before
    the request is there.
    """

    def __init__(self, fd: int, patience: float = PATIENCE, first: float = FIRST_BYTE) -> None:
        self._fd, self._patience, self._first, self._begun = fd, patience, first, False
        self._held = memoryview(b"")
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._waiting = _Waiting(patience)

    def read(self, size: int, /) -> memoryview:
        """See Reader."""
        if not self._held:
            begun, since = self._begun, time.monotonic()
            self.wait()
            self._held = memoryview(os.read(self._fd, BLOCK))
            if begun and self._waiting.add(since, len(self._held)):
                raise CutShort(f"the caller sent almost nothing in {self._patience:g} seconds")
        data, self._held = self._held[:size], self._held[size:]
        return data

    @property
    def begun(self) -> bool:
        """Whether the first byte has come."""
        return self._begun

    def wait(self) -> None:
        """Wait for the next byte; CutShort when it does not come."""
        patience = self._patience if self._begun else self._first
        if not self._held and not self._poll.poll(patience * 1000):
            raise CutShort(f"the caller sent nothing for {patience:g} seconds")
        self._begun = True


class PatientWriter:
    """Standard output, given up when the caller takes nothing for ``patience`` seconds: it must not
    hold a session for ever.

    For the main thread only; the alarm is what ends a write that blocks.
    """

    def __init__(self, fd: int, patience: float = PATIENCE) -> None:
        self._fd, self._patience = fd, patience
        self._waiting = _Waiting(patience)
        signal.signal(signal.SIGALRM, self._stalled)

    def _stalled(self, number: int, frame: FrameType | None) -> None:
        raise BrokenPipeError(f"the caller read nothing for {self._patience:g} seconds")

    def write(self, data: bytes, /) -> None:
        """See Writer."""
        self.writelines([data])

    def writelines(self, parts: list[bytes], /) -> None:
        """See Writer. Nothing is joined, which would be a copy of all that leaves dom0."""
        at, left = 0, [memoryview(part) for part in parts]
        try:
            while at < len(left):
                signal.setitimer(signal.ITIMER_REAL, self._patience)
                since = time.monotonic()
                written = os.writev(self._fd, left[at : at + IOV_MAX])
                if self._waiting.add(since, written):
                    raise BrokenPipeError(
                        f"the caller read almost nothing in {self._patience:g} seconds"
                    )
                while at < len(left) and written >= len(left[at]):
                    written -= len(left[at])
                    at += 1
                if written:
                    left[at] = left[at][written:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def flush(self) -> None:
        """See Writer; nothing is kept back."""


def _caller(
    service: str, environ: Mapping[str, str]
) -> tuple[str, str | None, str, Restoring | None]:
    """Caller, target and volume as qrexec's environment gives them, and what a Restore asks for."""
    try:
        caller = parse_name(environ["QREXEC_REMOTE_DOMAIN"], "caller")
        argument = environ.get("QREXEC_SERVICE_ARGUMENT", "")
        asked = parse_restoring(argument) if service == "Restore" else None
        if argument and asked is None:
            parse_name(argument, "volume")
        target = None
        if environ.get("QREXEC_REQUESTED_TARGET_TYPE") == "name":
            if environ["QREXEC_REQUESTED_TARGET"] != "dom0":
                target = parse_name(environ["QREXEC_REQUESTED_TARGET"], "qube")
        elif environ.get("QREXEC_REQUESTED_TARGET_KEYWORD") == "default":
            target = ABSENT
    except (KeyError, BadName) as error:
        raise Refused(Code.BAD_REQUEST, f"qrexec's environment: {error}") from None
    return caller, target, asked.volume if asked else argument, asked


def run(
    service: str, environ: Mapping[str, str], config_path: Path, stdin: Reader, stdout: Writer
) -> int:
    """Serve one call and end it with a status frame. Returns the exit code: 0, or 1 when it was
    refused.
    """
    name = f"sparsebak.{service}"
    keep_freed()
    try:
        caller, target, argument, asked = _caller(service, environ)
        call = Call(caller, target, argument, load(config_path), stdin, stdout, asked)
        named = asked.argument() if asked else argument
        name = f"{name}+{named} from {caller} for {target or 'dom0'}"
        status = importlib.import_module(f"dom0_agent.rpc.services.{service.lower()}").main(
            call
        ) or Status(Code.OK)
        log(INFO, f"{name}: done")
    except Refused as refused:
        status = Status(refused.code, 0, refused.detail)
        log(WARNING, f"{name}: refused ({refused.code.name}): {refused}")
    except CutShort as error:
        status = Status(Code.BAD_REQUEST)
        log(WARNING, f"{name}: {error}")
    except BrokenPipeError:
        log(WARNING, f"{name}: the caller went away")
        return 1
    except ConfigError as error:
        status = Status(Code.INTERNAL)
        log(ERROR, f"{name}: {error}")
    except OSError as error:  # a disk that is full, broken or read-only, for one
        status = Status(Code.NO_SPACE if error.errno in _FULL else Code.INTERNAL)
        log(ERROR, f"{name}: {error}")
    except Exception:  # the one place: nothing about dom0 may reach the caller but a code
        import traceback

        status = Status(Code.INTERNAL)
        log(ERROR, f"{name}: {' '.join(traceback.format_exc().split())}")
    return _end(name, status, stdout)


def confine() -> None:
    """No key in a core dump of this process, and no file of it for anybody else."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)


def _end(name: str, status: Status, stdout: Writer) -> int:
    try:
        send(stdout, status)
        stdout.flush()
    except BrokenPipeError:
        log(WARNING, f"{name}: the caller went away")
        return 1
    return 0 if status.code == Code.OK else 1


def main(argv: list[str]) -> int:
    """Entry point of the service files: ``SERVICE``; all else comes in qrexec's environment."""
    if len(argv) != 1 or argv[0] not in SERVICES:
        print(f"usage: run-service {'|'.join(SERVICES)}", file=sys.stderr)
        return 2
    confine()
    config = Path(os.environ.get("SPARSEBAK_AGENT_CONFIG", DEFAULT_PATH))
    return _as_a_process(argv[0], config, PatientReader(0), PatientWriter(1))


def _as_a_process(service: str, config: Path, stdin: PatientReader, stdout: PatientWriter) -> int:
    """A call that is a process of its own, if there is a place for it: what the resident agent does
    by counting.
    """
    name = f"sparsebak.{service}"
    with ExitStack() as stack:
        try:
            caller, folder = _caller(service, os.environ)[0], load(config).state_dir / "calls"
            stack.enter_context(slot(folder, caller, "every", EVERY))
            if service in HEAVY_SERVICES:
                stdin.wait()  # one that is begun ahead keeps no other out
                stack.enter_context(slot(folder, caller, "heavy", HEAVY))
        except Refused as refused:
            log(WARNING, f"{name}: refused ({refused.code.name}): {refused}")
            return _end(name, Status(refused.code), stdout)
        except CutShort as error:
            log(WARNING, f"{name}: {error}")
            return _end(name, Status(Code.BAD_REQUEST), stdout)
        except (ConfigError, OSError) as error:
            log(ERROR, f"{name}: {error}")
            return _end(name, Status(Code.INTERNAL), stdout)
        return run(service, os.environ, config, stdin, stdout)
