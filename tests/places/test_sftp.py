# SPDX-License-Identifier: GPL-2.0-or-later
"""SFTP servers as they are found: OpenSSH's own, chrooted, full, and less able; and the ways to it
and the refusals on the way.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot, mounted
from tests.full_disk import empty, fill
from tests.kit import GRAIN
from tests.places.life import Life
from tests.remote.kit import SSHD, Server, ssh_server

INTERNAL = "internal-sftp"
FILTER = Path(__file__).with_name("sftp_filter.py")


@contextlib.contextmanager
def host(folder: Path, subsystem: str = INTERNAL, more: str = "") -> Iterator[Server]:
    """An OpenSSH server with that SFTP subsystem, and more lines in its configuration."""
    folder.mkdir()
    with ssh_server(folder, subsystem, more) as server:
        yield server


def life_at(tmp_path: Path, server: Server, place: str = "") -> Life:
    return Life(tmp_path, place or server.url("there/archive"), server.environment())


def without(*extensions: str) -> str:
    """OpenSSH's SFTP server, whose announcement of these is dropped, and which refuses them."""
    return f"{sys.executable} {FILTER} {','.join(extensions)}"


@pytest.mark.parametrize(
    "lacking",
    [
        ("posix-rename@openssh.com",),
        ("fsync@openssh.com",),
        ("statvfs@openssh.com", "hardlink@openssh.com"),
        ("*",),
    ],
)
def test_a_whole_life_without_extensions(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    with host(tmp_path / "ssh", without(*lacking)) as server:
        life_at(tmp_path, server).live(copy=server.url("there/copy"))
        left = [path.name for path in (tmp_path / "ssh/there").rglob("*") if path.is_file()]
        assert not [name for name in left if name.endswith((".uploading", ".whole"))]


def test_a_whole_life_chrooted(tmp_path: Path) -> None:
    """As hosting companies have it: the login folder is the root, and not to be written to."""
    if os.geteuid() != 0:
        cannot("ChrootDirectory needs root")
    root = Path("/run") / f"sparsebak-places-{os.getpid()}"  # all above it must be root's alone
    (root / "mine").mkdir(parents=True)
    try:
        more = f"ChrootDirectory {root}\nForceCommand internal-sftp\n"
        with host(tmp_path / "ssh", INTERNAL, more) as server:
            url = f"sftp://{server.user}@127.0.0.1:{server.port}"
            life_at(tmp_path, server, f"{url}/mine/archive").live(copy=f"{url}/mine/copy")
            nowhere = Life(tmp_path / "other", f"{url}{tmp_path}/archive", server.environment())
            nowhere.refuses(10, "no archive in", "list")
    finally:
        subprocess.run(["rm", "-rf", root], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    yield from mounted(tmp_path / "disk.img", tmp_path / "disk", 24 << 20, ["mkfs.ext4", "-q"])


@pytest.mark.parametrize("lacking", ["none", "statvfs@openssh.com"])
def test_a_full_server(tmp_path: Path, disk: Path, lacking: str) -> None:
    """It says "Failure" and no more."""
    with host(tmp_path / "ssh", without(lacking)) as server:
        url = f"sftp://{server.user}@127.0.0.1:{server.port}{disk}/archive"
        life = life_at(tmp_path, server, url)
        life.init()
        life.does("backup")
        first = life.site.contents()
        fill(disk)
        life.site.image().write_bytes(first + os.urandom(8 << 20))
        life.refuses(
            1, "disk is (likely )?full|is full", "backup", "--ignore-free-space", within=30
        )
        assert life.assembled("latest") == first
        empty(disk)
        life.does("backup")
        assert life.assembled("latest") == life.site.contents()
        life.does("scrub")
        assert not list(disk.rglob("*.uploading"))


@pytest.mark.parametrize("lacking", ["none", "statvfs@openssh.com"])
def test_room_is_made_on_a_full_server(tmp_path: Path, disk: Path, lacking: str) -> None:
    """Not by rules, which have sessions merged and stored; as the message says then."""
    with host(tmp_path / "ssh", without(lacking)) as server:
        url = f"sftp://{server.user}@127.0.0.1:{server.port}{disk}/archive"
        life = life_at(tmp_path, server, url)
        life.init()
        images = []
        for number in range(4):
            with open(life.site.image(), "r+b") as file:
                file.seek(number * GRAIN)
                file.write(os.urandom(8 * GRAIN))
            life.does("backup")
            images.append(life.site.contents())
        fill(disk)
        rules = ("prune", "--keep-last", "1", "--min-age", "0d", "--max-removed", "100%")
        said = life.refuses(1, "disk is (likely )?full", *rules)
        assert len(life.sessions()) == 4
        (words,) = re.findall(r"\((prune .*?)\)", said)
        life.does(*words.replace("QUBE/VOLUME", "work/private").split(), "--yes")
        life.does(*rules)
        assert life.assembled("latest") == images[-2]
        empty(disk)
        life.warns("it was removed", "backup")
        life.does("scrub")
        assert life.assembled("latest") == images[-1]
        assert not list((disk / "archive/locks").iterdir())


JUMP = "Host jump\n HostName 127.0.0.1\n Port {port}\n IdentityFile {key}\n"
WAYS = {
    "ProxyJump": "ProxyJump jump\n" + JUMP,
    "ProxyCommand": "ProxyCommand ssh -F {config} -W %h:%p jump\n" + JUMP,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_whole_life_by_another_host(tmp_path: Path, way: str) -> None:
    with host(tmp_path / "ssh") as server:
        folder = tmp_path / "ssh"
        config = folder / "home/.ssh/config"
        named = {"port": server.port, "key": folder / "user", "config": config}
        config.write_text(
            f"Host nas\n HostName 127.0.0.1\n Port {server.port}\n IdentityFile {folder}/user\n "
            + WAYS[way].format(**named)
        )
        if way == "ProxyCommand":  # the inner ssh is not told where HOME is
            with open(config, "a") as file:
                file.write(f"Host *\n UserKnownHostsFile {folder}/home/.ssh/known_hosts\n")
        url = f"sftp://{server.user}@nas{folder}/there"
        life_at(tmp_path, server, f"{url}/archive").live(copy=f"{url}/copy")


def test_refusals_on_the_way(tmp_path: Path) -> None:
    """Each at once, in a sentence that says what to do, by every command."""
    with host(tmp_path / "ssh") as server:
        life, home = life_at(tmp_path, server), tmp_path / "ssh/home/.ssh"
        life.init()
        life.does("backup")
        known = (home / "known_hosts").read_text()

        def refused(said: str, place: str = life.place) -> None:
            for command in ("list", "backup", "scrub"):
                life.refuses(1, said, "--archive", place, command)

        (home / "known_hosts").write_text("")
        refused("host key is not known; connect to it once with ssh")
        other = (tmp_path / "ssh/user.pub").read_text().split()[:2]
        (home / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {' '.join(other)}\n")
        refused("host key is another than the known one")
        (home / "known_hosts").write_text(known)
        config = (home / "config").read_text()
        (home / "config").write_text("Host *\n IdentityFile /nonexistent\n IdentitiesOnly yes\n")
        refused("authentication failed")
        (home / "config").write_text(config)
        url = f"sftp://{server.user}@127.0.0.1"
        refused("refused.*check the address", f"{url}:9/archive")
        life.does("backup")


def test_a_host_without_sftp(tmp_path: Path) -> None:
    if not os.path.exists(SSHD):
        cannot(f"{SSHD} is not installed")
    with host(tmp_path / "ssh", "/nonexistent/sftp-server") as server:
        life_at(tmp_path, server).refuses(1, "connection ended|no SFTP|closed", "list", within=60)


def test_a_folder_that_is_not_ours(tmp_path: Path) -> None:
    with host(tmp_path / "ssh") as server:
        url = f"sftp://{server.user}@127.0.0.1:{server.port}/proc/archive"
        said = "does not make the folder /proc/archive: .*this login may write"
        life_at(tmp_path, server, url).refuses(1, said, "init", url, "--label=tests")
