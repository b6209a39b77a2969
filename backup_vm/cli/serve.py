# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak serve``: give one reader the sealed chunks of a session, on standard input and
output; what the service sparsebak.Read runs.
"""

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.terminal import output

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.image import Image

_LOOK = 0.25
"""Seconds between looks at whether the reader took too long, or somebody wants to write."""


def add_to(commands: Any) -> None:
    """Declare the command."""
    serve = commands.add_parser(
        "serve",
        help="give a reader the sealed chunks of one session; on Qubes OS a service runs this",
        description=(
            "Answers one reader on standard input and output: the record of one session, its chunk"
            " ids and its sealed chunks, and nothing else. The service sparsebak.Read runs this."
        ),
    )
    serve.add_argument("reading", metavar="VOLUME-ID+SESSION-ID", help="the session, by its ids")
    serve.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command. Whatever goes wrong, the reader is told by a code."""
    from backup_vm.errors import Exit, SparsebakError, UsageError
    from backup_vm.jobs.serving import Idle, Serving, code_of
    from wire.messages import Status
    from wire.names import BadName
    from wire.reading import parse_reading
    from wire.status import Code
    from wire.stream import send

    out = sys.stdout.buffer
    try:
        try:
            volume_id, session = parse_reading(options.reading)
        except BadName as error:
            raise UsageError(str(error)) from None
        context = Context(options)
        with _giving_way(context) as wanted, context.open() as archive:
            image = _image(archive, volume_id.hex(), session)
            if image is None:
                raise SparsebakError(f"there is no session {session.hex()} in the archive")
            with _deadline(wanted) as busy:
                Serving(archive, image, sys.stdin.buffer, out, busy).run()
    except Idle:
        # Python keeps more the newer it is, and would wait at the end for it to be taken.
        output.abandon()
        return Exit.FAILED  # it calls again, if there is still somebody
    except SparsebakError as error:
        code = Code.BAD_REQUEST if isinstance(error, UsageError) else code_of(error)
        send(out, Status(Code.NO_SESSION if code == Code.INTERNAL else code))
        out.flush()
        raise
    return Exit.OK


def _image(archive: "Archive", volume_id: str, session: bytes) -> "Image | None":
    series = archive.sessions(volume_id).get(volume_id, [])
    found = next((one for one in series if one.clear.session == session), None)
    return archive.image(series, found) if found else None


@contextmanager
def _giving_way(context: Context) -> "Iterator[Callable[[], bool]]":
    """Whether somebody wants to write, as a function; raise LockedError if somebody does now."""
    from contextlib import closing

    from backup_vm.archive.storage import open_storage
    from backup_vm.archive.storage.giving_way import giving_way
    from backup_vm.errors import LockedError

    with (
        closing(open_storage(context.location())) as storage,
        giving_way(storage.workspace) as wanted,
    ):
        if wanted():
            raise LockedError("another run waits for the archive", "read again when it has ended")
        yield wanted


@contextmanager
def _deadline(wanted: "Callable[[], bool]") -> Iterator[Any]:
    """A function that gives whoever we wait for IDLE seconds from now; Idle is raised then, and as
    soon as somebody wants to write.
    """
    from backup_vm.jobs import serving

    latest = time.monotonic() + serving.IDLE

    def busy() -> None:
        nonlocal latest
        latest = time.monotonic() + serving.IDLE

    def look(number: int, frame: Any) -> None:
        if time.monotonic() > latest or wanted():
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise serving.Idle

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK, _LOOK)
    try:
        yield busy
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
