# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak drill``: a restore, rehearsed, and what came of it noted in the archive."""

import argparse
import os
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import (
    checked,
    duration,
    given,
    key_option,
    moment_options,
    path,
    rate_option,
)
from common.existing import is_file

if TYPE_CHECKING:
    from backup_vm.archive.sessions import Session
    from backup_vm.jobs.drilling import Drill, Scratch
    from backup_vm.volumes import Contents, Named

CREDENTIAL = "sparsebak.passphrase"
"""What systemd gives a unit with LoadCredential=: the passphrase, in a file of this name."""
_HOURS = 6


@checked
def _size(text: str) -> int:
    from backup_vm.quantities import parse_size

    return parse_size(text)


def add_to(commands: Any) -> None:
    """Declare the command."""
    drill = commands.add_parser(
        "drill",
        help="rehearse a restore: assemble a session, check its file system, compare files",
        description=(
            "Assembles a session into a file without a name, which is gone at the end however that"
            " comes, has its file systems checked, lists all their files, and compares some of them"
            " with the archive. Without a name it is the turn of the volume that was drilled least"
            " recently: of its newest session, and every second time of an older one."
        ),
    )
    drill.add_argument(
        "volume", nargs="?", metavar="QUBE[/VOLUME]", help="one of these (default: of all)"
    )
    drill.add_argument(
        "--session",
        type=given,
        metavar="S",
        help="its time, the beginning of it, a tag, or 'latest'",
    )
    drill.add_argument(
        "--scratch",
        type=path,
        metavar="DIR",
        help="where to assemble it (default: $TMPDIR, else /var/tmp)",
    )
    drill.add_argument(
        "--space",
        type=_size,
        metavar="SIZE",
        help="how much to write there at most (default: nine tenths of what is free)",
    )
    drill.add_argument(
        "--time",
        type=duration,
        default=_HOURS * 3600,
        metavar="TIME",
        help=f"how long it may take, such as 2h (default: {_HOURS}h)",
    )
    moment_options(drill)
    rate_option(drill)
    key_option(drill)
    drill.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.jobs.drilling import Scratch

    context = Context(options)
    context.require_good_moment()
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if options.passphrase_file is None and folder:
        given = Path(folder) / CREDENTIAL
        options.passphrase_file = given if is_file(given) else None
    begun = time.monotonic()
    with Scratch(options.scratch) as scratch:
        with context.contents(needs_key=True) as contents:
            context.limit_rate(contents.archive)
            drill = _read(context, contents, scratch)
            own = contents.archive.parameters.archive
        drill.check()  # the archive is free meanwhile: this may take as long as the rest
        unnoted = _note(drill, context.location(), own)
    return _tell(context, drill, round(time.monotonic() - begun), unnoted)


def _read(context: Context, contents: "Contents", scratch: "Scratch") -> "Drill":
    """The drill whose turn it is, as far as the archive is needed for it. Raises SparsebakError
    where none of those asked for has room.
    """
    from backup_vm.errors import SparsebakError
    from backup_vm.jobs.drilling import Drill, TooLargeError

    for volume, session in (chosen := _chosen(context, contents)):
        image = contents.image(volume, session)
        try:
            scratch.begin(image, context.options.space)
        except TooLargeError as error:
            if len(chosen) == 1:
                raise
            context.warn(f"{volume.name} {session.name} is not drilled: {error}")
            continue
        drill = Drill(volume, session, scratch, context.options.time)
        with context.progress("drill") as progress:
            drill.read(contents, image, progress)
        return drill
    if chosen:
        raise SparsebakError("there is room for none of them", "see --scratch and --space")
    raise SparsebakError("there is no session to drill", "run: sparsebak backup")


def _chosen(context: Context, contents: "Contents") -> "list[tuple[Named, Session]]":
    """Which may be drilled, the first of which there is room for."""
    from backup_vm.archive import notes
    from backup_vm.errors import DamagedError, UsageError
    from backup_vm.jobs.drilling import turns

    options = context.options
    if options.session is not None:
        if options.volume is None:
            raise UsageError("--session needs a volume", "name one: QUBE/VOLUME")
        volume = contents.one(options.volume)
        return [(volume, contents.find(volume, options.session))]
    volumes = contents.select(options.volume)
    context.warn_unread(contents, volumes)
    try:
        found = notes.load(contents.archive.storage)
    except DamagedError:  # said already; whose turn it is nobody knows, and any is better than none
        found = notes.Notes()
    return turns(volumes, found, int(time.time()))


def _note(drill: "Drill", place: str, own: bytes) -> str | None:
    """Note what came of it in the archive of this id; returns why that could not be."""
    from backup_vm.archive import noting
    from backup_vm.archive.storage import open_storage
    from backup_vm.errors import SparsebakError

    try:  # hours may have gone by since the archive was read, and what was found is reported anyway
        with closing(open_storage(place)) as storage:
            storage.archive = own  # another disk may be mounted there by now
            session = drill.session.clear.session
            return noting.drilled(storage, not drill.outcome.problem, drill.volume.id, session)
    except (SparsebakError, OSError) as error:
        return str(error)


def _tell(context: Context, drill: "Drill", seconds: int, unnoted: str | None) -> int:
    from backup_vm.archive import noting
    from backup_vm.errors import Exit
    from backup_vm.terminal.text import count_text

    outcome, name = drill.outcome, f"{drill.volume.name} {drill.session.name}"
    for line in outcome.told:
        context.warn(f"{name}: {line}")
    if outcome.problem:
        context.warn(f"{name}: {outcome.problem}")
    if unnoted is not None:
        context.warn(noting.line(unnoted))
    checks = ", ".join(f"{check['kind']} checked by {check['by']}" for check in outcome.checks)
    lines = [
        f"{name}: assembled in {seconds} s; {checks or 'no file system that is read here'};"
        f" {count_text(outcome.files, 'file')} looked at, {outcome.compared} compared."
    ]
    data = {
        "qube": drill.volume.qube,
        "volume": drill.volume.volume,
        "session": drill.session.name,
        "ok": not outcome.problem,
        "problem": outcome.problem or None,
        "file_systems": outcome.checks,
        "files": outcome.files,
        "compared": outcome.compared,
        "seconds": seconds,
        "noted": unnoted is None,
    }
    context.done(data, *([] if outcome.problem else lines))
    if outcome.damaged:
        return Exit.DAMAGED
    return Exit.FAILED if outcome.problem else Exit.OK
