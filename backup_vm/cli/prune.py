"""``sparsebak prune``: remove sessions; all others stay whole."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context, json_option, key_option
from backup_vm.text import size_text

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session
    from backup_vm.names import Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    prune = commands.add_parser("prune", help="remove sessions and give their space back")
    prune.add_argument("volumes", nargs="+", metavar="QUBE[/VOLUME]")
    which = prune.add_mutually_exclusive_group(required=True)
    which.add_argument("--session", action="append", metavar="S", help="remove this one; may be given again")
    which.add_argument("--keep-last", type=_count, metavar="N", help="remove all but the newest N of each volume")
    prune.add_argument("-n", "--dry-run", action="store_true", help="only show what would be removed")
    key_option(prune)
    json_option(prune)
    prune.set_defaults(run=run)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more; to remove all sessions of a volume use: sparsebak delete")
    return number


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.names import find_session, select

    context = Context(options)
    with context.open(writing=True) as archive:
        chosen = select(context.volumes(archive, context.keys(archive)), options.volumes)
        if options.session:
            doomed = [(volume, find_session(volume, name)) for volume in chosen for name in options.session]
        else:
            doomed = [(volume, session) for volume in chosen for session in volume.sessions[: -options.keep_last]]
        remove(context, archive, doomed, options.dry_run)
    return 0


def remove(context: Context, archive: "Archive", doomed: "list[tuple[Named, Session]]", dry_run: bool) -> None:
    """Prune sessions and tell what was done, or what would be."""
    from backup_vm.archive.prune import Pruned, prune

    done = Pruned(0, 0, 0) if dry_run else prune(archive, [session for _, session in doomed])
    if context.json:
        names = [{"qube": v.qube, "volume": v.volume, "session": session.name} for v, session in doomed]
        context.result({"removed": names, "dry_run": dry_run, "chunks": done.chunks, "freed": done.space}, "")
        return
    for volume, session in doomed:
        context.say(f"{'would remove' if dry_run else 'removed'} {volume.name} {session.name}")
    if not dry_run:
        context.say(f"{done.sessions} sessions removed, {size_text(done.space)} given back.")
