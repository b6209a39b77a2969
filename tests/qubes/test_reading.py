# SPDX-License-Identifier: GPL-2.0-or-later
"""A disposable reads a granted session from the backup VM: through qrexec's stand-in, the policy
and the service, as processes.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from backup_vm import cli
from backup_vm.errors import SparsebakError
from backup_vm.jobs import serving
from backup_vm.jobs.distant_image import DistantImage
from backup_vm.jobs.lazy_image import ChunkCache
from backup_vm.jobs.mount import SessionImages, shown_from
from tests.conftest import cannot
from tests.patience import PATIENCE
from tests.qubes.kit import BACKUP_VM
from tests.qubes.reading_kit import BIN, Reading, asked
from wire.reading import WANT_IDS, reading


def test_images_are_read_whole_and_in_pieces(
    disposable: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list(disposable.site.images().values())
    grant, said = disposable.grant(), list[str]()
    files = SessionImages(shown_from(BACKUP_VM, grant), said.append)
    names = [name for name in files.readdir("/", 0) if name.endswith(".img")]
    assert len(names) == len(images) == 2
    for name, image in zip(names, images, strict=True):
        assert files.getattr("/" + name)["st_size"] == len(image)
        found = b"".join(
            files.read("/" + name, 77_777, at, 0) for at in range(0, len(image), 77_777)
        )
        assert found == image and not said
    for opened in files._images.values():
        assert isinstance(opened, DistantImage)
        opened.close()
    calls = disposable.log.read_text().splitlines()
    first = grant.records[0]
    wanted = f"sparsebak.Read+{reading(first.volume_id, first.session)}"
    assert calls[0] == f"allow {BACKUP_VM} {wanted}" and len(calls) == 2
    # when the tag is gone, so is the way
    disposable.untag()
    with pytest.raises(SparsebakError, match="policy refused"):
        DistantImage(BACKUP_VM, grant, first, ChunkCache())


def test_a_mount_from_the_backup_vm(disposable: Reading) -> None:
    """As a user of the disposable goes: FUSE, with the grant on standard input."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        cannot("there is no /dev/fuse to use")
    images, folder = disposable.site.images(), disposable.site.root / "mounted"
    folder.mkdir()
    code = "import sys; from backup_vm import cli; from backup_vm.agent.transport import qrexec; "
    code += f"qrexec.CLIENT = {str(disposable.client)!r}; sys.exit(cli.main(sys.argv[1:]))"
    words = ["mount", "work/private", folder, "--grant", "-", "--from", BACKUP_VM]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(disposable.grant().build())
        process.stdin.close()
        deadline = time.monotonic() + PATIENCE
        while not os.path.ismount(folder):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        try:
            found = {path.stem: path.read_bytes() for path in folder.iterdir()}
        finally:
            process.terminate()
        assert process.wait(PATIENCE) == 0, process.stderr.read()
    assert found == images and not os.path.ismount(folder)


def test_the_options_of_a_mount_from_there(
    disposable: Reading, capsys: pytest.CaptureFixture[str]
) -> None:
    (disposable.site.root / "empty").mkdir()
    grant = disposable.site.root / "grant"
    grant.write_bytes(disposable.grant().build())
    capsys.readouterr()
    for words, code in (
        (("work/private", "--from", BACKUP_VM), 2),
        (("work/private", "--from", "no/name", "--grant", str(grant)), 2),
        (("vault/private", "--from", BACKUP_VM, "--grant", str(grant)), 12),
    ):
        assert cli.main(["mount", words[0], str(grant.with_name("empty")), *words[1:]]) == code
        assert capsys.readouterr().err.count("\n") == 1


def test_it_hangs_up_and_is_called_again(disposable: Reading) -> None:
    """Without a reader who asks, the archive is free for others."""
    image = list(disposable.site.images().values())[-1]
    grant = disposable.grant(every=False)
    distant = DistantImage(BACKUP_VM, grant, grant.records[0], ChunkCache(0))
    connection = distant._reader._connection
    assert connection is not None
    connection.process.kill()
    connection.process.wait()
    assert distant.read(0, 10_000) == image[:10_000]
    distant.close()


def test_a_silent_reader_is_left(disposable: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    grant, code = disposable.grant(every=False), "import sys; from backup_vm import cli; "
    code += "from backup_vm.jobs import serving; serving.IDLE = 0.3; sys.exit(cli.main())"
    argument = reading(grant.volume_id, grant.records[0].session)
    words = ["--config", str(disposable.site.root / "config.toml"), "serve", argument]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(40) == 1
    assert serving.IDLE == 60


def test_a_reader_that_takes_nothing_is_left(disposable: Reading) -> None:
    """The process, too, ends: what it still had to say is for nobody."""
    grant, code = disposable.grant(every=False), "import sys; from backup_vm import cli; "
    code += "from backup_vm.jobs import serving; serving.IDLE = 0.3; sys.exit(cli.main())"
    argument = reading(grant.volume_id, grant.records[0].session)
    words = ["--config", str(disposable.site.root / "config.toml"), "serve", argument]
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        chunks = -(-grant.records[0].size // (1 << 16))
        for _ in range(1000):
            process.stdin.write(asked(WANT_IDS, 0, chunks))
        with contextlib.suppress(BrokenPipeError):
            process.stdin.flush()
        try:
            assert process.wait(40) == 1
        finally:
            process.kill()


def test_readers_give_way_to_a_backup(disposable: Reading) -> None:
    """Who asks again and again, in two calls at a time, keeps nobody from writing."""
    grant, site = disposable.grant(every=False), disposable.site
    words = [BIN / "sparsebak", "--config", site.root / "config.toml", "serve"]
    words.append(reading(grant.volume_id, grant.records[0].session))
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with subprocess.Popen(
                words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdin is not None and process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    while process.stdout.read(4096) and not over.is_set():
                        process.stdin.write(asked(WANT_IDS, 0, 1))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        time.sleep(1)  # until both read
        with site.open(True) as archive:
            assert archive.writing
    finally:
        over.set()
        for asker in askers:
            asker.join()


def test_every_command_that_takes_a_grant_reads_from_there(
    disposable: Reading, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images, files in them, and proofs."""
    site, out = disposable.site, disposable.site.root / "out"
    with open(site.image(), "wb") as file:
        file.truncate(4 << 20)
    (out / "content/Documents").mkdir(parents=True)
    (out / "content/Documents/letter").write_bytes(os.urandom(100_000))
    subprocess.run(["mkfs.ext4", "-q", "-d", out / "content", site.image()], check=True)
    site.backup()
    images, grant = site.images(), site.root / "grant"
    grant.write_bytes(disposable.grant().build())
    given = ("--from", BACKUP_VM, "--grant", str(grant))

    def run(*words: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main([*words, *given]) == code, capsys.readouterr().err
        found = capsys.readouterr()
        assert code == 0 or found.err.count("\n") == 1
        return found.out + found.err

    newest, oldest = list(images)[-1], next(iter(images))
    for name, words in ((newest, ()), (oldest, ("--session", oldest))):
        run("assemble", "work/private", "-o", str(out / name), *words)
        assert (out / name).read_bytes() == images[name]
    run("files", "cp", "work/private", "Documents/letter", str(out / "letter"))
    assert (out / "letter").read_bytes() == (out / "content/Documents/letter").read_bytes()
    assert "Documents" in run("files", "ls", "work/private")
    assert f"it is for {oldest}" in run("verify", "--session", "1999", code=12)
    assert run("verify", "--session", "all", "-v").count("authentic and complete") == 3
    assert "leave out --from" in run("files", "diff", "work/private", oldest, newest, code=2)
    assert "name it with --session" in run(
        "assemble", "work/private", "-o", str(out / "x"), "--session", "all", code=2
    )
    # what is damaged there is damage, wherever it is read
    for pack in site.archive.rglob("*.pack"):
        raw = bytearray(pack.read_bytes())
        for at in range(100, len(raw) - 10_000, 5000):
            raw[at] ^= 1
        pack.write_bytes(raw)
    run("assemble", "work/private", "-o", str(out / "x"), "--session", oldest, code=4)
    assert not (out / "x").exists()
