# SPDX-License-Identifier: GPL-2.0-or-later
"""Metrics as Prometheus' textfile collector (node_exporter) reads them: the archive as ``status``
shows it, and how the last backup ended.

Names follow Prometheus' conventions: base units, the unit at the end. What is not known is left
out.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from backup_vm import failures
from backup_vm.errors import SparsebakError
from backup_vm.paths import expanded
from backup_vm.reporting.kept_rows import State, UpkeepRow
from backup_vm.reporting.rows import CheckRow, StatusRow
from backup_vm.terminal.output import whole_file

_HELP = {
    "archive_stored_bytes": "Bytes of sealed chunks in the archive.",
    "archive_chunks": "Chunks in the archive.",
    "archive_free_bytes": "Bytes that can still be written where the archive is.",
    "archive_problems": "Problems with the archive or the agent, as the command status lists them.",
    "scrub_timestamp_seconds": "Time of the last scrub of the whole archive.",
    "scrub_sound": "Whether the last scrub of the whole archive found no damage.",
    "scrub_part_timestamp_seconds": "Time of the last scrub of a part.",
    "scrub_part_sound": "Whether the last scrub of a part found no damage.",
    "scrub_oldest_timestamp_seconds": "Time since which every pack that was ever checked was.",
    "scrub_never_bytes": "Bytes of packs that were never checked.",
    "verify_oldest_timestamp_seconds": "Time since which every session was proven or stored.",
    "drill_timestamp_seconds": "Time of the last drill of any volume.",
    "drill_sound": "Whether that drill found nothing wrong.",
    "parity_bytes": "Bytes of parity files.",
    "parity_files": "Parity files.",
    "names_bytes": "Bytes of indexes of names.",
    "names_files": "Indexes of names.",
    "lease_start_timestamp_seconds": "Time when the other run began that has the archive's lease.",
    "lease_renewed_timestamp_seconds": "Time when that lease was renewed, by the store's clock.",
    "lock_retention_seconds": "Seconds for which what is stored is locked.",
    "lock_first_timestamp_seconds": "The first date until which a file is locked, as far as known.",
    "lock_last_timestamp_seconds": "The last such date.",
    "lock_unknown_files": "Files of which no such date is known.",
    "lock_late": "Whether less than half of the retention is left of any file, or not known.",
    "lock_waiting_bytes": "Bytes that were removed, and may not be removed for good yet.",
    "lock_waiting_timestamp_seconds": "Time from which the last of them may.",
    "volume_sessions": "Sessions of the volume.",
    "volume_spoilt_sessions": "Sessions of the volume that are known not to be whole.",
    "volume_size_bytes": "Size of the volume.",
    "volume_changed_bytes": "Bytes that changed since the newest session.",
    "volume_session_timestamp_seconds": "Time of the volume's newest session.",
    "volume_verify_timestamp_seconds": "Time of the last verification of any of its sessions.",
    "volume_verify_sound": "Whether that proved authentic and complete.",
    "volume_drill_timestamp_seconds": "Time of the volume's last drill.",
    "volume_drill_sound": "Whether that drill found nothing wrong.",
    "backup_start_timestamp_seconds": "Time when the last backup began.",
    "backup_end_timestamp_seconds": "Time when it ended.",
    "upkeep_kept_timestamp_seconds": "Time when the archive was kept last, whole.",
    "upkeep_ok": "Whether the archive was as it should be when it was looked at last.",
    "upkeep_problems": "What is to be looked at in the archive.",
    "upkeep_in_use": "Times in a row that the archive was in use.",
    "upkeep_session_timestamp_seconds": "Time of the archive's newest session.",
    "upkeep_archives": "Archives at the place.",
    "upkeep_end_timestamp_seconds": "Time when the last run over all archives ended.",
    "upkeep_exit_code": "Its exit code; 0 means that all is well.",
    "backup_exit_code": "Its exit code; 0 means that everything was backed up.",
}
Sample = tuple[str, Mapping[str, str], float | None]
"""A name without its prefix, labels, the value."""
Samples = Iterable[Sample]


def of_archive(status: StatusRow) -> str:
    """The archive and its volumes."""
    return _text(_of_archive(status))


def of_upkeep(run: UpkeepRow) -> str:
    """The archives of a place, each by the name of its folder: two can have one label."""
    return _text(_of_upkeep(run))


def of_run(file: str, begun: float, ended: float, code: int) -> str:
    """How a backup went whose settings name this file; times in Unix seconds."""
    # A run that found no archive cannot name it, and two samples must not be the same.
    label = {"file": Path(file).stem}
    return _text(
        [
            ("backup_start_timestamp_seconds", label, round(begun, 3)),
            ("backup_end_timestamp_seconds", label, round(ended, 3)),
            ("backup_exit_code", label, code),
        ]
    )


def beside(file: str) -> str:
    """Where metrics of the run are: in a file beside those of the archive, for a run that failed
    may know nothing of it.
    """
    path = Path(file)
    return str(path.with_name(f"{path.stem}-backup{path.suffix}"))


def write(file: str, text: str) -> None:
    """Write a file of metrics at once, to be read by whoever runs the collector. Raise
    SparsebakError.
    """
    target = Path(expanded(file))
    if target.suffix != ".prom":
        raise SparsebakError(f"{target}: the collector reads only files that end in .prom")
    try:
        with whole_file(target) as out:
            os.fchmod(out.fileno(), 0o644)
            out.write(text.encode())
    except OSError as error:
        raise failures.cannot_write(target, error) from None


def _of_archive(status: StatusRow) -> Iterator[Sample]:
    label = {"archive": status["label"]}
    yield from _as_a_whole(status, label)
    for volume in status["volumes"]:
        named = {**label, "volume": volume["name"]}
        yield "volume_sessions", named, volume["sessions"]
        yield "volume_spoilt_sessions", named, volume["spoilt"]
        yield "volume_size_bytes", named, volume["size"]
        yield "volume_changed_bytes", named, volume["changed"]
        yield "volume_session_timestamp_seconds", named, volume["time"]
        yield from _check("volume_verify", named, volume["verified"])
        yield from _check("volume_drill", named, volume["drilled"])


def _of_upkeep(run: UpkeepRow) -> Iterator[Sample]:
    place = {"place": run["place"]}
    yield "upkeep_archives", place, len(run["archives"])
    yield "upkeep_end_timestamp_seconds", place, run["ended"]
    yield "upkeep_exit_code", place, run["exit"]
    for row in run["archives"]:
        label = {**place, "archive": row["name"]}
        yield "upkeep_kept_timestamp_seconds", label, row["kept"] or None
        good = row["state"] in (State.WELL, State.IN_USE, State.LEFT) and not row["problems"]
        yield "upkeep_ok", label, good
        yield "upkeep_problems", label, len(row["problems"])
        yield "upkeep_in_use", label, row["skipped"]
        yield "upkeep_session_timestamp_seconds", label, row["newest"]
        if row["status"] is not None:
            yield from _as_a_whole(row["status"], label)


def _as_a_whole(status: StatusRow, label: Mapping[str, str]) -> Iterator[Sample]:
    parts, unproven = status["unscrubbed"], status["unproven"]
    yield "archive_stored_bytes", label, status["stored"]
    yield "archive_chunks", label, status["chunks"]
    yield "archive_free_bytes", label, status["free"]
    yield "archive_problems", label, len(status["problems"])
    yield from _check("scrub", label, status["scrubbed"])
    yield from _check("scrub_part", label, status["part_scrubbed"])
    yield "scrub_oldest_timestamp_seconds", label, parts["oldest"]
    yield "scrub_never_bytes", label, parts["never"]
    yield "verify_oldest_timestamp_seconds", label, unproven and unproven["since"]
    yield from _check("drill", label, status["drilled"])
    yield "parity_bytes", label, status["parity"]
    yield "parity_files", label, status["parity_files"]
    yield "names_bytes", label, status["names"]
    yield "names_files", label, status["names_files"]
    for lease in status["leases"]:
        held = {name: str(lease[name]) for name in ("kind", "host", "process")} | dict(label)
        yield "lease_start_timestamp_seconds", held, lease["since"]
        yield "lease_renewed_timestamp_seconds", held, lease["renewed"]
    if (lock := status["lock"]) is not None:
        yield "lock_retention_seconds", label, lock["retention"]
        yield "lock_first_timestamp_seconds", label, lock["until"]
        yield "lock_last_timestamp_seconds", label, lock["last"]
        yield "lock_unknown_files", label, lock["unknown"]
        yield "lock_late", label, lock["late"]
        yield "lock_waiting_bytes", label, lock["waiting"]
        yield "lock_waiting_timestamp_seconds", label, lock["waiting_until"]


def _check(what: str, labels: Mapping[str, str], row: CheckRow | None) -> Iterator[Sample]:
    if row is not None:
        yield f"{what}_timestamp_seconds", labels, row["time"]
        yield f"{what}_sound", labels, row["ok"]


def _text(samples: Samples) -> str:
    """The exposition format: all samples of a metric together, after what it means."""
    lines: dict[str, list[str]] = {}
    for name, labels, value in samples:
        if value is None:
            continue
        full = f"sparsebak_{name}"
        head = [f"# HELP {full} {_HELP[name]}", f"# TYPE {full} gauge"]
        words = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        number = value if isinstance(value, float) else int(value)
        lines.setdefault(name, head).append(f"{full}{{{words}}} {number}")
    return "".join(f"{line}\n" for block in lines.values() for line in block)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
