# SPDX-License-Identifier: GPL-2.0-or-later
"""A site that has disposables in which ``sparsebak-agent open`` shows what is in a session."""

import json
import os
import subprocess
import sys
from pathlib import Path

from backup_vm import cli as vm
from dom0_agent.admin import cli
from dom0_agent.admin.granting import find
from dom0_agent.config import load
from tests.qubes import disposables
from tests.qubes.kit import BACKUP_VM, QubesSite
from tests.qubes.reading_kit import BIN

ROOT = Path(__file__).parent.parent.parent
COMMAND = f"""#!{sys.executable} -I
import sys

sys.path.insert(0, "{{}}")
from backup_vm.cli import main

sys.exit(main())
"""
"""What tools/install-command makes, for the Python that runs the tests."""
TEMPLATE = "default-dvm"


class Opened:
    """A site that has a template for disposables, with the VM package as installed, and what was
    called and shown.
    """

    def __init__(self, site: QubesSite, installed: Path) -> None:
        self.site, self.qubesd = site, site.qubesd
        assert isinstance(self.qubesd, disposables.Machine)
        self.log, self.shown = site.root / "calls", site.root / "shown"
        config = site.root / "config.toml"
        config.write_text(f'archive = "{site.archive}"\n')
        sparsebak = site.root / "sparsebak"
        disposables.program(sparsebak, BIN / "sparsebak", "--config", config)
        self.settings = {
            "qubesd": str(self.qubesd.socket), "config": str(site.config), "yes": True,
            "python": sys.executable, "sparsebak": str(sparsebak), "log": str(self.log),
            "shown": str(self.shown), "folders": [str(installed / "etc/qubes-rpc")], "qubes": {},
            "program": str(installed / "usr/bin/sparsebak"),
        }  # fmt: skip
        self.set()
        self.qubesd.default_dispvm = TEMPLATE
        site.add_qube(TEMPLATE)
        self.qubesd.qubes[TEMPLATE].properties["template_for_dispvms"] = (False, "bool", "True")
        assert self.agent("setup", BACKUP_VM) == 0
        self.qubesd.qubes[BACKUP_VM].state = "Running"

    def set(self, **settings: object) -> None:
        self.qubesd.settings.write_text(json.dumps({**self.settings, **settings}))

    def agent(self, *words: str) -> int:
        return cli.main(["--config", str(self.site.config), *words])

    def records(self) -> str:
        """What the backup VM is asked for each time, once."""
        path = self.site.root / "records"
        volume_id = find(load(self.site.config), "work", None).volume_id.hex()
        words = ["--config", str(self.site.root / "config.toml"), "records", volume_id]
        assert vm.main([*words, "-o", str(path)]) == 0
        return str(path)

    def disposables(self) -> list[str]:
        return [n for n, one in self.qubesd.qubes.items() if one.klass == "DispVM" and n != "disp1"]


def ext4(path: Path, contents: dict[str, bytes], size: int = 8 << 20) -> None:
    folder = path.with_name("content")
    for name, raw in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    with open(path, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-d", folder, path], check=True)


CONTENTS = {"home/user/letter.odt": os.urandom(200_000), "home/user/.bashrc": b"# nothing\n"}
