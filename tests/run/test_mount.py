# SPDX-License-Identifier: GPL-2.0-or-later
"""Files back out of a session without restoring it: by FUSE, with a real ext4 in the image."""

import os
import random
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive import packs, readers
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.cli.diff import changed_ranges
from backup_vm.jobs.lazy_image import ChunkCache, LazyImage
from backup_vm.jobs.mount import SessionImages, shown_sessions
from backup_vm.volumes import stored_volumes
from tests.commands import Commands
from tests.conftest import cannot
from tests.kit import GRAIN, Site, change, fill
from tests.patience import AT_ONCE, PATIENCE

BIN = Path(sys.executable).parent


@contextmanager
def mounted(commands: Commands, *more: str, end: signal.Signals = signal.SIGINT) -> Iterator[Path]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("there is no /dev/fuse to use")
    folder = commands.site.root / "mounted"
    folder.mkdir(exist_ok=True)
    command = [
        BIN / "sparsebak",
        "-v",
        "mount",
        "work/private",
        folder,
        "--passphrase-file",
        commands.passphrase,
        *more,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(folder):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.stdout is not None  # whoever waits for the line has it now
        assert select.select([process.stdout], [], [], PATIENCE)[0]
        assert re.search("[12] sessions", process.stdout.readline())
        yield folder
    finally:
        begun = time.monotonic()
        process.send_signal(end)
        out, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - begun < AT_ONCE and process.returncode == 0, err
        assert not os.path.ismount(folder) and "Traceback" not in err + out, err


def test_files_are_read_from_an_ext4_in_a_session(commands: Commands) -> None:
    site = commands.site
    if os.geteuid() != 0:
        cannot("mounting an image needs root")
    with open(site.image(), "wb") as file:
        file.truncate(16 << 20)
    content = site.root / "content"
    content.mkdir()
    contents = {f"file-{number}": random.Random(number).randbytes(300_000) for number in range(10)}
    for name, raw in contents.items():
        (content / name).write_bytes(raw)
    subprocess.run(["mkfs.ext4", "-q", "-d", content, site.image()], check=True)
    site.backup()
    subprocess.run(
        ["debugfs", "-w", "-R", "rm file-3", site.image()], check=True, capture_output=True
    )
    site.backup()
    images = site.images()
    with mounted(commands) as folder:
        assert sorted(path.name for path in folder.iterdir()) == [f"{name}.img" for name in images]
        (site.root / "loop").mkdir()
        for at, (name, image) in enumerate(images.items()):
            path = folder / f"{name}.img"
            assert path.stat().st_size == len(image) and path.stat().st_mode & 0o777 == 0o444
            subprocess.run(["mount", "-o", "loop,ro,noload", path, site.root / "loop"], check=True)
            found = {p.name: p.read_bytes() for p in (site.root / "loop").iterdir() if p.is_file()}
            subprocess.run(["umount", site.root / "loop"], check=True)
            assert found == {
                name: raw for name, raw in contents.items() if not at or name != "file-3"
            }
            assert path.read_bytes() == image
        with pytest.raises(OSError, match="[Rr]ead-only|not permitted|denied"):
            path.open("r+b")
        assert not (folder / "nothing.img").exists()
        with site.open() as archive:
            assert archive.sessions(), "others may read the archive meanwhile"
    with mounted(commands, "--session", "latest") as folder:
        assert [path.name for path in folder.iterdir()] == [f"{list(images)[-1]}.img"]


def test_damage_is_an_error_where_it_is_and_only_there(commands: Commands) -> None:
    site = commands.site
    site.image().write_bytes(random.Random(1).randbytes(10 * GRAIN))
    site.backup()
    image = site.contents()
    pack = next(site.archive.rglob("*.pack"))
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    with mounted(commands) as folder:
        (path,) = folder.iterdir()
        readable = b""
        with open(path, "rb", buffering=0) as file:
            errors = 0
            for at in range(0, len(image), GRAIN):
                try:
                    readable += os.pread(file.fileno(), GRAIN, at)
                except OSError:
                    errors += 1
                    readable += image[at : at + GRAIN]
        assert 1 <= errors <= 3 and readable == image, "read ahead may spoil the neighbours"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it(commands: Commands, end: signal.Signals) -> None:
    """Also while a file of it is open."""
    site = commands.site
    site.image().write_bytes(random.Random(1).randbytes(GRAIN))
    site.backup()
    with mounted(commands, end=end) as folder:
        fd = os.open(next(folder.iterdir()), os.O_RDONLY)
        assert os.read(fd, 9) == site.contents()[:9]
    with suppress(OSError):  # there is nobody to tell of it
        os.close(fd)


def test_a_dead_mount_is_named_with_what_ends_it(commands: Commands) -> None:
    site = commands.site
    site.image().write_bytes(random.Random(1).randbytes(GRAIN))
    site.backup()
    with pytest.raises(AssertionError, match="-9"), mounted(commands, end=signal.SIGKILL) as folder:
        pass
    try:
        words = ("mount", "work/private", str(folder))
        key = ("--passphrase-file", str(commands.passphrase))
        error = commands.fails(1, *words, *key)
        assert f"fusermount3 -u {folder}" in error
    finally:
        subprocess.run(["fusermount3", "-u", folder], check=True)


def test_sessions_are_read_by_several_threads(tmp_path: Path) -> None:
    """They share the catalog's connection and the open packs, more of these than are kept open."""
    site = Site(tmp_path / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "pack_size", GRAIN)
        patch.setattr(readers, "_MOST", 2)
        fill(site.image(), 40 * GRAIN)
        for seed in range(3):
            site.backup()
            change(site.image(), random.Random(seed), resize=False)
        contents = list(site.images().values())
        with site.open() as archive:
            (volume,) = stored_volumes(archive, site.keys(archive), {})
            keys, reader = site.keys(archive), packs.PackReader(archive.storage)
            sessions = list(volume.sessions)
            shown = shown_sessions(archive, volume, sessions, keys, reader, ChunkCache(0))
            files = SessionImages(shown, lambda text: None)
            names = [name for name in files.readdir("/", 0) if name.endswith(".img")]

            def read(seed: int) -> None:
                mine = random.Random(seed)
                for _ in range(150):
                    at, offset = mine.randrange(len(names)), mine.randrange(39) * GRAIN
                    found = files.read("/" + names[at], GRAIN, offset, 0)
                    assert found == contents[at][offset : offset + GRAIN]

            before = sys.getswitchinterval()
            sys.setswitchinterval(1e-6)
            try:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(read, range(8)))
            finally:
                sys.setswitchinterval(before)
                reader.__exit__()


def test_mistakes(commands: Commands) -> None:
    site = commands.site
    fill(site.image(), 5 * GRAIN)
    site.backup()
    assert "not an empty folder" in commands.fails(2, "mount", "work/private", str(site.root))
    (site.root / "empty").mkdir()
    assert "sealed" in commands.fails(12, "mount", "work/private", str(site.root / "empty"))
    words = [
        "mount",
        "work/private",
        str(site.root / "empty"),
        "--passphrase-file",
        str(commands.passphrase),
    ]
    assert "no session" in commands.fails(1, *words, "--session", "19990101")


@settings(max_examples=30)
@given(st.randoms(use_true_random=False))
def test_images_read_here_and_there_and_their_differences(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
) -> None:
    site = Site(tmp_path_factory.mktemp("lazy") / "site")
    fill(site.image(), rng.randrange(1, 12 * GRAIN), rng.randrange(100))
    for _ in range(3):
        site.backup()
        change(site.image(), rng)
    contents = list(site.images().values())
    cache = ChunkCache(3 * GRAIN)
    with site.open() as archive:
        (volume,) = stored_volumes(archive, site.keys(archive), {})
        images = [archive.image(list(volume.sessions), session) for session in volume.sessions]
        lazy = [
            LazyImage(archive, image, site.keys(archive), volume.name, cache) for image in images
        ]

        def read(seed: int) -> None:
            mine = random.Random(seed)
            for _ in range(40):
                at = mine.randrange(len(lazy))
                offset, length = mine.randrange(13 * GRAIN), mine.randrange(1, 3 * GRAIN)
                assert lazy[at].read(offset, length) == contents[at][offset : offset + length]

        failures: list[BaseException] = []

        def guarded(seed: int) -> None:
            try:
                read(seed)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for one in lazy:
            one.close()
        for a, b in ((0, 1), (1, 2), (0, 2), (2, 0), (1, 1)):
            size = max(len(contents[a]), len(contents[b]))
            old, new = (contents[i].ljust(-(-size // GRAIN) * GRAIN, b"\0") for i in (a, b))
            differ = [
                at
                for at in range(0, len(old), GRAIN)
                if old[at : at + GRAIN] != new[at : at + GRAIN]
            ]
            ranges = list(changed_ranges(images[a], images[b]))
            assert [at for start, end in ranges for at in range(start, end, GRAIN)] == differ
            assert all(one[1] < two[0] for one, two in zip(ranges, ranges[1:], strict=False)), (
                "joined where they touch"
            )


def test_diff_as_a_user_sees_it(commands: Commands) -> None:
    site = commands.site
    site.image().write_bytes(b"a" * (10 * GRAIN))
    site.backup()
    with open(site.image(), "r+b") as file:
        file.seek(2 * GRAIN)
        file.write(b"b" * 3 * GRAIN)
        file.truncate(9 * GRAIN)
    site.backup()
    first, second = site.images()
    data = commands.json("diff", "work/private", first, "latest")
    assert data["ranges"] == [
        {"offset": 2 * GRAIN, "length": 3 * GRAIN},
        {"offset": 9 * GRAIN, "length": GRAIN},
    ]
    assert data["changed"] == 4 * GRAIN
    text = commands.run("diff", "work/private", first, second)[0]
    assert "256.0 KiB in 2 ranges differ; 640.0 KiB became 576.0 KiB" in text
    assert commands.json("diff", "work/private", first, first)["ranges"] == []
    assert "no session" in commands.fails(1, "diff", "work/private", first, "gold")
