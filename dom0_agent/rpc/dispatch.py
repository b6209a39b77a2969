# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs one RPC service: who calls, for which volume, and how the call ends. Every service module
has one ``main(call)``.
"""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path

from common.descriptors import fill_gaps
from common.memory import keep_freed, keep_out_of_cores
from dom0_agent.catalog import open_catalog
from dom0_agent.config import DEFAULT_PATH, Config, ConfigError, Volume, load
from dom0_agent.keyring import ArchiveKey, Keyring
from dom0_agent.log import ERROR, INFO, WARNING, log, to_the_journal
from dom0_agent.rpc.heads import SERVICES, Asked, Words, from_environment, understand
from dom0_agent.rpc.limits import EVERY, HEAVY, HEAVY_SERVICES, slot
from dom0_agent.rpc.streams import PatientReader, PatientWriter
from wire.messages import Message, Request, Status
from wire.status import Code, Refused
from wire.stream import CutShort, Reader, Writer, read_exactly, send

_NOTHING = Request()
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Call:
    """One call: what it asks for, the agent's configuration, its streams."""

    def __init__(self, asked: Asked, config: Config, stdin: Reader, stdout: Writer) -> None:
        self.asked, self.config, self.stdin, self.stdout = asked, config, stdin, stdout

    @property
    def caller(self) -> str:
        """The qube that the call comes from."""
        return self.asked.caller

    @property
    def target(self) -> str | None:
        """The qube that it is about; None: dom0 itself, ABSENT: none."""
        return self.asked.target

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

    @cached_property
    def keyring(self) -> Keyring:
        """All archives; ``archive`` is for one that the caller names."""
        return Keyring(self.config.state_dir)

    def archive(self, request: Request) -> ArchiveKey:
        """The archive the request names, if the caller may use it."""
        return self.keyring.for_caller(request.archive, self.caller)

    def volume(self) -> Volume:
        """The volume that target and argument name."""
        qube, name = self.target or "dom0", self.asked.volume
        volume = open_catalog(self.config, self.caller).find(qube, name)
        if volume is None:
            raise Refused(
                Code.NO_VOLUME,
                f"{self.caller} asked for {qube}/{name}, which no list of volumes has",
            )
        return volume

    def reply(self, message: Message) -> None:
        """Write one frame."""
        send(self.stdout, message)


Admission = Callable[[Asked, Config], AbstractContextManager[object]]
"""Lets a call in, or raises Refused; held while it is answered."""


def run(
    service: str, environ: Mapping[str, str], config_path: Path, stdin: Reader, stdout: Writer
) -> int:
    """Serve one call as qrexec's environment describes it; see ``answer``."""
    return answer(from_environment(service, environ), config_path, stdin, stdout)


def answer(
    words: Words,
    config_path: Path,
    stdin: Reader,
    stdout: Writer,
    admitted: Admission = lambda _asked, _config: nullcontext(),
) -> int:
    """Serve one call and end it with a status frame. Returns the exit code: 0, or 1 when it was
    refused.
    """
    keep_freed()
    with ExitStack() as place:  # until the last byte is taken: a slow caller keeps its place
        name, status = f"sparsebak.{words.service}", Status(Code.INTERNAL)
        try:
            asked = understand(words)
            name, config = str(asked), load(config_path)
            place.enter_context(admitted(asked, config))
            status = _serve(Call(asked, config, stdin, stdout))
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
            log(ERROR, f"{name}: {error}")
        except OSError as error:  # a disk that is full, broken or read-only, for one
            if error.errno in _FULL:
                status = Status(Code.NO_SPACE)
            log(ERROR, f"{name}: {error}")
        except Exception:  # the one place: nothing about dom0 may reach the caller but a code
            import traceback

            log(ERROR, f"{name}: {' '.join(traceback.format_exc().split())}")
        return _end(name, status, stdout)


def _serve(call: Call) -> Status:
    module = importlib.import_module(f"dom0_agent.rpc.services.{call.asked.service.lower()}")
    return module.main(call) or Status(Code.OK)


def confine() -> None:
    """No key in a core dump of this process, and no file of it for anybody else."""
    keep_out_of_cores()
    os.umask(0o077)


def _end(name: str, status: Status, stdout: Writer) -> int:
    try:
        send(stdout, status)
        stdout.flush()
    except BrokenPipeError:
        log(WARNING, f"{name}: the caller went away")
        return 1
    except OSError as error:
        log(ERROR, f"{name}: it cannot be answered: {error.strerror}")
        return 1
    return 0 if status.code == Code.OK else 1


def main(argv: list[str]) -> int:
    """Entry point of the service files: ``SERVICE``; all else comes in qrexec's environment."""
    if len(argv) != 1 or argv[0] not in SERVICES:
        print(f"usage: run-service {'|'.join(SERVICES)}", file=sys.stderr)
        return 2
    confine()
    fill_gaps()
    config, stdin = Path(os.environ.get("SPARSEBAK_AGENT_CONFIG", DEFAULT_PATH)), PatientReader(0)
    if config == DEFAULT_PATH:  # this machine's agent; tests and trials are no business of its log
        to_the_journal()
    words = from_environment(argv[0], os.environ)
    return answer(words, config, stdin, PatientWriter(1), partial(_place, stdin))


@contextmanager
def _place(stdin: PatientReader, asked: Asked, config: Config) -> Iterator[None]:
    """A place for a call that is a process of its own: what the resident agent does by counting."""
    folder = config.state_dir / "calls"
    with ExitStack() as stack:
        stack.enter_context(slot(folder, asked.caller, "every", EVERY))
        if asked.service in HEAVY_SERVICES:
            stdin.wait()  # one that is begun ahead keeps no other out
            stack.enter_context(slot(folder, asked.caller, "heavy", HEAVY))
        yield
