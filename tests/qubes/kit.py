# SPDX-License-Identifier: GPL-2.0-or-later
"""A site whose volumes are those of a Qubes machine."""

import os
import random
from pathlib import Path

from backup_vm.agent.client import Agent
from backup_vm.archive.image import Image
from backup_vm.jobs.outcome import Report
from dom0_agent.admin import cli
from dom0_agent.admin.catalog import write_down
from dom0_agent.admin.settings.collecting import collect_all
from dom0_agent.config import load
from tests.kit import GRAIN, Feed, Site, change, fill
from tests.qubes.qubesd import Qubesd

SIZE = 20 * GRAIN
BACKUP_VM = "backup-vm"


class QubesSite(Site):
    """See Site; volumes are named by qubesd, images are where the pool ``vm-pool`` has them."""

    def __init__(self, root: Path, qubesd: Qubesd, files: tuple[Path, ...] = ()) -> None:
        self.qubesd, self.files = qubesd, files
        super().__init__(root, driver="reflink")

    def _make(self) -> None:
        self.pool.mkdir(parents=True)
        self.qubesd.pools["vm-pool"] = {"driver": "file-reflink", "dir_path": str(self.pool)}
        for name, klass in (
            ("fedora", "TemplateVM"),
            ("work", "AppVM"),
            ("vault", "AppVM"),
            (BACKUP_VM, "AppVM"),
            ("disp1", "DispVM"),
        ):
            self.add_qube(name, klass)
        config = "\n".join(f'"{path}"' for path in self.files)
        self.config.write_text(
            f'state_dir = "dom0"\ncatalog = "qubes"\n'
            f"[qubes]\ndom0_config = [{config}]\nmachine = false\n"
        )

    def add_qube(self, name: str, klass: str = "AppVM") -> None:
        qube = self.qubesd.add(name, klass, "vm-pool", SIZE)
        for volume, disk in qube.volumes.items():
            if disk.save_on_stop:
                self.place(name, volume)
                fill(self.image(f"{name}/{volume}"), SIZE, sum(name.encode()))

    def place(self, name: str, volume: str) -> None:
        """Tell the import script where a volume is."""
        path = self.pool / f"{self.qubesd.qubes[name].volumes[volume].vid}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.qubesd.places / f"{name}+{volume}").write_text(str(path))

    def take_down(self) -> None:
        """What dom0's timers do: settings, and the list of volumes."""
        failed = [taken for taken in collect_all(load(self.config)) if taken.error]
        self.write_down()
        assert not failed, failed

    def write_down(self) -> None:
        write_down(load(self.config))

    def backup(self, *names: str, folder: Path | None = None, agent: Agent | None = None) -> Report:
        self.take_down()
        return super().backup(*names, folder=folder, agent=agent)

    def restored(
        self, agent: Agent, image: Image, to: str, feed: Feed, absent: bool = False
    ) -> None:
        self.write_down()
        super().restored(agent, image, to, feed, absent)

    def apply(self, name: str) -> None:
        """What dom0's administrator does with the settings of a qube that is gone."""
        assert cli.main(["--config", str(self.config), "settings", "apply", name, "--yes"]) == 0

    def image(self, name: str = "work/private") -> Path:
        qube, volume = name.split("/")
        group = "templates" if qube in ("fedora", "debian") else "appvms"
        return self.pool / group / qube / f"{volume}.img"

    def dirty(self, name: str = "work/private") -> Path:
        """The image of a running qube."""
        return self.image(name).with_name(self.image(name).stem + "-dirty.img")

    def start(self, name: str) -> None:
        self.qubesd.qubes[name].state = "Running"
        dirty = self.dirty(f"{name}/private")
        dirty.write_bytes(self.image(f"{name}/private").read_bytes())
        change(dirty, random.Random(name), resize=False)

    def stop(self, name: str) -> None:
        self.qubesd.qubes[name].state = "Halted"
        os.replace(self.dirty(f"{name}/private"), self.image(f"{name}/private"))
