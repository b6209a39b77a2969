# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak verify``: prove sessions authentic and complete, with the key if it is here, through
the agent otherwise.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option
from backup_vm.errors import DamagedError, Exit, RemovedError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.terminal.progress import Progress
    from backup_vm.volumes import Chosen, Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    verify = commands.add_parser(
        "verify",
        help="prove sessions authentic and complete",
        description=(
            "Proves that sessions are what dom0 sealed, and complete: here with the key, else"
            " through dom0."
        ),
    )
    verify.add_argument(
        "volume", nargs="?", metavar="QUBE/VOLUME", help="whose sessions (default: all volumes)"
    )
    verify.add_argument(
        "--session", default="latest", metavar="S", help="a session, 'latest' (default), or 'all'"
    )
    key_option(verify)
    verify.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.notes import checked
    from backup_vm.volumes import Chosen, find_session

    context = Context(options)
    results: list[dict[str, Any]] = []
    removed: list[str] = []
    with context.contents() as contents:
        chosen = contents.select(options.volume or None)
        damaged = _damaged(contents.archive, chosen, options)
        with context.progress("verify") as progress:
            for volume in chosen:
                wanted = (
                    volume.sessions
                    if options.session == "all"
                    else [find_session(volume, options.session)]
                )
                for session in wanted:
                    try:
                        result = _verify(context, Chosen(contents, volume, session), progress)
                    except RemovedError:
                        removed.append(f"{volume.name} {session.name}")
                        continue
                    checked(contents.archive.storage, result["ok"], session.clear.session)
                    results.append(result)
    context.warn_removed(removed)
    code = _tell(context, results, damaged)
    # of a session that was named, or of the newest one, nothing is known now
    return Exit.LOCKED if removed and code == Exit.OK and options.session != "all" else code


def _damaged(
    archive: "Archive", chosen: "list[Named]", options: argparse.Namespace
) -> list[DamagedError]:
    """Session files that cannot be read, and may be among those that were asked for."""
    if options.volume and options.session not in ("latest", "all"):
        return []
    from backup_vm.archive.naming import volume_of

    ids = {volume.id for volume in chosen}
    return [
        error
        for file, error in archive.damaged.items()
        if not options.volume or volume_of(file) in ids
    ]


def _verify(context: Context, chosen: "Chosen", progress: "Progress") -> dict[str, Any]:
    from backup_vm.agent.call import RefusedError
    from backup_vm.jobs.reading import feed, image_bytes, read_image
    from wire.status import STATUS_OLDER, STATUS_UNKNOWN, Code

    problem = None
    archive, volume, session = chosen.archive, chosen.volume, chosen.session
    keys = chosen.contents.keys
    try:
        image = chosen.image()
        progress.start(image_bytes(image))
        progress.volume(volume.name)
        if keys is not None:
            read_image(archive, image, keys, volume.name, progress, None)
        else:
            status = context.agent(archive).verify(feed(archive, image, volume.name, progress))
            if status.flags & STATUS_OLDER and session is volume.sessions[-1]:
                known = "no session" if status.flags & STATUS_UNKNOWN else "another session"
                context.warn(
                    f"{volume.name} {session.name}: the newest here; dom0 knows {known} as the"
                    " newest"
                )
    except DamagedError as error:
        problem = str(error)
    except RefusedError as error:
        if error.refusal not in (Code.NOT_AUTHENTIC, Code.BAD_REQUEST):
            raise
        problem = f"{error} ({error.hint})"
    return {**chosen.data(), "ok": problem is None, "problem": problem}


def _tell(context: Context, results: list[dict[str, Any]], damaged: list[DamagedError]) -> int:
    for result in results:
        name = f"{result['qube']}/{result['volume']}" if result["qube"] else result["volume"]
        if result["ok"]:
            context.say(f"{name} {result['session']}: authentic and complete")
        else:
            context.warn(f"{name} {result['session']}: {result['problem']}")
    for error in damaged:
        context.warn(str(error))
    context.done({"sessions": results, "damaged": [str(error) for error in damaged]})
    return Exit.OK if not damaged and all(result["ok"] for result in results) else Exit.DAMAGED
