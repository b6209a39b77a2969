# SPDX-License-Identifier: GPL-2.0-or-later
"""The second reader, written from docs/format.md alone, on every kind of archive."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from backup_vm.archive.prune import prune
from dom0_agent.admin import archives
from dom0_agent.keyring import Keyring
from tests.kit import GRAIN, PASSPHRASE, Site, change, fill
from tests.patience import PATIENCE
from wire import slots
from wire.chunks import SUITES

READER = Path(__file__).parent.parent.parent / "docs/reader.py"


def read(
    site: Site, folder: Path, *words: str, secret: bytes = PASSPHRASE
) -> subprocess.CompletedProcess[str]:
    file = site.root / "secret"
    file.write_bytes(secret + b"\n")
    environment = {"SPARSEBAK_PASSPHRASE_FILE": str(file), "PATH": "/usr/bin:/bin"}
    told = ["--open"] if "key = " in (folder / "archive.toml").read_text() else []
    command = [sys.executable, str(READER), str(folder), *words, *told]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd="/", check=False
    )


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("chunk_size", [64 << 10, 1 << 20])
@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("padded", [True, False])
def test_every_session_of_every_kind_of_archive(
    tmp_path: Path, sealed: bool, chunk_size: int, padded: bool, suite: int
) -> None:
    site = Site(
        tmp_path / "site",
        sealed=sealed,
        chunk_size=chunk_size,
        volumes=("work/private", "vault/root"),
        suite=suite,
    )
    if padded:
        site.config.write_text("chunk_padding = 16384\n" + site.config.read_text())
    rng = random.Random(chunk_size)
    for name in site.volumes:
        fill(site.image(name), 40 * GRAIN + 321)
    contents: dict[str, list[bytes]] = {name: [] for name in site.volumes}
    for _ in range(4):
        site.backup()
        for name in site.volumes:
            contents[name].append(site.contents(name))
            change(site.image(name), rng)
    with site.open(True) as archive:
        prune(archive, [series[1] for series in archive.sessions().values()])
    (site.archive / "catalog.sqlite").unlink()
    listed = [line.split()[:2] for line in read(site, site.archive, "list").stdout.splitlines()]
    assert [name for name, _ in listed] == ["vault/root"] * 3 + ["work/private"] * 3
    for at, (name, session) in enumerate(listed):
        target = tmp_path / f"image-{at}"
        done = read(site, site.archive, "assemble", name, session, str(target))
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == contents[name][(0, 2, 3)[at % 3]]


def test_the_recovery_key_opens_it_and_a_wrong_one_does_not(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backup_vm.agent.client import Agent
    from backup_vm.archive.opening import create_archive
    from backup_vm.archive.parameters import Parameters
    from dom0_agent.config import load
    from tests.in_process import InProcess

    monkeypatch.setattr(slots, "SCRYPT_LOG_N", 10)
    _, recovery = archives.add(
        Keyring(load(site.config).state_dir), "other", "backup-vm", 1, 64 << 10, PASSPHRASE
    )
    entry, found, _ = Agent(InProcess(site.config)).enroll("other")
    folder = site.root / "other"
    create_archive(
        folder,
        Parameters(
            entry.archive, "other", entry.suite, entry.chunk_size, entry.created, tuple(found), None
        ),
    )
    fill(site.image(), 10 * GRAIN)
    site.backup(folder=folder)
    text = slots.recovery_text(recovery or b"")
    assert read(site, folder, "list", secret=text.lower().encode()).returncode == 0
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    for secret in (wrong.encode(), b"", b"guess"):
        done = read(site, folder, "list", secret=secret)
        assert (
            done.returncode == 1
            and "does not open" in done.stderr
            and "Traceback" not in done.stderr
        )


def test_a_sealed_archive_never_turns_open(site: Site, tmp_path: Path) -> None:
    """What somebody with the storage can do: an archive of his own, of the same label, that says it
    is open.
    """
    forged = Site(tmp_path / "forged", sealed=False)
    fill(forged.image(), 2 * GRAIN)
    forged.backup()
    secret = tmp_path / "secret"
    secret.write_bytes(PASSPHRASE + b"\n")
    environment = {"SPARSEBAK_PASSPHRASE_FILE": str(secret), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, str(READER), str(forged.archive), "list"]
    for words, environ, code in (
        ([], environment, 1),
        (["--open"], environment, 0),
        ([], {"PATH": "/usr/bin:/bin"}, 0),
    ):
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, env=environ, check=False
        )
        assert done.returncode == code and ("says that it is open" in done.stderr) == bool(code)
    done = subprocess.run(
        [sys.executable, str(READER), str(site.archive), "list", "--open"],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "is sealed" in done.stderr


def test_damage_is_noticed(site: Site) -> None:
    site.image().write_bytes(random.Random(1).randbytes(10 * GRAIN))
    site.backup()
    pack = next(site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[GRAIN] ^= 1
    pack.write_bytes(raw)
    done = read(site, site.archive, "assemble", "work/private", "latest", str(site.root / "image"))
    assert done.returncode == 1 and "lost or damaged" in done.stderr


def test_damage_is_for_what_needs_it(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", sealed=False, volumes=("work/private", "vault/root"))
    for name in site.volumes:
        fill(site.image(name), 5 * GRAIN)
    for _ in range(2):
        for name in site.volumes:
            site.backup(name)
            change(site.image(name), random.Random(1))
    with site.open() as archive:
        ours, theirs = (
            archive.sessions(archive.parameters.keys().volume_id(*name.split("/")).hex())  # type: ignore[union-attr]
            for name in site.volumes
        )
    (work,), (vault,) = ours.values(), theirs.values()
    (site.archive / vault[0].file).unlink()
    os.mkfifo(site.archive / vault[0].file)
    (site.archive / vault[1].file).write_bytes(b"x" * 9999)
    (site.archive / "packs/aa").mkdir(exist_ok=True)
    (site.archive / f"packs/aa/{'a' * 32}.pack").write_bytes(b"x" * 99)
    words = ("assemble", "work/private", work[1].name, str(tmp_path / "image"))
    done = read(site, site.archive, *words)
    assert done.returncode == 0 and vault[1].file in done.stderr and "a" * 32 in done.stderr
    assert (tmp_path / "image").read_bytes() == site.images()[work[1].name]
    (site.archive / work[0].file).unlink()
    done = read(site, site.archive, *words[:-1], str(tmp_path / "other"))
    assert done.returncode == 1 and "is missing" in done.stderr


@pytest.mark.parametrize("kind", ["damaged", "fifo"])
def test_no_older_session_is_the_latest(tmp_path: Path, kind: str) -> None:
    """Of the volume whose newest one is damaged; it must be named."""
    site = Site(tmp_path / "site", sealed=False, volumes=("work/private", "vault/root"))
    for _ in range(2):
        for seed, name in enumerate(site.volumes):
            fill(site.image(name), 5 * GRAIN, seed)
            change(site.image(name), random.Random(site.image(name).stat().st_mtime_ns))
        site.backup()
    images = site.images()
    names, target = sorted(images), tmp_path / "image"
    last = max(site.archive.glob(f"volumes/{volume_of(site)}/*.session"))
    raw = last.read_bytes()
    last.unlink()
    if kind == "fifo":
        os.mkfifo(last)
    else:
        last.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    words = ("assemble", "work/private", "latest", str(target))
    done = read(site, site.archive, *words)
    assert done.returncode == 1 and not target.exists(), done.stderr
    assert str(last) in done.stderr and f"before it: {names[0]}" in done.stderr
    done = read(site, site.archive, *words[:2], names[0], str(target))
    assert done.returncode == 0 and target.read_bytes() == images[names[0]]
    other = read(site, site.archive, "assemble", "vault/root", "latest", str(tmp_path / "other"))
    assert other.returncode == 0 and (tmp_path / "other").read_bytes() == site.contents(
        "vault/root"
    )


def test_copies_beside_sessions_are_no_sessions(site: Site, tmp_path: Path) -> None:
    """Of a program that synchronises folders, say; one that is older than a prune, or damaged."""
    for seed in range(3):
        fill(site.image(), 5 * GRAIN + seed)
        site.backup()
    images, folder = site.images(), site.archive / "volumes" / volume_of(site)
    files = sorted(folder.glob("*.session"))
    for file in (files[0], files[2]):
        (folder / f"{file.stem} (conflicted copy).session").write_bytes(file.read_bytes())
    (folder / f"{files[2].stem} (2).session").write_bytes(b"x")
    (folder / f"._{files[2].name}").write_bytes(b"\0\5\26\7\0\2")
    with site.open(True) as archive:
        prune(archive, [next(iter(archive.sessions().values()))[1]])
    listed = [line.split()[1] for line in read(site, site.archive, "list").stdout.splitlines()]
    assert listed == [name for at, name in enumerate(sorted(images)) if at != 1]
    for at, name in enumerate([*listed, "latest"]):
        target = tmp_path / f"image-{at}"
        done = read(site, site.archive, "assemble", "work/private", name, str(target))
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == images[max(images) if name == "latest" else name]
    files[2].write_bytes(files[0].read_bytes())
    done = read(site, site.archive, "assemble", "work/private", "latest", str(tmp_path / "none"))
    assert done.returncode == 1 and f"it holds {files[0].name}" in done.stderr


def volume_of(site: Site, name: str = "work/private") -> str:
    with site.open() as archive:
        keys = site.keys(archive)
        return keys.volume_id(*name.split("/")).hex()


@pytest.mark.parametrize("kind", ["fifo", "endless", "huge", "folder"])
def test_parameters_that_are_no_small_regular_file(site: Site, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    path = folder / "archive.toml"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with open(path, "wb") as file:
            file.truncate(8 << 30)
    else:
        path.mkdir()
    done = subprocess.run(
        [sys.executable, str(READER), str(folder), "list"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr and "archive.toml" in done.stderr


def test_an_image_has_its_name_when_it_is_whole(site: Site, tmp_path: Path) -> None:
    fill(site.image(), 40 * GRAIN)
    site.backup()
    (pack,) = site.archive.rglob("*.pack")
    raw, target = pack.read_bytes(), tmp_path / "image"
    pack.write_bytes(raw[:3000] + bytes(1000) + raw[4000:])
    words = ("assemble", "work/private", "latest", str(target))
    done = read(site, site.archive, *words)
    assert done.returncode == 1 and "lost or damaged" in done.stderr and not target.exists()
    pack.write_bytes(raw)
    assert read(site, site.archive, *words).returncode == 0
    assert target.read_bytes() == site.contents() and list(tmp_path.glob("image*")) == [target]
    done = read(site, site.archive, *words)
    assert done.returncode == 1 and f"{target} exists" in done.stderr


def test_it_shares_no_code_and_is_short() -> None:
    text = READER.read_text()
    assert len(text.splitlines()) <= 350
    packages = ("common", "wire", "backup_vm", "dom0_agent")
    assert not any(
        f"{word} {package}" in text for word in ("import", "from") for package in packages
    )


def test_the_emergency_page_can_be_followed(site: Site, tmp_path: Path) -> None:
    """The commands of docs/emergency.md as they stand, except for the archive's place and what
    needs root.
    """
    fill(site.image(), 10 * GRAIN)
    site.backup()
    page = (READER.parent / "emergency.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```sh\n")[1:]]
    commands = [
        line.split("#")[0].strip()
        for block in blocks
        for line in block.splitlines()
        if not line.startswith("sudo")
    ]
    start = "python3 reader.py /media/disk/laptop.sparsebak "
    assert len(commands) == 2 and all(command.startswith(start) for command in commands)
    (tmp_path / "reader.py").write_text(READER.read_text())
    (tmp_path / "secret").write_bytes(PASSPHRASE)
    for command in commands:
        words = command.replace("/media/disk/laptop.sparsebak", str(site.archive)).split()
        environment = {"SPARSEBAK_PASSPHRASE_FILE": str(tmp_path / "secret")}
        subprocess.run(
            [sys.executable, *words[1:]],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
        )
    assert (tmp_path / "work.img").read_bytes() == site.contents()
