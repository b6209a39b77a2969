# SPDX-License-Identifier: GPL-2.0-or-later
"""SFTP servers that are not OpenSSH's, and what stands in the user's configuration of ssh."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive.lease import Lease
from backup_vm.archive.storage import objects, open_storage
from backup_vm.archive.storage import sftp_protocol as protocol
from backup_vm.archive.storage.ssh import Channel
from backup_vm.errors import ForbiddenError, NoRoomError, SparsebakError
from tests.remote.kit import Server, know

NAME, SESSION = "packs/ab/0123.pack", "volumes/cd/1.session"
Start = Callable[..., str]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "home/.ssh").mkdir(parents=True)
    for path in (folder / "host", folder / "home/.ssh/id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return folder


@pytest.fixture
def start(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a server with its options; returns an archive's URL there. Its files are in
    ``tmp_path/root``.
    """
    monkeypatch.setenv("HOME", str(keys / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "DELAYS", (0.1, 0.2))
    (tmp_path / "root").mkdir()
    processes = []

    def begin(*words: str) -> str:
        command = [sys.executable, str(Path(__file__).with_name("sftp_server.py"))]
        process = subprocess.Popen(
            [*command, str(tmp_path / "root"), str(keys / "host"), *words], stdout=subprocess.PIPE
        )
        processes.append(process)
        port = int(process.stdout.readline())  # type: ignore[union-attr]
        know(keys / "host.pub", keys / "home/.ssh/known_hosts", port)
        return f"sftp://me@127.0.0.1:{port}/archive"

    yield begin
    for process in processes:
        process.terminate()
        process.communicate()


def there(tmp_path: Path) -> list[str]:
    root = tmp_path / "root/archive"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "words",
    [(), ("posixrename=yes",), ("without=permissions",), ("without=permissions,size,times",)],
)
def test_a_life_on_a_poor_server(start: Start, tmp_path: Path, words: tuple[str, ...]) -> None:
    url = start(*words)
    storage, raw = open_storage(url), os.urandom(300_000)
    storage.prepare()
    assert storage.free() is None and storage.capacity() is None
    for text in (b"one", b"another"):
        storage.write("archive.toml", text)
    storage.write(NAME, raw)
    storage.write(SESSION, b"session")
    for one in (storage, open_storage(url)):
        assert one.read("archive.toml") == b"another" and one.size(NAME) == len(raw)
        assert one.reader(NAME).read(1000, 200_000) == raw[1000:201_000]
        assert one.local(SESSION).read_bytes() == b"session"
        assert one.names("packs", ".pack") == [NAME]
    storage.remove(SESSION)
    assert there(tmp_path) == ["archive.toml", NAME]


@pytest.mark.parametrize("word", ["posixrename=yes", "without=times"])
def test_what_replaces_a_session_within_a_second_is_seen_elsewhere(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Of the same size, where times are whole seconds, or are not told at all."""
    url = start(word)
    writer = open_storage(url)
    writer.write(SESSION, b"one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    there = open_storage(url)
    assert there.local(SESSION).read_bytes() == b"one"
    for text in (b"two", b"six"):
        writer.write(SESSION, text)
        there.refresh()
        assert there.local(SESSION).read_bytes() == text
        assert open_storage(url).local(SESSION).read_bytes() == text


def test_replacing_where_rename_cannot_and_is_cut(start: Start, tmp_path: Path) -> None:
    storage = open_storage(url := start("broken=archive.toml"))
    with pytest.raises(SparsebakError, match="refuses archive.toml"):
        storage.write("archive.toml", b"new at once")  # the very first rename fails
    assert there(tmp_path) == []
    storage.write("archive.toml", b"old")
    storage = open_storage(url := start("broken=archive.toml"))
    with pytest.raises(SparsebakError, match="refuses archive.toml"):
        storage.write("archive.toml", b"new")
    assert there(tmp_path) == ["archive.toml.whole"]
    again = open_storage(url)
    assert again.read("archive.toml") == b"new" and again.exists("archive.toml")
    again.clean()
    assert there(tmp_path) == ["archive.toml"] and again.read("archive.toml") == b"new"


def test_a_disk_that_is_full_there(start: Start, tmp_path: Path) -> None:
    storage = open_storage(url := start("quota=400000"))
    storage.write("archive.toml", b"x")
    for _ in range(2):
        with pytest.raises(SparsebakError, match="server's disk is likely full") as raised:
            storage.write(NAME, os.urandom(1_000_000))
        assert "network" not in raised.value.hint
    assert there(tmp_path) == ["archive.toml"]
    (tmp_path / "root/archive/packs/ab/left.pack.uploading").write_bytes(b"by a run that died")
    again = open_storage(url)
    again.clean()
    assert there(tmp_path) == ["archive.toml"] and again.names("packs", ".uploading") == []


def test_a_lease_where_it_is_full_and_has_no_hard_links(start: Start, tmp_path: Path) -> None:
    """One that was only begun for want of room keeps nobody away, least of all whoever began it."""
    storage, folder = open_storage(start("quota=1000")), tmp_path / "root/archive"
    (folder / "locks").mkdir(parents=True)
    (folder / "full").write_bytes(bytes(1000))
    with pytest.raises(NoRoomError, match="likely full"):
        Lease.acquire(storage.locks(), "PLACE", "backup")
    lease = Lease.acquire(storage.locks(), "PLACE", "prune", makes_room=True)
    lease.check()
    assert storage.locks().list() == {}
    with pytest.raises(NoRoomError, match="does not make the folder .*/packs") as raised:
        storage.write(NAME, b"x")
    assert "make room" in raised.value.hint
    (folder / "full").unlink()
    lease.check()
    assert list(storage.locks().list()) == ["writer-1"]
    lease.release()


def test_a_server_that_takes_few_connections(start: Start) -> None:
    storage = open_storage(start("connections=1"))
    names = [f"volumes/cd/{number}.session" for number in range(5)]
    for name in names:
        storage.write(name, name.encode())
    writers = [
        threading.Thread(target=storage.write, args=(f"{name}x.session", b"x")) for name in names
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(storage.names("volumes", ".session")) == 10


def test_names_that_lead_elsewhere(start: Start, tmp_path: Path) -> None:
    open_storage(start()).write(SESSION, b"session")
    there = open_storage(start("hostile=1"))
    assert there.names("volumes", ".session") == [SESSION]
    there.fetch(there.names("volumes", ".session"))
    assert not list(tmp_path.rglob("escaped*"))


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
