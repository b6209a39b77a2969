"""LVM's commands and its report: what logical volumes there are, and changes to them. Needs root.

Field names are those of ``lvs -o help``; reports are asked for as JSON, in bytes, one call for all volumes.
"""

import json
import os
import subprocess
from dataclasses import dataclass

from wire.status import Code, Refused

TAG = "sparsebak"
"""Tag of every logical volume that is ours."""
TIMEOUT = 300
"""Seconds after which a command is given up: somebody holds LVM's lock, or a device hangs."""
NAME_LIMIT = 126
"""Longest name device-mapper takes, of group and volume together with their dashes doubled."""

_FIELDS = (
    "vg_name,lv_name,pool_lv,thin_id,lv_size,lv_attr,data_percent,metadata_percent,"
    "chunk_size,zero,discards,vg_extent_size"
)
_NO_ARCHIVE = (
    "--config",
    "backup { archive = 0 }",
)  # or /etc/lvm/archive gets a file for each snapshot


@dataclass(frozen=True)
class LogicalVolume:
    """One line of the report. ``thin_id`` is None for what is not a thin volume; sizes are bytes.

    A pool's own: ``block`` bytes a block, whether it ``zeroes`` new ones, what it does with ``discards``.
    """

    group: str
    name: str
    pool: str
    thin_id: int | None
    size: int
    attributes: str
    data_percent: float
    metadata_percent: float
    block: int
    zeroes: bool
    discards: str
    extent: int

    @property
    def active(self) -> bool:
        """Whether a device stands for it."""
        return self.attributes[4:5] == "a"

    @property
    def in_use(self) -> bool:
        """Whether somebody has its device open."""
        return self.attributes[5:6] == "o"


def device_name(group: str, name: str) -> str:
    """The name device-mapper knows a logical volume by: dashes doubled, one between group and volume."""
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"


def environment() -> dict[str, str]:
    """What commands of dom0 get: no locale, no descriptors complained of, the system's own programs."""
    kept = {name: os.environ[name] for name in ("LVM_SYSTEM_DIR",) if name in os.environ}
    return {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "LVM_SUPPRESS_FD_WARNINGS": "1",
        **kept,
    }


def run(*command: str) -> str:
    """Run a command and return what it prints; Refused, with its last words, when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), check=False, timeout=TIMEOUT
        )
    except FileNotFoundError:
        raise Refused(Code.SOURCE_FAILED, f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Refused(
            Code.SOURCE_FAILED, f"{command[0]} did not end within {TIMEOUT} seconds; given up"
        ) from None
    if done.returncode:
        words = "; ".join(
            line.strip() for line in done.stderr.splitlines() if "WARNING" not in line
        )
        full = "space" in words or "threshold" in words
        raise Refused(
            Code.NO_SPACE if full else Code.SOURCE_FAILED,
            f"{' '.join(command[:1])} failed: {words or done.returncode}",
        )
    return done.stdout


def report() -> dict[tuple[str, str], LogicalVolume]:
    """All logical volumes by group and name."""
    raw = run(
        "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", _FIELDS
    )
    try:
        found = [_parse(fields) for fields in json.loads(raw)["report"][0]["lv"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Refused(Code.SOURCE_FAILED, f"lvs: a report that makes no sense: {error}") from None
    return {(volume.group, volume.name): volume for volume in found}


def _parse(fields: dict[str, str]) -> LogicalVolume:
    return LogicalVolume(
        group=fields["vg_name"],
        name=fields["lv_name"],
        pool=fields["pool_lv"],
        thin_id=int(fields["thin_id"]) if fields["thin_id"] else None,
        size=int(fields["lv_size"]),
        attributes=fields["lv_attr"],
        data_percent=float(fields["data_percent"] or 0),
        metadata_percent=float(fields["metadata_percent"] or 0),
        block=int(fields["chunk_size"] or 0),
        zeroes=fields["zero"] == "1",
        discards=fields["discards"],
        extent=int(fields["vg_extent_size"]),
    )


def change(*command: str) -> None:
    """Run a command that changes LVM's metadata."""
    run(command[0], "--quiet", *_NO_ARCHIVE, *command[1:])
