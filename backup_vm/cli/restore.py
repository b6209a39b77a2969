"""``sparsebak restore``: put a session's contents in the place of the volume, through the agent."""

import argparse
from typing import Any

from backup_vm.cli.context import Context, json_option


def add_to(commands: Any) -> None:
    """Declare the command."""
    restore = commands.add_parser("restore", help="put a session in the volume's place; dom0 checks every byte first")
    restore.add_argument("volume", metavar="QUBE/VOLUME")
    restore.add_argument("--session", default="latest", metavar="S", help="its time, or the beginning of it (default: latest)")
    restore.add_argument("--to", metavar="QUBE/VOLUME", help="into another volume, if dom0 allows it (allow_restore)")
    json_option(restore)
    restore.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.errors import UsageError
    from backup_vm.names import find_session, one
    from backup_vm.progress import progress_for
    from backup_vm.reading import feed, image_bytes
    from wire.names import BadName, parse_volume_name
    from wire.status import NOTE_OLDER

    context = Context(options)
    with context.open() as archive:
        volume = one(context.volumes(archive, context.keys(archive)), options.volume)
        try:
            qube, name = parse_volume_name(options.to or volume.name)
        except BadName as error:
            raise UsageError(str(error)) from None
        session = find_session(volume, options.session)
        image = archive.image(list(volume.sessions), session)
        progress = progress_for("restore", context.quiet)
        progress.start(image_bytes(image))
        try:
            status = context.agent(archive).restore(qube, name, feed(archive, image, volume.name, progress))
        finally:
            progress.stop()
    older = bool(status.notes & NOTE_OLDER)
    if context.json:
        context.result({"qube": qube, "volume": name, "session": session.name, "older": older}, "")
    elif older and session is volume.sessions[-1]:
        context.warn(f"dom0 knows a newer session of {volume.name} than the newest one in this archive")
    context.say(f"{qube}/{name} is as of {session.name} again.")
    return 0
