# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with an init of its own: systemd-nspawn over a root and what was changed in it."""

import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
BOOT, HALT = 240.0, 120.0


class Machine:
    """A machine that can be booted and shut down again and again; its disk is ``root``.

    ``changes`` is a folder for what differs from ``base``; ``binds`` are folders of the host, by
    their place inside.
    """

    def __init__(self, name: str, base: Path, changes: Path, binds: dict[Path, str]) -> None:
        self.name, self.binds = name, binds
        self.root, upper, work = (changes / part for part in ("root", "upper", "work"))
        for folder in (self.root, upper, work):
            folder.mkdir(parents=True)
        options = f"lowerdir={base},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, self.root], check=True)
        (self.root / "etc/hostname").write_text(f"{name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost {name}\n")
        self.log = changes / "console"
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> None:
        """Return when systemd says that all is started."""
        assert self._process is None
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = self.log.with_name("notify")
        path.unlink(missing_ok=True)
        told.bind(str(path))
        told.settimeout(BOOT)
        command = [
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--notify-ready=yes",
            f"--directory={self.root}", f"--machine=sparsebak-{os.getpid()}-{self.name}",
            f"--hostname={self.name}", "--private-network", "--capability=all",
            "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only",
            *(f"--bind={outside}:{inside}" for outside, inside in self.binds.items()),
        ]  # fmt: skip
        if not Path("/run/systemd/system").exists():  # else systemd makes a scope
            command.append("--keep-unit")
        enter = "".join(f"echo $$ >{group}/cgroup.procs; " for group in self._cgroups(make=True))
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-euc", f"{enter}exec {shlex.join(command)}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(path)},
            )  # fmt: skip
        ready = False
        while not (ready and self._leader):
            try:
                said = told.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(f"{self.name} does not boot:\n{self.console()}") from None
            ready = ready or "READY=1" in said.splitlines()
            if found := re.search(r"^X_NSPAWN_LEADER_PID=(\d+)$", said, re.MULTILINE):
                self._leader = int(found[1])
        told.close()

    def halt(self) -> None:
        """As its power button does it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(HALT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"{self.name} does not halt:\n{self.console()}") from None
            finally:
                self._process, self._leader = None, 0
                self._cgroups(make=False)

    def close(self) -> None:
        try:
            self.halt()
        finally:
            subprocess.run(["umount", self.root], check=True)

    @property
    def running(self) -> bool:
        return self._process is not None

    def console(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def run(self, *command: str, user: str = "root", ok: bool = True) -> str:
        """What somebody types in a terminal of it: what it prints, on both streams."""
        code, said = self.outcome(*command, user=user)
        assert code == 0 or not ok, f"{self.name}: {shlex.join(command)}: {code}\n{said}"
        return said

    def outcome(self, *command: str, user: str = "root") -> tuple[int, str]:
        into = ["nsenter", "--target", str(self._leader), "-m", "-u", "-i", "-n", "-p"]
        switch = [] if user == "root" else ["runuser", "-u", user, "--"]
        home = "/root" if user == "root" else f"/home/{user}"
        done = subprocess.run(
            [*into, *switch, *command],
            env={**ENVIRONMENT, "HOME": home}, check=False, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240,
        )  # fmt: skip
        return done.returncode, done.stdout

    def shown(self, unit: str, name: str) -> str:
        """A property of a unit, as systemd sees it."""
        return self.run("systemctl", "show", "--value", "-p", name, unit).strip()

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)

    def done(self, service: str, before: str, seconds: float = 240.0) -> str:
        """Wait for a service to have run since its invocation ``before``: its result."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = self.run("systemctl", "show", "-p", "InvocationID,ActiveState,Result", service)
            now = dict(line.split("=", 1) for line in shown.splitlines())
            if now["InvocationID"] not in ("", before) and now["ActiveState"] in (
                "inactive",
                "failed",
            ):
                return now["Result"]
            time.sleep(0.1)
        raise AssertionError(f"{self.name}: {service} was not started:\n{self.journal(service)}")

    def _cgroups(self, make: bool) -> list[Path]:
        """Control groups of its own for each hierarchy, where no systemd makes one."""
        if Path("/run/systemd/system").exists():
            return []
        parents = [CGROUPS / name for name in ("systemd", "unified")]
        if (CGROUPS / "cgroup.controllers").exists():
            parents = [CGROUPS]
        groups = [parent / f"sparsebak-{os.getpid()}-{self.name}" for parent in parents]
        for group in groups:
            if make:
                group.mkdir(exist_ok=True)
            elif group.exists():
                for inner, _, _ in os.walk(group, topdown=False):
                    os.rmdir(inner)
        return groups
