# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenSSH's SFTP server, and what stands in the user's configuration of ssh."""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive.storage import open_storage
from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.ssh import Channel
from backup_vm.errors import ForbiddenError, SparsebakError
from tests.remote.kit import Server, know

NAME, SESSION = "packs/ab/0123.pack", "volumes/cd/1.session"


def test_what_is_no_regular_file_is_not_there(
    sftp: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in sftp.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = open_storage(sftp.url("irregular"))
    storage.write(NAME, b"pack")
    folder = sftp.folder / "irregular/packs/ab"
    os.mkfifo(folder / "fifo.pack")
    (folder / "link.pack").symlink_to("/etc/passwd")
    (folder / "folder.pack").mkdir()
    (folder / os.fsdecode(b"\xff.pack")).touch()
    assert open_storage(sftp.url("irregular")).names("packs", ".pack") == [NAME]


@pytest.fixture
def place(sftp: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """OpenSSH's server, which can be reached."""
    for name, value in sftp.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return sftp


def test_how_often_the_server_is_waited_for(place: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a far one each time is 20 ms or more, whatever it is about."""
    waits, asked = 0, False
    write, read = Channel.write, Channel.read

    def writing(self: Channel, data: bytes | memoryview) -> None:
        nonlocal asked
        asked = True
        write(self, data)

    def reading(self: Channel, size: int) -> bytes:
        nonlocal waits, asked
        waits, asked = waits + asked, False
        return read(self, size)

    def waited(action: Callable[[], object]) -> int:
        nonlocal waits
        waits = 0
        action()
        return waits

    monkeypatch.setattr(Channel, "write", writing)
    monkeypatch.setattr(Channel, "read", reading)
    storage = open_storage(place.url("waits"))
    storage.write(SESSION, b"session")
    storage.write("archive.toml", b"x" * 1000)
    storage.locks().create("writer-1", b"lease")
    assert waited(storage.refresh) <= 4  # two levels at once, then the third
    assert waited(lambda: storage.write("volumes/cd/2.session", os.urandom(100_000))) <= 5
    assert waited(lambda: storage.locks().create("writer-2", b"lease")) <= 4
    assert waited(lambda: storage.locks().renew("writer-2", b"lease")) <= 3
    assert waited(lambda: storage.locks().read("writer-2")) <= 3
    assert waited(storage.locks().list) <= 2


def test_what_the_server_cannot_make_durable_is_not_stored(
    place: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(place.url("volatile"))
    storage.write(NAME, b"old")
    send = protocol.Client.begin

    def of_no_file(self: protocol.Client, name: bytes, body: bytes) -> int:
        return send(self, name, protocol.text(b"none") if name.startswith(b"fsync") else body)

    monkeypatch.setattr(protocol.Client, "begin", of_no_file)
    for name in (NAME, "packs/ab/4567.pack"):
        with pytest.raises((SparsebakError, FileNotFoundError)):  # as of a file that is not there
            storage.write(name, b"new")
    monkeypatch.undo()
    folder = place.folder / "volatile/packs/ab"
    assert [path.name for path in folder.iterdir()] == [Path(NAME).name]
    assert (folder / Path(NAME).name).read_bytes() == b"old"


def test_a_folder_that_is_a_link_is_not_there(place: Server) -> None:
    """Also one that is asked for before a listing has shown what it is."""
    open_storage(place.url("elsewhere")).write(NAME, b"pack")
    open_storage(place.url("linked")).write(SESSION, b"session")
    (place.folder / "linked/packs").symlink_to(place.folder / "elsewhere/packs")
    there = open_storage(place.url("linked"))
    assert there.names("packs", ".pack") == [] and there.exists(SESSION)


CONFIGURED = {
    "an alias": "Host Nas\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n User {user}\n",
    "include": "Include {home}/more\n",
    "match": 'Match exec "true"\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n',
    "jump": "Host Nas\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n ProxyJump way\n"
    "Host way\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n",
    "command": "Host Nas\n HostName nowhere.invalid\n HostKeyAlias [127.0.0.1]:{port}\n"
    " IdentityFile {key}\n ProxyCommand {python} {relay} {port}\n",
    "known hosts elsewhere": "Host Nas\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n"
    " UserKnownHostsFile {home}/known_elsewhere\n",
}
RELAY = """import os, socket, sys, threading
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
def up():
    while data := os.read(0, 65536): one.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := one.recv(65536): os.write(1, data)
"""


@contextlib.contextmanager
def configured(server: Server, text: str) -> Iterator[Path]:
    """A home with that configuration; it knows the host."""
    home = server.folder / "home/.ssh"
    kept = {name: (home / name).read_text() for name in ("config", "known_hosts")}
    try:
        (home / "config").write_text(text)
        yield home
    finally:
        for name, before in kept.items():
            (home / name).write_text(before)


@pytest.mark.parametrize("kind", CONFIGURED)
def test_the_configuration_of_ssh_holds(
    sftp: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    for name, value in sftp.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "relay.py").write_text(RELAY)
    values = {
        "port": sftp.port,
        "key": sftp.folder / "user",
        "home": tmp_path,
        "user": sftp.user,
        "python": sys.executable,
        "relay": tmp_path / "relay.py",
    }
    (tmp_path / "more").write_text(CONFIGURED["an alias"].format(**values))
    with configured(sftp, CONFIGURED[kind].format(**values)) as home:
        if "known" in kind:
            (home / "known_hosts").rename(tmp_path / "known_elsewhere")
        storage = open_storage(f"sftp://{sftp.user}@Nas{sftp.folder}/{kind.replace(' ', '')}")
        storage.write("archive.toml", b"there")
        assert storage.read("archive.toml") == b"there" and (storage.free() or 0) > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Host *\n NoSuchWord yes\n", "(?i)bad configuration option.*nosuchword"),
        ("Host *\n IdentityFile /nonexistent\n IdentitiesOnly yes\n", "authentication failed"),
        ("Host *\n UserKnownHostsFile /dev/null\n", "not known; connect to it once"),
    ],
)
def test_what_ssh_refuses_is_said_at_once(
    sftp: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, said: str
) -> None:
    for name, value in sftp.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with configured(sftp, text), pytest.raises(SparsebakError) as raised:
        open_storage(sftp.url("x")).exists("archive.toml")
    assert re.search(said, str(raised.value)), raised.value
    assert isinstance(raised.value, ForbiddenError) or "NoSuchWord" in text


def test_another_host_key_than_the_known_one(
    sftp: Server, keys: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in sftp.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with configured(sftp, "") as home:
        (home / "known_hosts").write_text("")
        know(keys / "host.pub", home / "known_hosts", sftp.port)
        with pytest.raises(ForbiddenError, match="another than the known one"):
            open_storage(sftp.url("x")).exists("archive.toml")
