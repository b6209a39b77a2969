# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent grant``: a key for one volume's images, to be handed to whoever is to see
them.
"""

import argparse
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.durable import closing_fd, pwrite_all
from common.text import printable
from dom0_agent.admin.cli import UserError, user_option
from dom0_agent.admin.granting import (
    Granted,
    ask_the_backup_vm,
    find,
    is_shared,
    make,
    read_records,
    sharing,
    tell,
)
from dom0_agent.config import Config, load

_SHOWN = 8
"""Sessions that are printed, at most."""


def add_to(commands: Any) -> None:
    """Declare the command."""
    grant = commands.add_parser(
        "grant",
        help="make a key that opens some sessions of one volume, and nothing else",
        description=(
            "Makes a read grant: what it takes to read some sessions of one volume, and nothing of"
            " another. It is a key: it cannot be taken back, and is kept nowhere but where you put"
            " it. 'sparsebak' assemble, files, mount and verify take it with --grant."
        ),
    )
    volume_and_sessions(grant)
    grant.add_argument(
        "--all", action="store_true", help="for every session that the backup VM has"
    )
    grant.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="the file to write, readable by its owner alone; - is standard output",
    )
    grant.set_defaults(run=_run)


def volume_and_sessions(command: argparse.ArgumentParser, optional: bool = False) -> None:
    """Declare which volume and sessions a grant is for, and where their records come from."""
    command.add_argument(
        "volume",
        metavar="QUBE[/VOLUME]",
        nargs="?" if optional else None,
        help="the volume (default: private)",
    )
    command.add_argument(
        "--session",
        action="append",
        default=[],
        metavar="S",
        help="a session, by its time or the beginning of it; can be repeated (default: the newest)",
    )
    command.add_argument(
        "--archive", metavar="LABEL", help="the archive (default: the one that has the volume)"
    )
    command.add_argument(
        "--records",
        metavar="F",
        help=(
            "what 'sparsebak records' wrote, - for standard input (default: on Qubes OS the backup"
            " VM is asked for it)"
        ),
    )
    user_option(command, "whose archive it is in the backup VM")


def records(options: argparse.Namespace, config: Config, of: Granted) -> list[bytes]:
    """The records of the volume, untrusted, from where the options say; raise Refused, UserError,
    OSError.
    """
    if options.records == "-":
        return read_records(sys.stdin.buffer, "standard input")
    if options.records is not None:
        with open(options.records, "rb") as file:
            return read_records(file, options.records)
    if config.catalog != "qubes":
        raise UserError(
            "without Qubes OS the records come from a file; make it where the archive is with:"
            f" sparsebak records {of.name} -o FILE; and give --records FILE"
        )
    return ask_the_backup_vm(of, options.user)


def _run(options: argparse.Namespace) -> int:
    if options.output == "-" and sys.stdout.isatty():
        raise UserError("a grant is a key, and no text: send it to a file or a pipe")
    if options.all and options.session:
        raise UserError("--all and --session contradict each other; give one of them")
    config = load(options.config)
    of = find(config, options.volume, options.archive)
    grant = make(of, records(options, config, of), options.session, options.all)
    shared = sharing(config, of, grant) if is_shared(of, grant) else None
    if options.output == "-":
        try:
            sys.stdout.buffer.write(grant.build())
            sys.stdout.buffer.flush()
        except OSError:
            tell(of, grant, "may have been sent")  # a part, or all of it
            raise
    else:
        _write(Path(options.output), grant.build())
    tell(of, grant, "was made")
    # By time, because the backup VM chose which sessions the beginning of a time fits.
    names, more = list(grant.names.values())[:_SHOWN], ""
    if len(grant.records) > _SHOWN:
        more = f" and {len(grant.records) - _SHOWN} more"
    lines = [
        f"A key for {of.name} in {of.archive.label}, {', '.join(names)}{more}, is"
        f" {'sent' if options.output == '-' else f'in {options.output}'}. It cannot be taken back."
    ]
    if shared is not None:
        lines.append(
            "It opens chunks of other volumes, too, of those that share them. Now these do:"
            f" {', '.join(shared) or 'none'}; what older sessions of others share, dom0 does not"
            " know."
        )
    if not options.quiet:
        for line in lines:
            print(printable(line), file=sys.stderr)
    return 0


def _write(path: Path, key: bytes) -> None:
    """A new file, of its owner alone from the beginning; none of that name where it cannot be
    written whole, also on a disk that lets nothing be removed then.
    """
    if os.path.lexists(path):
        raise UserError(f"{path} exists; choose another name")
    beside = path.with_name(f"{path.name}.{os.urandom(4).hex()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with closing_fd(os.open(beside, flags, 0o600)) as fd:
            pwrite_all(fd, key, 0)
            os.fsync(fd)
        try:
            os.link(beside, path, follow_symlinks=False)  # which replaces nothing
        except FileExistsError:
            raise UserError(f"{path} exists; choose another name") from None
        except OSError:  # FAT, say, has no second names
            os.replace(beside, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; no grant was made") from None
    finally:
        with suppress(OSError):
            beside.unlink()
