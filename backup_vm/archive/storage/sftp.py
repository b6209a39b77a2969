"""Objects as files on a host reached by SFTP, through ``paramiko``: ``sftp://[USER@]HOST[:PORT]/PATH``.

The host must be known (``~/.ssh/known_hosts``); keys come from the SSH agent or as ``~/.ssh/config`` says. A path that begins
with ``/~/`` is relative to the login folder. Each thread has a connection of its own.
"""

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from backup_vm.archive.storage.objects import Entry, Unreachable
from backup_vm.errors import ForbiddenError, SparsebakError, UsageError

_TIMEOUT = 30.0
_REQUEST = 1 << 15
"""Bytes that any server answers at once (SFTP version 3, section 4)."""
_TEMPORARY = ".uploading"


class SftpHost:
    """See Objects."""

    def __init__(self, url: str) -> None:
        try:
            import paramiko
        except ImportError:
            raise SparsebakError(
                "paramiko is not installed", "install it: pip install sparsebak[remote]"
            ) from None
        self._paramiko = paramiko
        parts = urlsplit(url)
        if not parts.hostname or parts.password or not parts.path.strip("/"):
            raise UsageError(
                f"{url}: write sftp://USER@HOST:PORT/PATH; keys come from SSH's own configuration"
            )
        path = unquote(parts.path)
        self._root = PurePosixPath(path.removeprefix("/~/") if path.startswith("/~/") else path)
        self._where: dict[str, Any] = {
            "hostname": parts.hostname,
            "port": parts.port or 22,
            "username": parts.username,
        }
        self._threads = threading.local()
        self._made: set[PurePosixPath] = set()

    def _client(self) -> Any:
        client = getattr(self._threads, "client", None)
        if client is None:
            client = self._threads.client = self._connect()
        return client

    def _connect(self) -> Any:
        ssh = self._paramiko.SSHClient()
        ssh.load_system_host_keys()
        ssh.set_missing_host_key_policy(self._paramiko.RejectPolicy())
        options = self._configured()
        ssh.connect(**options, timeout=_TIMEOUT, banner_timeout=_TIMEOUT, auth_timeout=_TIMEOUT)
        client = ssh.open_sftp()
        client.get_channel().settimeout(_TIMEOUT)
        self._threads.ssh = ssh
        return client

    def _configured(self) -> dict[str, Any]:
        """Where to connect to, as ``~/.ssh/config`` has it."""
        path, options = Path.home() / ".ssh/config", dict(self._where)
        if path.exists():
            with open(path) as file:
                found = self._paramiko.SSHConfig.from_file(file).lookup(options["hostname"])
            options["hostname"] = found.get("hostname", options["hostname"])
            options["username"] = options["username"] or found.get("user")
            if self._where["port"] == 22:
                options["port"] = int(found.get("port", 22))
            if "identityfile" in found:
                options["key_filename"] = [
                    os.path.expanduser(name) for name in found["identityfile"]
                ]
        return options

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """A connection; after an error that may pass, the next one is a new one."""
        ssh = self._paramiko.ssh_exception
        try:
            yield self._client()
        except (ssh.BadHostKeyException, ssh.AuthenticationException) as error:
            if "transport shut down" in str(error):
                raise Unreachable(str(error)) from None
            raise ForbiddenError(f"{self._where['hostname']}: {error}") from None
        except FileNotFoundError as error:
            raise FileNotFoundError(str(error)) from None
        except PermissionError as error:
            raise ForbiddenError(f"{self._where['hostname']} refuses: {error}") from None
        except (OSError, EOFError, ssh.SSHException) as error:
            self._hang_up()
            if "not found in known_hosts" in str(error):
                raise ForbiddenError(f"{error}; connect to it once with ssh") from None
            raise Unreachable(str(error) or type(error).__name__) from None

    def _hang_up(self) -> None:
        connection = getattr(self._threads, "ssh", None)
        if connection is not None:
            connection.close()
        self._threads.client = self._threads.ssh = None

    def list(self) -> Iterator[tuple[str, Entry]]:
        """See Objects."""
        with self._asking() as client:
            yield from self._walk(client, "")

    def _walk(self, client: Any, folder: str) -> Iterator[tuple[str, Entry]]:
        try:
            found = client.listdir_attr(str(self._root / folder))
        except FileNotFoundError:
            return
        for item in found:
            name = f"{folder}/{item.filename}".lstrip("/")
            if stat.S_ISDIR(item.st_mode):
                yield from self._walk(client, name)
            else:
                yield name, Entry(int(item.st_size), str(item.st_mtime))

    def get(self, name: str, target: Path) -> None:
        """See Objects."""
        with self._asking() as client:
            client.get(str(self._root / name), str(target))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        """See Objects."""
        with self._asking() as client, client.open(str(self._root / name), "rb") as file:
            end = offset + length
            return b"".join(
                file.readv([(at, min(_REQUEST, end - at)) for at in range(offset, end, _REQUEST)])
            )

    def put(self, name: str, source: Path) -> str:
        """See Objects."""
        path = self._root / name
        with self._asking() as client:
            self._make(client, path.parent)
            client.put(str(source), f"{path}{_TEMPORARY}")
            client.posix_rename(f"{path}{_TEMPORARY}", str(path))
            return str(client.stat(str(path)).st_mtime)

    def _make(self, client: Any, folder: PurePosixPath) -> None:
        if folder in self._made or str(folder) in ("/", "."):
            return
        try:
            client.stat(str(folder))
        except FileNotFoundError:
            self._make(client, folder.parent)
            try:
                client.mkdir(str(folder))
            except OSError:  # another thread was first
                client.stat(str(folder))
        self._made.add(folder)

    def delete(self, name: str) -> None:
        """See Objects."""
        with self._asking() as client, suppress(FileNotFoundError):
            client.remove(str(self._root / name))
