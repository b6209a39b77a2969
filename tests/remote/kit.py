# SPDX-License-Identifier: GPL-2.0-or-later
"""Real servers on loopback: an S3-compatible store and an SSH host, and between them and us a
network that fails.
"""

import contextlib
import os
import pwd
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import cannot
from tests.patience import PATIENCE

SSHD = "/usr/sbin/sshd"


@dataclass(frozen=True)
class Server:
    """Where an archive can be made: ``url`` of a fresh place through a port, ours or a proxy's.

    ``kind``: ``s3``, ``sftp``, or ``local`` for a folder, to which no port leads.
    """

    kind: str
    port: int
    folder: Path

    def url(self, name: str, port: int = 0) -> str:
        if self.kind == "s3":
            return f"s3://bucket/{name}"
        if self.kind == "local":
            return f"{self.folder}/{name}"
        return f"sftp://{self.user}@127.0.0.1:{port or self.port}{self.folder}/{name}"

    @property
    def user(self) -> str:
        """Who logs in."""
        return pwd.getpwuid(os.getuid()).pw_name

    def environment(self, port: int = 0) -> dict[str, str]:
        """What leads to it through a port."""
        if self.kind == "local":
            return {}
        if self.kind == "sftp":
            return {"HOME": str(self.folder / "home"), "SSH_AUTH_SOCK": ""}
        keys = {
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_REGION": "us-east-1",
        }
        return keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}"}

    def know(self, port: int) -> None:
        """Let the SSH host be known by another port, too."""
        if self.kind == "sftp":
            know(self.folder / "host.pub", self.folder / "home/.ssh/known_hosts", port)


def know(key: Path, known: Path, port: int) -> None:
    """Let a host's key be known for a port of loopback."""
    with open(known, "a") as file:
        file.write(f"[127.0.0.1]:{port} {' '.join(key.read_text().split()[:2])}\n")


def free_port() -> int:
    """One that nobody has, below those that the kernel gives to whoever connects or asks for any:
    by the time that the server listens no other test has got it.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10_000, max(lowest, 20_000))
        with contextlib.suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port


def wait_for(port: int, process: "subprocess.Popen[bytes]", patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for(port, process)
            request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
            urllib.request.urlopen(request, timeout=PATIENCE).close()
            yield Server("s3", port, folder)
        finally:
            process.terminate()


@contextlib.contextmanager
def ssh_server(folder: Path, subsystem: str = "internal-sftp", more: str = "") -> Iterator[Server]:
    """OpenSSH's, with what answers for SFTP, and more lines in its configuration."""
    if not os.path.exists(SSHD):
        cannot(f"{SSHD} is not installed")
    port, home = free_port(), folder / "home/.ssh"
    home.mkdir(parents=True)
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    (home / "config").write_text(f"Host 127.0.0.1\n    IdentityFile {folder}/user\n")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile"
        f" {folder}/user.pub\nPidFile none\n"
        "UsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp"
        f" {subsystem}\n"
        "MaxStartups 100\nKexAlgorithms curve25519-sha256\n"  # the default takes five times as long
        + more
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", folder / "sshd_config"], stdout=log, stderr=log
        )
    try:
        wait_for(port, process)
        server = Server("sftp", port, folder)
        server.know(port)
        yield server
    finally:
        process.terminate()
        process.wait()


class Network:
    """A TCP proxy before a server. ``fail_after``: bytes until all connections are cut; ``down``:
    no new ones either.

    ``stall_after``: bytes until nothing passes any more, in either direction; ``late``: whether
    what was on its way then arrives when the network works again; ``pause``: seconds before each 16
    KiB.
    """

    def __init__(self, server: Server) -> None:
        self.port, self._server = free_port(), server
        self.fail_after: int | None = None
        self.down = False
        self.stall_after: int | None = None
        self.stalled = threading.Event()
        self.late = False
        self._mended = threading.Event()
        self.pause = 0.0
        self.cuts = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=100)
        server.know(self.port)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                inner, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                inner.close()
                continue
            try:
                outer = socket.create_connection(("127.0.0.1", self._server.port))
            except OSError:
                inner.close()
                continue
            with self._lock:
                self._open |= {inner, outer}
            for a, b in ((inner, outer), (outer, inner)):
                threading.Thread(target=self._pass_on, args=(a, b), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                with self._lock:
                    if self.fail_after is not None:
                        self.fail_after -= len(data)
                    failing = self.fail_after is not None and self.fail_after <= 0
                if failing:
                    self.cut()
                    return
                if (mended := self._stalls(len(data))) is not None:
                    mended.wait(3600)
                    if not self.late:
                        time.sleep(3600)
                time.sleep(self.pause)
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def url(self, name: str) -> str:
        """Of a fresh place, by this way."""
        return self._server.url(name, self.port)

    def _stalls(self, size: int) -> threading.Event | None:
        """What to wait for before so many bytes may pass; None while they may."""
        with self._lock:
            if self.stall_after is None:
                return None
            self.stall_after -= size
            if self.stall_after > 0:
                return None
            self.stalled.set()
            return self._mended

    def cut(self) -> None:
        """End every connection."""
        self.cuts += 1
        with self._lock:
            connections, self._open = self._open, set()
        for one in connections:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def mend(self) -> None:
        """Work again, for as long as nothing else is said."""
        self.fail_after, self.down, self.pause = None, False, 0.0
        with self._lock:
            self.stall_after = None
            self.stalled.clear()
            mended, self._mended = self._mended, threading.Event()
        mended.set()

    def flap(self, rng: random.Random, upto: int) -> threading.Event:
        """Cut everything again and again, after up to so many bytes each time, until the event is
        set.
        """
        done = threading.Event()

        def go_on() -> None:
            while not done.is_set():
                if self.fail_after is None or self.fail_after <= 0:
                    self.fail_after = rng.randrange(upto)
                time.sleep(0.05)

        threading.Thread(target=go_on, daemon=True).start()
        return done

    def close(self) -> None:
        self._listener.close()
        self.cut()
