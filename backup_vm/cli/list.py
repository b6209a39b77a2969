"""``sparsebak list``: the volumes in the archive, or the sessions of some."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context, json_option, key_option
from backup_vm.text import size_text, table

if TYPE_CHECKING:
    from backup_vm.names import Named


def add_to(commands: Any) -> None:
    """Declare the command."""
    show = commands.add_parser("list", help="show volumes, or the sessions of one")
    show.add_argument("volume", nargs="?", metavar="QUBE[/VOLUME]")
    key_option(show)
    json_option(show)
    show.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.names import select

    context = Context(options)
    with context.open() as archive:
        volumes = context.volumes(archive, context.keys(archive))
        chosen = select(volumes, [options.volume] if options.volume else [])
        for error in archive.damaged.values():
            context.warn(str(error))
    text = _sessions(chosen) if options.volume else _volumes(chosen)
    context.result({"volumes": [_data(volume) for volume in chosen]}, text)
    return 0


def _data(volume: "Named") -> dict[str, Any]:
    sessions = [
        {
            "session": session.name,
            "id": session.clear.session.hex(),
            "sequence": session.clear.sequence,
            "time": session.clear.time,
            "size": session.clear.size,
            "changed": session.count * session.clear.chunk_size,
            "full": session.inherit == 0,
        }
        for session in volume.sessions
    ]
    return {"qube": volume.qube, "volume": volume.volume, "id": volume.id, "sessions": sessions}


def _volumes(volumes: "list[Named]") -> str:
    rows = [
        [volume.name, str(len(volume.sessions)), volume.sessions[-1].name, size_text(volume.sessions[-1].clear.size)]
        for volume in volumes
    ]
    return table([["VOLUME", "SESSIONS", "LATEST", "SIZE"], *rows], frozenset({1, 3}))


def _sessions(volumes: "list[Named]") -> str:
    rows = [
        [
            volume.name,
            session.name,
            size_text(session.clear.size),
            size_text(session.count * session.clear.chunk_size),
            "full" if session.inherit == 0 else "",
        ]
        for volume in volumes
        for session in volume.sessions
    ]
    return table([["VOLUME", "SESSION", "SIZE", "CHANGED", ""], *rows], frozenset({2, 3}))
