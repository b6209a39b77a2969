# SPDX-License-Identifier: GPL-2.0-or-later
"""One LVM thin pool: its volumes, its space, and its metadata, read from a reserved metadata
snapshot.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dom0_agent.config import Pool
from dom0_agent.log import WARNING, log
from dom0_agent.sources import Range, lvm, programs, thin_xml
from dom0_agent.sources.metadata_snapshot import MetadataSnapshot, ThinDevice
from wire.status import Code, Refused

_USED_DATA = 5
"""The word of a pool's status that tells how many of its blocks are in use, of how many."""


class ThinPool:
    """A pool as it was when first asked about, and with our own changes since."""

    def __init__(self, pool: Pool, state_dir: Path, report: "Report") -> None:
        self.group, self.name, self._pool, self.report = (
            pool.volume_group,
            pool.thin_pool,
            pool,
            report,
        )
        self.title = f"{self.group}/{self.name}"
        self._device = ThinDevice(self.group, self.name)
        mark = state_dir / "pools" / f"{self.group}+{self.name}"
        self._metadata = MetadataSnapshot(self._device, mark)
        self._reserved: ExitStack | None = None
        self._depth = 0
        self._doomed: list[str] = []

    def find(self, name: str) -> lvm.LogicalVolume | None:
        """The thin volume of that name in this pool."""
        key = (self.group, name)
        found = self.report.volumes().get(key) or self.report.fresh().get(key)
        return (
            found
            if found is not None and found.pool == self.name and name not in self._doomed
            else None
        )

    def named(self, prefix: str) -> list[lvm.LogicalVolume]:
        """Thin volumes of this pool whose names begin so."""
        every = (
            v for v in self.report.fresh().values() if (v.group, v.pool) == (self.group, self.name)
        )
        return [v for v in every if v.name.startswith(prefix) and v.name not in self._doomed]

    def is_there(self) -> bool:
        """Whether LVM knows the pool: its disk may be away."""
        found = self.report.volumes().get((self.group, self.name))
        return found is not None and found.attributes.startswith("t")

    def itself(self) -> lvm.LogicalVolume:
        """The pool's own line in the report."""
        if not self.is_there():
            raise Refused(
                Code.SOURCE_FAILED,
                f"there is no thin pool {self.title}; see the pools in agent.toml",
            )
        return self.report.volumes()[self.group, self.name]

    def require_metadata(self) -> None:
        """Refused when another snapshot could fill the pool's metadata."""
        if self.itself().metadata_percent >= self._pool.metadata_limit:
            raise Refused(
                Code.NO_SPACE,
                f"the metadata of pool {self.title} is {self.itself().metadata_percent:.0f} % full;"
                f" extend it with: lvextend --poolmetadatasize +256M {self.title}",
            )

    def require_data(self, percent: float | None = None) -> None:
        """Refused when there is no room for what is held longer than a moment. ``percent``: the use
        now, if known.
        """
        percent = self.itself().data_percent if percent is None else percent
        if percent >= self._pool.data_limit:
            raise Refused(
                Code.NO_SPACE,
                f"pool {self.title} is {percent:.0f} % full; "
                f"extend it with: lvextend -L+10G {self.title}, or remove something from it",
            )

    def used_percent(self) -> float:
        """Share of the data space in use now, from device-mapper."""
        used, total = self._device.status()[_USED_DATA].split("/")
        return 100 * int(used) / max(int(total), 1)

    def change(self, *command: str) -> None:
        """Run a command that changes the pool."""
        self._release()  # it would not know of what is made now, and thin_delta would not find it
        try:
            lvm.change(*command)
        finally:
            self.report.outdated = True

    def remove(self, name: str) -> None:
        """Remove a volume of ours, at once or, inside ``together``, at its end. What cannot go now
        is tried again later.
        """
        self._doomed.append(name)
        if not self._depth:
            self._remove_doomed()

    def _remove_doomed(self) -> None:
        doomed, self._doomed = self._doomed, []
        if not doomed:
            return
        try:
            self.change("lvremove", "--force", *(f"{self.group}/{name}" for name in doomed))
            for name in doomed:
                self.report.volumes().pop((self.group, name), None)
        except Refused as error:
            log(WARNING, f"{self.title}: cannot remove {', '.join(doomed)} yet: {error}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside shares one metadata snapshot; volumes removed inside go in one
        command at the end.
        """
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                try:
                    self._release()
                finally:
                    self._remove_doomed()

    def delta(self, old: lvm.LogicalVolume, new: lvm.LogicalVolume) -> Iterator[Range]:
        """Ranges in which two thin volumes of this pool may differ."""
        yield from self._ask(
            "thin_delta", "-m", "--thin1", str(old.thin_id), "--thin2", str(new.thin_id)
        )

    def mapped(self, volume: lvm.LogicalVolume) -> Iterator[Range]:
        """Ranges of a thin volume that have blocks; all else reads as zeros."""
        yield from self._ask("thin_dump", "-m", "--dev-id", str(volume.thin_id))

    @contextmanager
    def metadata(self) -> Iterator[str]:
        """The device with the pool's metadata, as of a snapshot of them that is held inside."""
        with self.together():
            self._reserve()
            yield self._device.metadata

    def _ask(self, *command: str) -> Iterator[Range]:
        with (
            self.metadata() as device,
            programs.printed(command[0], *command, device) as xml,
        ):
            yield from thin_xml.ranges(xml.fileno(), command[0])

    def _reserve(self) -> None:
        """Make sure of a metadata snapshot that knows all volumes there are; held until
        ``together`` ends or the pool is changed.
        """
        if self._reserved is None:
            stack = ExitStack()
            stack.enter_context(self._metadata)
            self._reserved = stack

    def _release(self) -> None:
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            reserved.close()


class Report:
    """LVM's report, fetched when first asked for. ``outdated`` is set by who changes something."""

    def __init__(self) -> None:
        self._volumes: dict[tuple[str, str], lvm.LogicalVolume] | None = None
        self.outdated = False

    def volumes(self) -> dict[tuple[str, str], lvm.LogicalVolume]:
        """All logical volumes by group and name, as of some time in this call."""
        if self._volumes is None:
            self._volumes, self.outdated = lvm.report(), False
        return self._volumes

    def fresh(self) -> dict[tuple[str, str], lvm.LogicalVolume]:
        """All logical volumes by group and name, with all our own changes."""
        if self.outdated:
            self._volumes = None
        return self.volumes()
