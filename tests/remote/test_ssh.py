# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands in the user's configuration of ssh holds, and what ssh refuses is said."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive.storage import open_storage
from backup_vm.errors import ForbiddenError, SparsebakError
from tests.remote.kit import Server, know

KEYGEN = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f")
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
def test_the_configuration_of_ssh_holds(place: Server, tmp_path: Path, kind: str) -> None:
    (tmp_path / "relay.py").write_text(RELAY)
    values = {
        "port": place.port,
        "key": place.folder / "user",
        "home": tmp_path,
        "user": place.user,
        "python": sys.executable,
        "relay": tmp_path / "relay.py",
    }
    (tmp_path / "more").write_text(CONFIGURED["an alias"].format(**values))
    with configured(place, CONFIGURED[kind].format(**values)) as home:
        if "known" in kind:
            (home / "known_hosts").rename(tmp_path / "known_elsewhere")
        storage = open_storage(f"sftp://{place.user}@Nas{place.folder}/{kind.replace(' ', '')}")
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
def test_what_ssh_refuses_is_said_at_once(place: Server, text: str, said: str) -> None:
    with configured(place, text), pytest.raises(SparsebakError) as raised:
        open_storage(place.url("x")).exists("archive.toml")
    assert re.search(said, str(raised.value)), raised.value
    assert isinstance(raised.value, ForbiddenError) or "NoSuchWord" in text


def test_another_host_key_than_the_known_one(place: Server, tmp_path: Path) -> None:
    with configured(place, "") as home:
        (home / "known_hosts").write_text("")
        subprocess.run([*KEYGEN, tmp_path / "other"], check=True)
        know(tmp_path / "other.pub", home / "known_hosts", place.port)
        with pytest.raises(ForbiddenError, match="another than the known one"):
            open_storage(place.url("x")).exists("archive.toml")
