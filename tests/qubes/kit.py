"""A site whose volumes are those of a Qubes machine."""

import os
import random
from pathlib import Path

from tests.kit import GRAIN, Site, change, fill
from tests.qubes.qubesd import Qubesd

SIZE = 20 * GRAIN
BACKUP_VM = "backup-vm"


class QubesSite(Site):
    """See Site; volumes are named by qubesd, images lie where the pool ``vm-pool`` has them."""

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
            f'state_dir = "dom0"\ncatalog = "qubes"\n[qubes]\ndom0_config = [{config}]\n'
        )

    def add_qube(self, name: str, klass: str = "AppVM") -> None:
        qube = self.qubesd.add(name, klass, "vm-pool", SIZE)
        for volume, disk in qube.volumes.items():
            if disk.save_on_stop:
                self.place(name, volume)
                fill(self.image(f"{name}/{volume}"), SIZE, sum(name.encode()))

    def place(self, name: str, volume: str) -> None:
        """Tell the import script where a volume lies."""
        path = self.pool / f"{self.qubesd.qubes[name].volumes[volume].vid}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.qubesd.places / f"{name}+{volume}").write_text(str(path))

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
