# SPDX-License-Identifier: GPL-2.0-or-later
"""LVM's commands and its report: what logical volumes there are, and changes to them. Needs root.

Field names are those of ``lvs -o help``; reports are asked for as JSON, in bytes, one call for all
volumes.
"""

import json
from pathlib import Path
from typing import NamedTuple

from dom0_agent.log import WARNING, log
from dom0_agent.sources import programs
from wire.status import Code, Refused

TAG = "sparsebak"
"""Tag of every logical volume that is ours."""
NAME_LIMIT = 126
"""Longest name device-mapper takes, of group and volume together with their dashes doubled."""

_FIELDS = (
    "vg_name,lv_name,pool_lv,thin_id,lv_size,lv_attr,data_percent,metadata_percent,"
    "chunk_size,zero,discards,vg_extent_size"
)
# Else /etc/lvm/archive gets a file for each snapshot.
_NO_ARCHIVE = ("--config", "backup { archive = 0 }")


_JSON = ("{", "}", "[", "]", '"', ",")
"""What the lines of a report begin with."""


class LogicalVolume(NamedTuple):
    """One line of the report. ``thin_id`` is None for what is not a thin volume; sizes are bytes.

    A pool's own: ``block`` bytes a block, whether it ``zeroes`` new ones, what it does with
    ``discards``.
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

    @property
    def merging(self) -> bool:
        """Whether a snapshot is to take its place when it is activated next."""
        return self.attributes[:1] == "O"


def device_name(group: str, name: str) -> str:
    """The name device-mapper knows a logical volume by: dashes doubled, one between group and
    volume.
    """
    return f"{group.replace('-', '--')}-{name.replace('-', '--')}"


def device_path(group: str, name: str) -> Path:
    """The device of an active logical volume."""
    return Path("/dev/mapper") / device_name(group, name)


def report() -> dict[tuple[str, str], LogicalVolume]:
    """All logical volumes by group and name. A malformed one is left out: it may be
    anybody's.
    """
    raw = programs.run(
        "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "-o", _FIELDS
    )
    # Some versions say what they do ("Retrying metadata scan.") in the middle of the report.
    lines = (line for line in raw.splitlines() if line.strip().startswith(_JSON))
    try:
        listed = [dict(fields) for fields in json.loads("\n".join(lines))["report"][0]["lv"]]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise Refused(Code.SOURCE_FAILED, f"lvs: invalid report: {error}") from None
    found = {}
    for fields in listed:
        try:
            volume = _parse(fields)
        except (ValueError, KeyError, TypeError) as error:
            log(WARNING, f"lvs: a malformed volume is left out: {error}: {fields}")
            continue
        found[volume.group, volume.name] = volume
    return found


def _parse(fields: dict[str, str]) -> LogicalVolume:
    return LogicalVolume(
        group=fields["vg_name"],
        name=fields["lv_name"].strip("[]"),  # of hidden volumes, if LVM's configuration lists them
        pool=fields["pool_lv"].strip("[]"),
        thin_id=int(fields["thin_id"]) if fields["thin_id"] else None,
        size=int(fields["lv_size"]),
        attributes=fields["lv_attr"],
        data_percent=_percent(fields["data_percent"]),
        metadata_percent=_percent(fields["metadata_percent"]),
        block=int(fields["chunk_size"] or 0),
        zeroes=fields["zero"] == "1",
        discards=fields["discards"],
        extent=int(fields["vg_extent_size"]),
    )


def _percent(text: str) -> float:
    """LVM writes nothing where there is nothing to tell, and a negative number for what it cannot
    tell: that is full.
    """
    percent = float(text or 0)
    return percent if percent >= 0 else 100.0


def change(*command: str) -> None:
    """Run a command that changes LVM's metadata."""
    programs.run(command[0], *_NO_ARCHIVE, *command[1:])
