"""``sparsebak status``: the archive at a glance, and what has changed since in each volume."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context, json_option, key_option
from backup_vm.errors import AgentError
from backup_vm.text import size_text, table

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive


def add_to(commands: Any) -> None:
    """Declare the command."""
    status = commands.add_parser("status", help="show the archive, and what changed since the last backup")
    key_option(status)
    json_option(status)
    status.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    context = Context(options)
    with context.open() as archive:
        data = _gather(context, archive)
    rows = [
        [v["name"], v["latest"] or "never", str(v["sessions"]), size_text(v["size"]), _changed(v["changed"]), v["note"]]
        for v in data["volumes"]
    ]
    head = [
        f"Archive {data['label']} in {data['path']}, {data['mode']}, chunks of {data['chunk_size'] >> 10} KiB",
        f"{data['chunks']} chunks, {size_text(data['stored'])} stored, {size_text(data['free'])} free on the disk",
    ]
    right = frozenset({2, 3, 4})
    body = table([["VOLUME", "LATEST", "SESSIONS", "SIZE", "CHANGED SINCE", ""], *rows], right)
    context.result(data, "\n".join([*head, *data["problems"], "", body]))
    return 0


def _changed(size: int | None) -> str:
    return "?" if size is None else size_text(size)


def _gather(context: Context, archive: "Archive") -> dict[str, Any]:
    from backup_vm.names import stored_volumes
    from wire.frames import VOLUME_GONE, VOLUME_PENDING

    listed = []
    problems: list[str] = []
    if context.has_agent():
        try:
            listed = context.agent(archive).list()
        except AgentError as error:
            problems.append(f"agent: {error}")
    known = {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in listed}
    stored = {named.id: named for named in stored_volumes(archive, context.keys(archive), known)}
    entries = {entry.volume_id.hex(): entry for entry in listed}
    volumes = []
    for volume_id in sorted(stored.keys() | entries.keys(), key=lambda key: stored[key].name if key in stored else ""):
        named, entry = stored.get(volume_id), entries.get(volume_id)
        flags = entry.flags if entry else VOLUME_GONE
        notes = [word for bit, word in ((VOLUME_GONE, "gone"), (VOLUME_PENDING, "interrupted")) if flags & bit]
        latest = named.sessions[-1] if named else None
        volumes.append(
            {
                "name": named.name if named else f"{entry.qube}/{entry.volume}" if entry else volume_id,
                "id": volume_id,
                "latest": latest.name if latest else None,
                "sessions": len(named.sessions) if named else 0,
                "size": entry.size if entry and not flags & VOLUME_GONE else latest.clear.size if latest else 0,
                "changed": None if entry is None else entry.changed if latest else entry.size,
                "note": ", ".join(notes) if listed else "",
            }
        )
    chunks, stored_bytes = archive.catalog.count()
    parameters = archive.parameters
    return {
        "path": str(archive.storage.root),
        "label": parameters.label,
        "id": parameters.archive.hex(),
        "mode": parameters.mode,
        "chunk_size": parameters.chunk_size,
        "chunks": chunks,
        "stored": stored_bytes,
        "free": archive.storage.free(),
        "volumes": volumes,
        "problems": problems + [str(error) for error in archive.damaged.values()],
    }
