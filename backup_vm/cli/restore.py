# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak restore``: put sessions in the place of volumes, through the agent."""

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, session_option, yes_option
from common.text import session_name
from wire import NO_SESSION
from wire.names import Restoring

if TYPE_CHECKING:
    from backup_vm.agent.client import Agent
    from backup_vm.archive.sessions import Session
    from backup_vm.volumes import Chosen, Named
    from wire.messages import Status, VolumeEntry

SETTINGS = "settings"
"""The volume of a qube's settings, of which dom0 creates a qube that is gone: it comes first."""


def add_to(commands: Any) -> None:
    """Declare the command."""
    restore = commands.add_parser(
        "restore",
        help="put a session in the volume's place; dom0 checks every byte first",
        description=(
            "Replaces a volume, or all of a qube, by a session. dom0 checks every byte before it"
            " takes effect. On Qubes OS dom0 asks first; elsewhere this command does."
        ),
    )
    restore.add_argument(
        "volume", metavar="QUBE[/VOLUME]", help="a volume, or all of a qube, its settings first"
    )
    session_option(restore)
    yes_option(restore)
    restore.add_argument(
        "--to",
        metavar="QUBE[/VOLUME]",
        help="into another volume or qube, if dom0 allows it (allow_restore)",
    )
    restore.add_argument(
        "--whole",
        action="store_true",
        help="send and write also what dom0 knows to be there already, say for a damaged disk",
    )
    key_option(restore)
    restore.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.volumes import Chosen

    context = Context(options)
    with context.contents() as contents:
        volumes = contents.select(options.volume)
        volumes.sort(key=lambda volume: volume.volume != SETTINGS)
        agent = context.agent(contents.archive)
        entries = agent.list()
        due = []
        for volume in volumes:
            session = contents.find(volume, options.session)
            qube, name = _target(volume, options.volume, options.to)
            latest = options.session == "latest"
            older = _is_older(volume, session, entries, latest)
            older = older or not latest and _has_gone_to(volume, entries, f"{qube}/{name}")
            asked = Restoring(qube, name, session_name(session.clear.time), older)
            due.append((Chosen(contents, volume, session), asked))
        context.warn_spoilt(contents, [(one.volume, one.session) for one, _ in due])
        if not context.dom0_asks():
            _ask(context, entries, [asked for _, asked in due])
        results: list[dict[str, Any]] = []
        try:
            for one, asked in due:
                results.append(_restore(context, agent, entries, one, asked))
                if results[-1]["absent"] and len(due) > len(results):
                    _say_that_it_comes_first(asked.qube)
        finally:  # those before one that fails are in place
            if results:
                context.done({"restored": results})
    return 0


def _has_gone_to(volume: "Named", entries: "list[VolumeEntry]", target: str) -> bool:
    """Whether a volume is gone and the target another's: then even its newest session is none
    that dom0 knows as the target's newest.
    """
    from wire.messages import VOLUME_GONE

    gone = [one for one in entries if one.volume_id.hex() == volume.id and one.flags & VOLUME_GONE]
    return any(one.name != target for one in gone)


def _is_older(
    volume: "Named", session: "Session", entries: "list[VolumeEntry]", latest: bool
) -> bool:
    """Whether the call must say that an older session is meant, which only a user who names it can
    mean.
    """
    from backup_vm.errors import SparsebakError

    known = next((one for one in entries if one.volume_id.hex() == volume.id), None)
    newest = known.session if known else NO_SESSION
    if newest == session.clear.session:
        return False
    if not latest:
        return True
    if known is None or not any(newest):
        said = f"dom0 knows no session of {volume.name} and cannot say which is the newest"
    elif known.time < session.clear.time:
        said = (
            f"dom0 does not know yet that {session.name} of {volume.name} is stored; the next"
            " backup tells it"
        )
    else:
        said = (
            f"dom0 knows a newer session of {volume.name}, {session_name(known.time)}, than there"
            " is here"
        )
    raise SparsebakError(
        f"{said}; nothing was restored",
        f"to restore {session.name} anyway, name it: --session {session.name}",
    )


def _ask(context: Context, entries: "list[VolumeEntry]", due: list[Restoring]) -> None:
    """Ask before contents are replaced. Settings only come to dom0 and wait there; what is gone
    cannot be lost.
    """
    from wire.messages import VOLUME_GONE

    there = {
        (entry.qube, entry.volume)
        for entry in entries
        if entry.size and not entry.flags & VOLUME_GONE
    }
    lost = [
        asked.name
        for asked in due
        if (asked.qube, asked.volume) in there and not _is_document(asked)
    ]
    if lost:
        context.confirm(f"Replace the present contents of {', '.join(lost)}?")


def _say_that_it_comes_first(qube: str) -> None:
    """Only dom0's administrator makes a qube of its settings."""
    from backup_vm.errors import SparsebakError

    raise SparsebakError(
        f"{qube} does not exist; its settings are in dom0 now, and nothing else of it was restored",
        f"in dom0: sudo sparsebak-agent settings apply {qube}; then, here, the same again",
    )


def _target(volume: "Named", asked: str, to: str | None) -> tuple[str, str]:
    """Qube and volume to write to."""
    from backup_vm.errors import UsageError
    from wire.names import BadName, parse_name, parse_volume_name

    try:
        if to is None:
            return parse_volume_name(volume.name)
        if ("/" in to) != ("/" in asked):
            raise UsageError(f"--to {to}: a qube goes to a qube, a volume to a volume")
        return parse_volume_name(to) if "/" in to else (parse_name(to, "qube"), volume.volume)
    except BadName as error:
        raise UsageError(str(error)) from None


def _restore(
    context: Context,
    agent: "Agent",
    entries: "list[VolumeEntry]",
    chosen: "Chosen",
    asked: Restoring,
) -> dict[str, Any]:
    from backup_vm.jobs.feeding import feed, feed_differing
    from backup_vm.jobs.reading import image_bytes
    from wire.status import STATUS_OLDER

    image, source, clear = chosen.image(), chosen.volume.name, chosen.session.clear
    wanted, absent = image.chunks, False
    with context.progress("restore", image_bytes(image)) as progress:
        if _is_document(asked) or context.options.whole:
            send = partial(feed, chosen.archive, image, source, progress)
            status, absent = _send_all(agent, entries, asked, send)
        else:
            differing = feed_differing(chosen.archive, image, source, progress)
            status, chunks = agent.restore_differing(asked, image.chunks, differing)
            wanted = len(chunks)
    size = min(wanted * clear.chunk_size, clear.size)
    _tell(context, asked, absent, size if wanted < image.chunks else None)
    return {
        "qube": asked.qube,
        "volume": asked.volume,
        "session": chosen.session.name,
        "older": bool(status.flags & STATUS_OLDER),
        "absent": absent,
        "differing": size,
    }


def _is_document(asked: Restoring) -> bool:
    """Whether it only comes to dom0, and waits there: settings, or dom0's configuration."""
    return asked.volume == SETTINGS or asked.qube == "dom0"


def _tell(context: Context, asked: Restoring, absent: bool, differing: int | None) -> None:
    """What has become of a volume; ``differing``: bytes, where a part was left as it was."""
    from backup_vm.terminal.text import size_text

    if absent:
        context.say(
            f"{asked.name} as of {asked.session} is in dom0; the qube is made of it there: sudo"
            f" sparsebak-agent settings apply {asked.qube}"
        )
    elif _is_document(asked):
        context.say(
            f"{asked.name} as of {asked.session} is in dom0; look at it there: sparsebak-agent"
            f" settings show {asked.qube}"
        )
    else:
        part = "" if differing is None else f"; {size_text(differing)} differed"
        context.say(f"Restored {asked.name} to session {asked.session}{part}.")


def _send_all(
    agent: "Agent", entries: "list[VolumeEntry]", asked: Restoring, feed: Any
) -> "tuple[Status, bool]":
    """Restore without asking what differs; the status, and whether it was the settings of a qube
    that is not there.
    """
    from backup_vm.agent.call import RefusedError
    from wire.messages import VOLUME_GONE
    from wire.status import Code

    if asked.volume == SETTINGS and not any(
        entry.qube == asked.qube and not entry.flags & VOLUME_GONE for entry in entries
    ):
        try:
            return agent.restore(asked, feed(), absent=True), True
        except RefusedError as error:
            if error.refusal != Code.DENIED:
                raise
    return agent.restore(asked, feed()), False
