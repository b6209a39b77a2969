# SPDX-License-Identifier: GPL-2.0-or-later
"""Two machines with real systemd and the packages as built: dom0, which qubesd and a pool on Btrfs
belong to, and a backup VM that qubesd starts and shuts down. Between them there is qrexec.

Stand-ins are qubesd (it runs in the test, and has the backup VM booted), qubesadmin, qrexec, and
what shows notifications. dom0 is Debian, too: rpm installs there what it would install in Fedora,
with its scriptlets, but is not asked what else is installed.
"""

import json
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

from tests.kit import GRAIN, PASSPHRASE, change, fill
from tests.patience import PATIENCE
from tests.qubes.qubesd import Qube, Qubesd
from tests.system.machine import Machine
from tests.system.root import base
from wire import VERSION

HERE = Path(__file__).parent
QUBES = HERE.parent / "qubes"
SIZE = 20 * GRAIN
BACKUP_VM = "backup"
ARCHIVE = "/mnt/laptop.sparsebak"
QREXEC = {
    "qrexec-daemon": "/usr/lib/qubes/qrexec-daemon",
    "qrexec-client": "/usr/lib/qubes/qrexec-client",
    "qrexec-agent": "/usr/lib/qubes/qrexec-agent",
    "qrexec-client-vm": "/usr/bin/qrexec-client-vm",
    "qubes-vmexec": "/usr/lib/qubes/qubes-vmexec",
}
SERVICE = """[Service]
ExecStart={command}
[Install]
WantedBy=multi-user.target
"""
# What dom0's package qubes-core-dom0-linux sets (system-config/limits-qubes.conf): more than a
# service has, so that only who may raise limits can begin a session of PAM for such a user.
LIMITS = "@qubes soft memlock unlimited\n@qubes hard memlock unlimited\n"
NOTIFICATIONS = """[D-BUS Service]
Name=org.freedesktop.Notifications
Exec=/usr/lib/qubes/notifications.py
"""


class World(Qubesd):
    """See the module. ``folder`` is on Btrfs, for the pool; all the rest is in ``memory``."""

    def __init__(self, folder: Path, memory: Path, packages: dict[str, Path]) -> None:
        super().__init__(memory / "qubesd")
        self.pool, self.packages = folder / "pool", packages
        self.shared, self.disk = memory / "shared", memory / "disk"
        self.qrexec = self.shared / "qrexec"
        (self.qrexec / BACKUP_VM).mkdir(parents=True)
        self.disk.mkdir(parents=True)
        self.answer(True)
        root, same = base(), (folder, self.shared, memory / "qubesd")
        self.dom0 = Machine(
            "dom0",
            root,
            memory / "dom0",
            {self.qrexec: "/qrexec", **{path: str(path) for path in same}},
        )
        self.vm = Machine(
            BACKUP_VM,
            root,
            memory / BACKUP_VM,
            {self.qrexec / BACKUP_VM: "/qrexec", self.disk: "/disk"},
        )
        self._disks()
        self._furnish_dom0()
        self._furnish_vm()

    def close(self) -> None:
        for machine in (self.vm, self.dom0):
            machine.close()
        super().close()

    def answer(self, yes: bool) -> None:
        """What the user says when dom0 asks."""
        (self.qrexec / "answer").write_text("yes" if yes else "no")

    def asked(self) -> list[str]:
        """What qrexec was asked for, and what became of it."""
        return (self.qrexec / "log").read_text().splitlines()

    def set_up(self) -> None:
        """What the documentation has somebody type, once, to the first backup."""
        self.install_in_dom0(self.packages["dom0"], self.packages["dom0-settings"])
        self.vm.run("apt-get", "install", "-qy", self.place(self.packages["vm"]))
        secret = self.shared / "passphrase"
        secret.write_bytes(PASSPHRASE + b"\n")
        agent = "/usr/bin/sparsebak-agent"
        self.dom0.run(agent, "setup", BACKUP_VM)
        self.dom0.run(
            *f"{agent} archive add laptop --caller {BACKUP_VM} --passphrase-file".split(),
            str(secret),
        )
        self.vm.run("chown", "user", "/mnt")  # which is the backup disk
        self.vm.run(*f"sparsebak init {ARCHIVE} --label laptop --default".split(), user="user")
        self.vm.run("sparsebak", "backup", "--all", user="user")

    def install_in_dom0(self, *packages: Path) -> str:
        where = [str(shutil.copy(package, self.shared)) for package in packages]
        # Debian 12's rpm refuses to install on Debian without this word, which 13's does not know.
        force = "--force-debian"
        options = [force] if force in self.dom0.run("rpm", "--help") else []
        return self.dom0.run("rpm", "-U", "--nodeps", *options, *where)

    def place(self, package: Path) -> str:
        """A package where the backup VM sees it."""
        shutil.copy(package, self.disk)
        return f"/disk/{package.name}"

    def power(self, verb: str) -> None:
        """Start or shut down the backup VM, as Qubes' own tools do."""
        self._vm(self.qubes[BACKUP_VM], verb, "", "")
        end = time.monotonic() + PATIENCE
        while self.qubes[BACKUP_VM].state not in ("Running", "Halted"):
            assert time.monotonic() < end
            time.sleep(0.1)

    def new_qube(self, name: str, klass: str = "AppVM") -> None:
        for volume, disk in self.add(name, klass, "vm-pool", SIZE).volumes.items():
            path = self.pool / f"{disk.vid}.img"
            path.parent.mkdir(parents=True, exist_ok=True)
            if disk.save_on_stop:
                (self.places / f"{name}+{volume}").write_text(str(path))
                fill(path, SIZE, sum(name.encode()))

    def image(self, qube: str) -> Path:
        return self.pool / f"appvms/{qube}/private.img"

    def told(self, machine: Machine) -> list[str]:
        """The notifications that its user has seen."""
        path = machine.root / "home/user/notifications"
        return path.read_text().splitlines() if path.exists() else []

    def sessions(self, volume: str) -> int:
        listed = json.loads(self.vm.run("sparsebak", "list", "--json", user="user"))
        named = {f"{one['qube']}/{one['volume']}": one["sessions"] for one in listed["volumes"]}
        return len(named[volume])

    def _disks(self) -> None:
        self.pools["vm-pool"] = {"driver": "file-reflink", "dir_path": str(self.pool)}
        for name, klass in (
            ("fedora", "TemplateVM"),
            ("work", "AppVM"),
            ("web", "AppVM"),
            (BACKUP_VM, "AppVM"),
        ):
            self.new_qube(name, klass)
        self.qubes["web"].state = "Running"
        running = self.image("web").with_name("private-dirty.img")
        shutil.copy(self.image("web"), running)
        change(running, random.Random(1), resize=False)

    def _furnish_dom0(self) -> None:
        root = self.dom0.root
        self._furnish(root, "dom0", f"{QREXEC['qrexec-daemon']} {BACKUP_VM}")
        shutil.copytree(
            QUBES / "standin/qubesadmin", root / "usr/lib/python3/dist-packages/qubesadmin"
        )
        (root / "etc/tmpfiles.d/qubesd.conf").write_text(
            f"L /run/qubesd.sock - - - - {self.socket}\n"
        )
        (root / "etc/qubes-rpc").mkdir()
        for script in self.services.iterdir():
            shutil.copy(script, root / "etc/qubes-rpc")
        (root / "etc/qubes/policy.d").mkdir(parents=True)
        (root / "etc/qubes-release").write_text("Qubes release 4.3\n")

    def _furnish_vm(self) -> None:
        root = self.vm.root
        self._furnish(root, "vm", QREXEC["qrexec-agent"])
        (root / "etc/qubes-rpc").mkdir()
        script = root / "etc/qubes-rpc/qubes.VMExec"
        script.write_text(f'#!/bin/sh\nexec {QREXEC["qubes-vmexec"]} "$1"\n')
        script.chmod(0o755)
        (root / "usr/share/qubes").mkdir(parents=True)
        (root / "usr/share/qubes/marker-vm").touch()
        (root / "etc/fstab").write_text("/disk /mnt none bind 0 0\n")
        # as qvm-service has it at every start
        (root / "etc/tmpfiles.d/qubes-service.conf").write_text("f /run/qubes-service/sparsebak\n")

    def _furnish(self, root: Path, which: str, command: str) -> None:
        """The stand-ins that both have."""
        library = root / "usr/lib/qubes"
        library.mkdir()
        for script in (HERE / "guest").glob("*.py"):
            shutil.copy(script, library)
            (library / script.name).chmod(0o755)
        shutil.copy(QUBES / "policy.py", library)
        for place in QREXEC.values():
            (root / place.lstrip("/")).symlink_to("/usr/lib/qubes/qrexec.py")
        (root / "etc/security/limits.d/99-qubes.conf").write_text(LIMITS)
        (root / "qrexec").mkdir()
        (root / "var/log/journal").mkdir(exist_ok=True)
        unit = root / f"etc/systemd/system/qubes-qrexec-{which}.service"
        unit.write_text(SERVICE.format(command=command))
        (unit.parent / "multi-user.target.wants").mkdir(exist_ok=True)
        (unit.parent / "multi-user.target.wants" / unit.name).symlink_to(f"../{unit.name}")
        service = root / "usr/share/dbus-1/services/notifications.service"
        service.write_text(NOTIFICATIONS)

    def _vm(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        if qube is self.qubes.get(BACKUP_VM) and verb == "Start":
            qube.state = "Transient"
            self.vm.boot()
        if qube is self.qubes.get(BACKUP_VM) and verb == "Shutdown":
            qube.state = "Transient"
            threading.Thread(target=self._shut_down, args=(qube,)).start()
            return ""
        return super()._vm(qube, verb, argument, payload)

    def _shut_down(self, qube: Qube) -> None:
        self.vm.halt()
        qube.state = "Halted"


def built(folder: Path, version: str = "") -> dict[str, Path]:
    """The packages by the end of their names, of what git has, as ``version`` if one is given."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "-q", HERE.parent.parent, clone], check=True)
    if version:
        for name in ("version", "wire/__init__.py", "debian/changelog"):
            path = clone / name
            path.write_text(path.read_text().replace(VERSION, version, 1))
        git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        subprocess.run([*git, "commit", "-qam", "Another version"], cwd=clone, check=True)
    for kind in ("rpm", "deb"):
        subprocess.run(["make", "-s", kind], cwd=clone, check=True, capture_output=True)
    (vm,) = (clone / "build/deb").glob("*.deb")
    (dom0,) = (clone / "build/rpm").glob("sparsebak-dom0-[0-9]*.rpm")
    (settings,) = (clone / "build/rpm").glob("sparsebak-dom0-settings-[0-9]*.rpm")
    (salt,) = (clone / "build/rpm").glob("sparsebak-dom0-salt-[0-9]*.rpm")
    return {"vm": vm, "dom0": dom0, "dom0-settings": settings, "dom0-salt": salt}
