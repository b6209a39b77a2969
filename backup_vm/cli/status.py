"""``sparsebak status``: the archive at a glance, what has changed since in each volume, and whether
all is well.
"""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.list import space_option
from backup_vm.cli.options import key_option
from backup_vm.errors import AgentError
from backup_vm.terminal.text import ratio_text, size_text, table

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.reporting.view import View
    from backup_vm.volumes import Named
    from wire.messages import VolumeEntry


def add_to(commands: Any) -> None:
    """Declare the command."""
    status = commands.add_parser(
        "status",
        help="show the archive, what changed since the last backup, and its health",
        description=(
            "Shows the archive at a glance: space, last checks, and of each volume its newest"
            " session and how much has changed since."
        ),
    )
    space_option(status)
    key_option(status)
    status.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    context = Context(options)
    with context.open() as archive:
        data, _ = gather(context, archive)
    context.result(data, _text(data))
    return 0


def _text(data: dict[str, Any]) -> str:
    from backup_vm.archive.notes import Check
    from backup_vm.reporting.view import check_text

    rows = [
        [
            "VOLUME",
            "LATEST",
            "SESSIONS",
            "SIZE",
            "OWN",
            "SHARED",
            "COMPRESSED",
            "DEDUPLICATED",
            "CHANGED SINCE",
            "VERIFIED",
            "",
        ]
    ]
    for v in data["volumes"]:
        sizes = ["" if v[key] is None else size_text(v[key]) for key in ("own", "shared")]
        ratios = [
            "" if v[key] is None else ratio_text(v[key]) for key in ("compression", "deduplication")
        ]
        changed = "?" if v["changed"] is None else size_text(v["changed"])
        verified = check_text(
            Check(v["verified"]["time"], v["verified"]["ok"]) if v["verified"] else None
        )
        row = [v["name"], v["latest"] or "never", str(v["sessions"]), size_text(v["size"])]
        rows.append([*row, *sizes, *ratios, changed, verified, v["note"]])
    scrubbed = check_text(
        Check(data["scrubbed"]["time"], data["scrubbed"]["ok"]) if data["scrubbed"] else None
    )
    free = "?" if data["free"] is None else size_text(data["free"])
    head = [
        (
            f"Archive {data['label']} in {data['path']}, {data['mode']}, chunks of"
            f" {data['chunk_size'] >> 10} KiB"
        ),
        f"{data['chunks']} chunks, {size_text(data['stored'])} stored, {free} free on the disk",
        f"Last scrub: {scrubbed}."
        + (f" Next backup: {data['next_run']}." if data["next_run"] else ""),
    ]
    return "\n".join([*head, *data["problems"], "", table(rows, frozenset(range(2, 9)))])


def gather(context: Context, archive: "Archive") -> "tuple[dict[str, Any], View]":
    """All that ``status`` tells, as data, and the look at the archive that it was taken from."""
    from backup_vm.archive import notes
    from backup_vm.errors import DamagedError
    from backup_vm.reporting.view import check_data, next_run, view
    from backup_vm.volumes import stored_volumes

    listed: list[VolumeEntry] = []
    problems: list[str] = []
    if context.has_agent():
        try:
            listed = context.agent(archive).list()
        except AgentError as error:
            problems.append(f"agent: {error}")
    known = {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in listed}
    keys, space = context.keys(archive), getattr(context.options, "space", None)
    seen = archive.looking.steady(
        lambda: view(archive, stored_volumes(archive, keys, known), space)
    )
    chunks, stored_bytes = archive.catalog.count()
    parameters = archive.parameters
    try:
        scrubbed = notes.load(archive.storage).scrubbed
    except DamagedError:  # reported by stored_volumes
        scrubbed = None
    data = {
        "path": archive.storage.describe(),
        "label": parameters.label,
        "id": parameters.archive.hex(),
        "mode": parameters.mode,
        "chunk_size": parameters.chunk_size,
        "chunks": chunks,
        "stored": stored_bytes,
        "free": archive.storage.free(),
        "scrubbed": check_data(scrubbed),
        "next_run": next_run(),
        "volumes": _volumes(seen, listed),
        "problems": problems + [str(error) for error in archive.damaged.values()],
    }
    return data, seen


def _volumes(seen: "View", listed: "list[VolumeEntry]") -> list[dict[str, Any]]:
    stored = {named.id: named for named in seen.volumes}
    entries = {entry.volume_id.hex(): entry for entry in listed}
    volumes = [
        _volume(seen, key, stored.get(key), entries.get(key), bool(listed))
        for key in stored.keys() | entries.keys()
    ]
    return sorted(volumes, key=lambda volume: str(volume["name"]))


def _volume(
    seen: "View", volume_id: str, named: "Named | None", entry: "VolumeEntry | None", agent: bool
) -> dict[str, Any]:
    from backup_vm.reporting.view import check_data, last_verified
    from wire.messages import VOLUME_GONE, VOLUME_PENDING

    flags = entry.flags if entry else VOLUME_GONE
    words = [
        word
        for bit, word in ((VOLUME_GONE, "gone"), (VOLUME_PENDING, "interrupted"))
        if flags & bit
    ]
    latest = named.sessions[-1] if named else None
    use = seen.use(named) if named else None
    return {
        "name": named.name if named else f"{entry.qube}/{entry.volume}" if entry else volume_id,
        "id": volume_id,
        "latest": latest.name if latest else None,
        "sessions": len(named.sessions) if named else 0,
        "size": (
            entry.size if entry and not flags & VOLUME_GONE else latest.clear.size if latest else 0
        ),
        "own": use.own if use else None,
        "shared": use.shared if use else None,
        "compression": round(use.compression, 3) if use else None,
        "deduplication": round(use.deduplication, 3) if use else None,
        "changed": None if entry is None else entry.changed if latest else entry.size,
        "verified": check_data(last_verified(named)) if named else None,
        "note": ", ".join(words) if agent else "",
    }
