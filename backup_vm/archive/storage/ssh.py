# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection to a host's SFTP service, by OpenSSH's own ``ssh``.

A backup goes where ``ssh`` goes, or its user loses an evening. So everything that stands in the
user's configuration holds, for it is ssh that reads it: Include, Match, ProxyJump, ProxyCommand,
aliases, agents, hardware keys, known hosts. Nothing is asked on a terminal.
"""

import contextlib
import fcntl
import os
import pwd
import re
import select
import subprocess
import time
import weakref
from pathlib import Path
from typing import NamedTuple

from backup_vm import stopping
from backup_vm.archive.storage import objects
from backup_vm.archive.storage.objects import Silent, Unreachable
from backup_vm.errors import ForbiddenError, SparsebakError, UsageError
from common.programs import LastWords

_CONNECTING = 20
"""Seconds for TCP, and for the first line of the server."""
_OPTIONS = {
    "BatchMode": "yes",
    "ClearAllForwardings": "yes",
    "ConnectTimeout": str(_CONNECTING),
    "ConnectionAttempts": "1",
    "ForwardX11": "no",
    "LogLevel": "ERROR",  # no banner: what is left is why it failed
    "RemoteCommand": "none",
    "RequestTTY": "no",
    # A run that was killed leaves ssh waiting for its host: it must not wait for ever.
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "10",
}
_PORT = 22
_PIPE = 1 << 20
_SAID = 4096
_URL = re.compile(
    r"sftp://(?:(?P<user>[^@/:]+)@)?(?P<host>\[[^]/]+\]|[^@/:\[\]]+)(?::(?P<port>[0-9]{1,5}))?/"
)
_KNOWN_HOSTS = "Host key verification failed"
_FINAL = {
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is another than the known one",
    _KNOWN_HOSTS: "its host key is not known; connect to it once with ssh",
    "Permission denied": "authentication failed",
    "Too many authentication failures": "authentication failed",
    "subsystem request failed": "it offers no SFTP",
}
_MISCONFIGURED = (
    "Bad configuration option",
    "Bad owner or permissions",
    "configuration options",
    "No user exists",
)


class Host(NamedTuple):
    """Where to connect to, as a URL says; what it leaves out, ssh's configuration says."""

    name: str
    user: str = ""
    port: str = ""

    @classmethod
    def of(cls, url: str) -> "Host":
        """The host of an ``sftp://`` URL; raise UsageError."""
        match = _URL.match(url)
        wrong = match is not None and any(
            (match[part] or "").startswith("-") for part in ("user", "host")
        )
        if match is None or wrong or not 0 < int(match["port"] or _PORT) < 1 << 16:
            raise UsageError(
                f"{url}: write sftp://USER@HOST:PORT/PATH; keys come from SSH's own configuration"
            )
        # Not by urlsplit: it makes small letters of the name, and aliases in ssh's configuration
        # have capitals.
        return cls(match["host"].strip("[]"), match["user"] or "", match["port"] or "")


class Channel:
    """Bytes to and from the SFTP service. Raises Unreachable, Silent, ForbiddenError,
    SparsebakError.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._configuration = _for_another_home()
        try:
            self._ssh = subprocess.Popen(
                [*self._command(), "-s", "--", host.name, "sftp"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C in a terminal is for us: ssh ends when we end it.
                start_new_session=True,
                bufsize=0,
            )
        except FileNotFoundError:
            raise SparsebakError("ssh is not installed", "install openssh-client") from None
        self._to, self._from = (
            pipe.fileno() for pipe in (self._ssh.stdin, self._ssh.stdout) if pipe is not None
        )
        if self._ssh.stderr is None:
            raise AssertionError("it is a pipe")
        with self._ssh.stderr:
            self._said = LastWords(self._ssh.stderr)
        for fd in (self._to, self._from):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):  # above the user's limit: slower
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE)
        self._received = bytearray()
        self._connected = False
        self._end = weakref.finalize(self, _kill, self._ssh)  # at the process's end, too

    def _command(self) -> list[str]:
        command = ["ssh", *(f"-o{name}={value}" for name, value in _OPTIONS.items())]
        if self._configuration >= 0:
            command.append(f"-F/proc/{os.getpid()}/fd/{self._configuration}")
        if self._host.port:
            command += ["-p", self._host.port]
        if self._host.user:
            command += ["-l", self._host.user]
        return command

    def write(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            self._wait(self._to, select.POLLOUT)
            try:
                view = view[os.write(self._to, view) :]
            except BlockingIOError:
                continue
            except OSError:
                raise self._lost() from None

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._received) < size:
            self._wait(self._from, select.POLLIN)
            try:
                data = os.read(self._from, 1 << 18)
            except BlockingIOError:
                continue
            if not data:
                raise self._lost()
            self._received += data
            self._connected = True
        data = bytes(memoryview(self._received)[:size])
        del self._received[:size]
        return data

    def _wait(self, fd: int, event: int) -> None:
        poll, begun = select.poll(), time.monotonic()
        poll.register(fd, event)
        while not poll.poll(stopping.STEP * 1000):
            stopping.check()
            if time.monotonic() - begun >= objects.silence():
                raise Silent(time.monotonic() - begun)
        stopping.check()

    def _lost(self) -> Exception:
        """Why the connection ended, by what ssh wrote."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._ssh.wait(1)
        said = self._said.text()[-_SAID:].strip()
        lines = [" ".join(line.split()) for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else "the connection ended"
        return Unreachable(last) if self._connected else _reason(self._host.name, said, last)

    def close(self) -> None:
        """End, whatever is on its way."""
        self._end()
        for file in (self._ssh.stdin, self._ssh.stdout):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        if self._configuration >= 0:
            os.close(self._configuration)
            self._configuration = -1


def _kill(ssh: "subprocess.Popen[bytes]") -> None:
    ssh.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        ssh.wait(1)


def _reason(host: str, said: str, last: str) -> Exception:
    for words, meaning in _FINAL.items():
        if words in said:
            return ForbiddenError(f"{host}: {meaning} ({last})")
    if any(words in said for words in _MISCONFIGURED):
        first = " ".join(said.splitlines()[0].split())
        return SparsebakError(f"ssh's configuration for {host}: {first}", f"try: ssh {host}")
    if "banner exchange" in said and "timed out" in said:
        return Silent(_CONNECTING)
    doubtful = "Connection refused" in said or (
        "Could not resolve hostname" in said and "emporary failure" not in said
    )
    return Unreachable(last, waited=_CONNECTING if "timed out" in said else 0, doubtful=doubtful)


def _for_another_home() -> int:
    """Where HOME is not what the password file says: a configuration that leads there, as a
    descriptor; otherwise -1.

    ssh goes by the password file alone, everything else of a user's by HOME.
    """
    home = os.environ.get("HOME", "")
    with contextlib.suppress(KeyError):
        if not home or Path(home) == Path(pwd.getpwuid(os.getuid()).pw_dir):
            return -1
    folder = Path(home or "/nonexistent") / ".ssh"
    names = ("id_ed25519", "id_ecdsa", "id_rsa", "id_ed25519_sk", "id_ecdsa_sk")
    keys = [folder / name for name in names if (folder / name).exists()]
    lines = [f"Include {_quoted(folder / 'config')}"] if (folder / "config").exists() else []
    lines += ["Host *", *(f"IdentityFile {_quoted(key)}" for key in keys)]
    lines += [f"UserKnownHostsFile {_quoted(folder / 'known_hosts')}"]
    lines += ["Match all", "Include /etc/ssh/ssh_config"]
    fd = os.memfd_create("ssh_config")
    os.write(fd, "".join(f"{line}\n" for line in lines).encode())
    return fd


def _quoted(path: Path) -> str:
    return '"{}"'.format(str(path).replace("%", "%%"))
