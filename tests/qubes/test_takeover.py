# SPDX-License-Identifier: GPL-2.0-or-later
"""A dead laptop, and the way back on a new one: from the archive and the passphrase alone."""

import errno
import random
import shutil
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.jobs.feeding import feed
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from dom0_agent.admin import adoption
from dom0_agent.admin import cli as agent_cli
from dom0_agent.tracking.state import State, VolumeState
from tests.kit import PASSPHRASE, Site, change, fill
from tests.qubes.kit import QubesSite
from wire.messages import HEADER_SIZE
from wire.names import Restoring
from wire.status import Refused


def secret(folder: Path, text: bytes = PASSPHRASE) -> Path:
    path = folder / "passphrase"
    path.write_bytes(text + b"\n")
    return path


def keys_file(site: Site) -> Path:
    path = site.root / "laptop.keys"
    path.unlink(missing_ok=True)
    assert cli.main(["--archive", str(site.archive), "keys", "-o", str(path)]) == 0
    return path


def take_over(
    site: Site,
    file: Path,
    passphrase: bytes = PASSPHRASE,
    label: str = "again",
    is_open: bool = False,
) -> int:
    words = ["keys", "import", label, str(file), "--caller", "backup-vm"]
    if is_open:
        return agent_cli.main(["--config", str(site.config), *words, "--open"])
    return agent_cli.main(
        [
            "--config",
            str(site.config),
            *words,
            "--passphrase-file",
            str(secret(site.root, passphrase)),
        ]
    )


def test_a_new_dom0_goes_on_with_the_archive(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.backup()
    change(qubes.image(), random.Random(1), resize=False)
    qubes.backup()
    before = qubes.contents()
    file = keys_file(qubes)
    shutil.rmtree(qubes.state)
    del qubes.qubesd.qubes["work"]
    qubes.image().unlink()
    assert take_over(qubes, file, b"wrong") == 1
    assert not (qubes.state / "archives").exists() and not (qubes.state / "volumes").exists()
    assert take_over(qubes, file) == 0
    assert "work/private" in capsys.readouterr().out
    assert take_over(qubes, file, label="more") == 1  # it is known now
    qubes.take_down()
    with qubes.open() as archive:
        gone = {
            f"{entry.qube}/{entry.volume}": entry.flags for entry in qubes.agent(archive).list()
        }
    assert gone["work/private"] and not gone["vault/private"]
    qubes.image().write_bytes(b"")
    with qubes.open() as archive:
        for name in ("settings", "private"):
            named = next(
                v
                for v in stored_volumes(archive, qubes.keys(archive), {})
                if v.name == f"work/{name}"
            )
            image = archive.image(list(named.sessions), named.sessions[-1])
            asked = Restoring("work", name, image.session.name)  # the newest: the file told dom0
            qubes.agent(archive).restore(
                asked, feed(archive, image, named.name, Progress()), absent=name == "settings"
            )
            if name == "settings":
                qubes.apply("work")
    assert qubes.contents() == before
    done = {f"{one.qube}/{one.volume}": one.stored for one in qubes.backup().done}
    # All was looked at, nothing sent.
    assert done["work/private"] == 0 and done["vault/private"] == 0
    assert len(qubes.images()) == 3


@pytest.mark.parametrize("sealed", [True, False])
def test_without_qubes_too(
    site: Site, tmp_path: Path, sealed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not sealed:
        site = Site(tmp_path / "open", sealed=False)
    fill(site.image(), 300_000)
    site.backup()
    file = keys_file(site)
    assert agent_cli.main(["--config", str(site.config), "status", "--head"]) == 0
    head = capsys.readouterr().out.split()[1]
    shutil.rmtree(site.state)
    assert take_over(site, file, is_open=sealed) == 1  # it must be said, and said rightly
    assert "says that the archive is " + ("sealed" if sealed else "open") in capsys.readouterr().err
    assert take_over(site, file, is_open=not sealed) == 0
    capsys.readouterr()
    assert agent_cli.main(["--config", str(site.config), "status", "--head"]) == 0
    assert capsys.readouterr().out.split()[1] == head  # what was written down on the old machine
    assert site.backup().done[0].stored == 0
    site.verify_all()


def test_one_that_was_cut_off_can_be_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archive is known once all of its volumes are: else sessions of the others would be older
    ones for ever.
    """
    site = Site(tmp_path / "site", volumes=("vault/private", "work/private"))
    for name in site.volumes:
        fill(site.image(name), 300_000)
    site.backup()
    older, kept = keys_file(site), site.root / "older.keys"
    older.rename(kept)
    site.backup()
    file, save, calls = keys_file(site), VolumeState.save, list[VolumeState]()
    shutil.rmtree(site.state)

    def fail(self: VolumeState, state: State) -> None:
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, state)

    with monkeypatch.context() as full:
        full.setattr(VolumeState, "save", fail)
        assert take_over(site, kept) == 1
    assert take_over(site, file) == 0
    for name in site.volumes:
        (progress,) = VolumeState(site.state, *name.split("/")).load().follows.values()
        assert progress.committed is not None and progress.committed.sequence == 2
    assert [done.stored for done in site.backup().done] == [0, 0]


def test_a_file_that_is_not_what_it_should_be(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 100_000)
    site.backup()
    keys = keys_file(site)
    good = keys.read_bytes()
    shutil.rmtree(site.state)
    bad = site.root / "bad"
    rng = random.Random(1)
    for number in range(200):
        raw = bytearray(good)
        kind = number % 4
        if kind == 0:
            raw = raw[: rng.randrange(len(raw))]
        elif kind == 1:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 2:
            raw += rng.randbytes(rng.randrange(1, 400))
        else:
            raw = bytearray(rng.randbytes(rng.randrange(600)))
        if raw == good:
            continue
        bad.write_bytes(raw)
        try:
            found = adoption.read(bad)
            adoption.adopt(
                site.state,
                found,
                "x",
                "backup-vm",
                adoption.unlock(found, PASSPHRASE),
            )
        except Refused:
            assert not (site.state / "archives").exists()
            continue
        # Its label and time are only told.
        told, true = (
            found.untrusted_entry,
            adoption.read(keys).untrusted_entry,
        )
        assert (told.archive, told.mode, told.suite, told.chunk_size) == (
            true.archive,
            true.mode,
            true.suite,
            true.chunk_size,
        )
        assert told.slots == true.slots
        shutil.rmtree(site.state)
    for suite, text in ((1, "belongs to another archive"), (3, "parameters of no archive")):
        entry = adoption.read(keys).untrusted_entry
        assert entry.suite == 2
        bad.write_bytes(good.replace(entry.build(), entry.replaced(suite=suite).build()))
        assert take_over(site, bad) == 1 and text in capsys.readouterr().err
    bad.write_bytes(bytes(adoption.LIMIT + 1))
    with pytest.raises(Refused, match="too long"):
        adoption.read(bad)


@pytest.mark.parametrize("number", [1, 3])
def test_an_archive_of_another_format_is_not_taken_over(
    site: Site, number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = keys_file(site)
    shutil.rmtree(site.state)
    raw = bytearray(file.read_bytes())
    raw[HEADER_SIZE] = number
    file.write_bytes(raw)
    capsys.readouterr()
    assert take_over(site, file) == 1 and not (site.state / "archives").exists()
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"an archive of format {number}, " in err


def test_an_old_copy_brings_no_slot_back(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    fill(site.image(), 100_000)
    site.backup()
    old = keys_file(site)
    words = ["--config", str(site.config), "keys"]
    assert agent_cli.main([*words, "remove", "tests", "--slot", "1", "--yes"]) == 0
    capsys.readouterr()
    assert take_over(site, old) == 1
    error = capsys.readouterr().err
    assert "known here already, as tests" in error and "has 1 key slots that" in error
    assert agent_cli.main([*words, "list", "tests"]) == 0
    assert capsys.readouterr().out == "0: passphrase\n"
    shutil.rmtree(site.state)
    assert take_over(site, old) == 0
    out = capsys.readouterr().out
    assert "Key slots: passphrase, recovery key." in out and "keys remove again --slot N" in out
