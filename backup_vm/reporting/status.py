# SPDX-License-Identifier: GPL-2.0-or-later
"""The archive at a glance, as ``status`` prints it and ``report`` draws it."""

from backup_vm.archive import notes
from backup_vm.archive.archive import Archive
from backup_vm.errors import AgentError, DamagedError
from backup_vm.reporting.locks import lease_line, lease_rows, lock_row, lock_text
from backup_vm.reporting.rows import (
    DrillRow,
    StateRow,
    StatusRow,
    UnprovenRow,
    UnscrubbedRow,
    check_row,
    check_text,
    space_row,
)
from backup_vm.reporting.view import View, last_verified, next_run
from backup_vm.terminal.text import ratio_text, size_text, table
from backup_vm.volumes import Named, stored_volumes
from common.text import session_name
from wire.chunks import Keys
from wire.messages import VOLUME_GONE, VOLUME_PENDING, VolumeEntry


def look(
    archive: Archive,
    listed: list[VolumeEntry],
    failed: AgentError | None,
    keys: Keys | None,
    space: bool | None,
) -> tuple[StatusRow, View]:
    """All that ``status`` tells, and the look at the archive that it was taken from.

    ``listed``: what dom0 lists, or nothing and why it ``failed``; ``space``: see View.of.
    """
    seen = _view(archive, listed, keys, space)
    chunks, stored_bytes = archive.catalog.count()
    parameters = archive.parameters
    found = _notes(archive)
    leases, problems = lease_rows(archive)
    problems += [] if failed is None else [f"agent: {failed}"]
    problems += [*map(str, archive.damaged.values()), *archive.missing()]
    parity = [archive.storage.allocated(name) for name in archive.parity_files()]
    row: StatusRow = {
        "path": archive.storage.describe(),
        "label": parameters.label,
        "id": parameters.archive.hex(),
        "mode": parameters.mode,
        "chunk_size": parameters.chunk_size,
        "chunks": chunks,
        "stored": stored_bytes,
        "parity": sum(parity),
        "parity_files": len(parity),
        "names": sum(seen.names.values()),
        "names_files": len(seen.names),
        "free": archive.storage.free(),
        "capacity": archive.storage.capacity(),
        "scrubbed": check_row(found.scrubbed),
        "part_scrubbed": check_row(found.part),
        "unscrubbed": _unscrubbed(archive, found),
        "unproven": _unproven(seen.volumes),
        "drilled": _drilled(seen.volumes),
        "lock": lock_row(archive),
        "leases": leases,
        "next_run": next_run(),
        "volumes": _volumes(seen, listed),
        "problems": problems + seen.spoilt_lines(seen.volumes),
    }
    return row, seen


def _view(
    archive: Archive, listed: list[VolumeEntry], keys: Keys | None, space: bool | None
) -> View:
    known = {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in listed}
    return archive.looking.steady(
        lambda: View.of(archive, stored_volumes(archive, keys, known), space),
        lambda view: view.spoilt.values(),
    )


def _notes(archive: Archive) -> notes.Notes:
    try:
        return notes.load(archive.storage)
    except DamagedError:  # reported by stored_volumes
        return notes.Notes()


def _unscrubbed(archive: Archive, found: notes.Notes) -> UnscrubbedRow:
    sizes = archive.storage.sizes("packs")
    checked = {name: found.packs.get(notes.short(name)) for name in archive.pack_files()}
    never = sum(max(sizes.get(name, 0), 0) for name, at in checked.items() if at is None)
    times = [at for at in checked.values() if at is not None]
    return {"oldest": min(times, default=None), "never": never}


def _unproven(volumes: list[Named]) -> UnprovenRow | None:
    """What a verification of a part would begin with."""
    rows: list[UnprovenRow] = []
    for volume in volumes:
        for session in volume.sessions:
            last = volume.notes.verified.get(session.clear.session.hex())
            since = last.time if last else session.clear.time
            rows.append(
                {
                    "name": volume.name,
                    "session": session.name,
                    "since": since,
                    "verified": last is not None,
                }
            )
    return min(rows, key=lambda row: row["since"], default=None)


def _drilled(volumes: list[Named]) -> DrillRow | None:
    rows: list[DrillRow] = []
    for volume in volumes:
        if (last := volume.notes.drills.get(volume.id)) is not None:
            rows.append({"name": volume.name, "time": last.time, "ok": last.sound})
    return max(rows, key=lambda row: row["time"], default=None)


def _volumes(seen: View, listed: list[VolumeEntry]) -> list[StateRow]:
    stored = {named.id: named for named in seen.volumes}
    entries = {entry.volume_id.hex(): entry for entry in listed}
    rows = [
        _volume(seen, key, stored.get(key), entries.get(key), bool(listed))
        for key in stored.keys() | entries.keys()
    ]
    return sorted(rows, key=lambda row: row["name"])


def _volume(
    seen: View, volume_id: str, named: Named | None, entry: VolumeEntry | None, agent: bool
) -> StateRow:
    flags = entry.flags if entry else VOLUME_GONE
    words = [
        word
        for bit, word in ((VOLUME_GONE, "gone"), (VOLUME_PENDING, "interrupted"))
        if flags & bit
    ]
    latest = named.sessions[-1] if named else None
    spoilt = sum(session.file in seen.spoilt for session in (named.sessions if named else ()))
    if not agent:
        words = []
    if spoilt:
        words.append(f"{spoilt} spoilt")
    return {
        "name": named.name if named else entry.name if entry else volume_id,
        "id": volume_id,
        "latest": latest.name if latest else None,
        "time": latest.clear.time if latest else None,
        "sessions": len(named.sessions) if named else 0,
        "spoilt": spoilt,
        "size": (
            entry.size if entry and not flags & VOLUME_GONE else latest.clear.size if latest else 0
        ),
        **space_row(seen.use(named) if named else None, seen.names_of(volume_id)),
        "changed": None if entry is None else entry.changed if latest else entry.size,
        "verified": check_row(last_verified(named)) if named else None,
        "drilled": check_row(named.notes.drills.get(volume_id)) if named else None,
        "note": ", ".join(words),
    }


def _parts_text(status: StatusRow) -> str:
    """How far scrubs of parts have come, where there were any since the last of everything."""
    part, whole, left = status["part_scrubbed"], status["scrubbed"], status["unscrubbed"]
    if part is None or (whole is not None and whole["time"] >= part["time"]):
        return ""
    oldest = f", the oldest {session_name(left['oldest'])}" if left["oldest"] is not None else ""
    never = f"; {size_text(left['never'])} never" if left["never"] else ""
    return f" In parts: {check_text(part)}{oldest}{never}."


def _unproven_text(row: UnprovenRow | None) -> list[str]:
    if row is None:
        return []
    when = f"last verified {session_name(row['since'])}" if row["verified"] else "never verified"
    return [f"Longest unproven: {row['name']} {row['session']}, {when}."]


def _drill_text(row: DrillRow | None) -> str:
    if row is None:
        return "Last drill: never."
    return (
        f"Last drill: {row['name']}, {session_name(row['time'])}"
        f"{'' if row['ok'] else ', which failed'}."
    )


def _table(volumes: list[StateRow]) -> str:
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
    for volume in volumes:
        sizes = [
            "" if size is None else size_text(size) for size in (volume["own"], volume["shared"])
        ]
        ratios = [
            "" if ratio is None else ratio_text(ratio)
            for ratio in (volume["compression"], volume["deduplication"])
        ]
        changed = "?" if volume["changed"] is None else size_text(volume["changed"])
        verified = check_text(volume["verified"])
        row = [
            volume["name"],
            volume["latest"] or "never",
            str(volume["sessions"]),
            size_text(volume["size"]),
        ]
        rows.append([*row, *sizes, *ratios, changed, verified, volume["note"]])
    return table(rows, frozenset(range(2, 9)))


def text(status: StatusRow) -> str:
    """The status, for people."""
    scrubbed = check_text(status["scrubbed"])
    free = status["free"]
    room = "free space not known" if free is None else f"{size_text(free)} free on the disk"
    beside = [
        f"{size_text(size)} of {what}"
        for size, what in ((status["names"], "indexes of names"), (status["parity"], "parity"))
        if size
    ]
    stored = ", ".join([f"{size_text(status['stored'])} stored", *beside])
    head = [
        (
            f"Archive {status['label']} in {status['path']}, {status['mode']}, chunks of"
            f" {status['chunk_size'] >> 10} KiB"
        ),
        f"{status['chunks']} chunks, {stored}, {room}",
        f"Last scrub: {scrubbed}."
        + _parts_text(status)
        + (f" Next backup: {status['next_run']}." if status["next_run"] else ""),
        *_unproven_text(status["unproven"]),
        _drill_text(status["drilled"]),
        *lock_text(status["lock"]),
        *(f"{lease_line(row)}." for row in status["leases"]),
    ]
    return "\n".join([*head, *status["problems"], "", _table(status["volumes"])])
