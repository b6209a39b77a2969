# SPDX-License-Identifier: GPL-2.0-or-later
"""Disposables for the stand-in for qubesd: each is a namespace of processes and mounts, with
folders of its own where a disposable has such, and ends with all that is in it.

dom0 calls them by a stand-in for qrexec-client (``dom0_client.py``), they call as one that has
their name (``qrexec_client.py``).
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from tests.qubes.qubesd import Qube, Qubesd, Refusal

HERE = Path(__file__).parent
BOOT = """
mount -t tmpfs none /run
mount -t tmpfs none /mnt
mount -t proc none /proc
mount -t overlay overlay -o lowerdir="$1":/usr/bin /usr/bin
echo ready
exec sleep infinity
"""


class Machine(Qubesd):
    """See the module. ``default_dispvm`` is the default template of disposables, if there is one;
    ``settings`` is what the stand-ins for qrexec are told of the services of qubes.
    """

    def __init__(self, folder: Path, sources: Path | None = None, release: str = "4.3") -> None:
        self.default_dispvm = ""
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.folder, self.client, self.settings = folder, folder / "client", folder / "services"
        super().__init__(folder, sources, release)
        program(self.client, sys.executable, HERE / "dom0_client.py", self.settings)

    def close(self) -> None:
        super().close()
        for name in list(self.running):
            self.end(name)

    def root(self, name: str) -> Path:
        """The folders that a disposable sees."""
        (child,) = children(self.running[name].pid)
        return Path(f"/proc/{child}/root")

    def end(self, name: str) -> None:
        """Whatever ends a disposable: nothing of it is left."""
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def _boot(self, name: str) -> None:
        programs = self.folder / f"{name}-bin"
        programs.mkdir(exist_ok=True)
        settings = {**json.loads(self.settings.read_text()), "source": name}
        (self.folder / name).write_text(json.dumps(settings))
        call = (sys.executable, HERE / "qrexec_client.py", self.folder / name)
        program(programs / "qrexec-client-vm", *call)
        program(programs / "xdg-open", "/bin/sh", "-c", f'echo "$1" >>{settings["shown"]}', "-")
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        process = subprocess.Popen(
            [*command, "sh", "-euc", BOOT, "-", str(programs)], stdout=subprocess.PIPE
        )
        self.running[name] = process
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        settings = json.loads(self.settings.read_text())
        settings["qubes"][name] = children(process.pid)[0]
        self.settings.write_text(json.dumps(settings))

    def _property(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        assert (verb, name) == ("Get", "default_dispvm")
        return f"default=False type=vm {self.default_dispvm}"

    def _vm_property(self, qube: Qube, verb: str, name: str, payload: str) -> str:
        if (verb, name) == ("Get", "klass"):  # one that cannot be set, and is not listed
            return f"default=True type=str {qube.klass}"
        return super()._vm_property(qube, verb, name, payload)

    def _vm(self, qube: Qube, verb: str, argument: str, payload: str) -> str:
        name = next(name for name, one in self.qubes.items() if one is qube)
        if verb == "CreateDisposable":
            if "template_for_dispvms" not in qube.properties:
                raise Refusal("QubesException", "Refusing to create disposable out of this qube")
            new = next(f"disp{n}" for n in range(100, 200) if f"disp{n}" not in self.qubes)
            made = self.add(
                new,
                "DispVM",
                next(iter(self.pools)),
                netvm=(True, "vm", "sys-net"),
                default_dispvm=(True, "vm", name),
            )
            made.tags |= {"created-by-dom0", "disp-created-by-dom0"}
            return new
        ends = verb in ("Kill", "Shutdown")
        if ends and qube.state == "Halted":
            raise Refusal("QubesVMNotStartedError", f"Domain is powered off: {name!r}")
        if verb == "Kill":
            verb = "Shutdown"
        if qube.klass == "DispVM" and verb == "Start" and qube.state == "Halted":
            self._boot(name)
        answer = super()._vm(qube, verb, argument, payload)
        if ends and name in self.running:
            self.end(name)
            del self.qubes[name]
        return answer


def program(path: Path, *words: object) -> None:
    """A program that runs these words and its own arguments."""
    quoted = " ".join("'" + str(word).replace("'", "'\\''") + "'" for word in words)
    path.write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    path.chmod(0o755)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []
