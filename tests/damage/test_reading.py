# SPDX-License-Identifier: GPL-2.0-or-later
"""One file that cannot be read, whichever and why: what does not need it is read as if nothing had
happened.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.conftest import fault_system
from tests.faultfs import Fault, FaultFS
from tests.kit import GRAIN, Site, fill


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultFS]:
    with fault_system(tmp_path_factory.mktemp("faults")) as system:
        yield system


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Three sessions of each of two volumes; a pack has chunks of one volume only. A tag, so that
    there are notes.
    """
    site = Site(
        tmp_path_factory.mktemp("sound") / "site", sealed=False, volumes=("a/private", "b/private")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "pack_size", 4 * GRAIN)
        for seed, name in enumerate(site.volumes):
            fill(site.image(name), 6 * GRAIN, seed)
        for turn in range(3):
            for name in site.volumes:
                site.backup(name)
                with open(site.image(name), "r+b") as file:
                    file.seek(turn * GRAIN)
                    file.write(os.urandom(GRAIN))
    return site


def eio(path: Path, system: FaultFS) -> None:
    system.fail(Fault("read", "EIO", path=str(path.relative_to(system.path))))


def forbidden(path: Path, system: FaultFS) -> None:
    system.fail(Fault("open", "EACCES", path=str(path.relative_to(system.path))))


def missing(path: Path, system: FaultFS) -> None:
    path.unlink()


def fifo(path: Path, system: FaultFS) -> None:
    path.unlink()
    os.mkfifo(system.real / path.relative_to(system.path))


def folder(path: Path, system: FaultFS) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").touch()


def garbage(path: Path, system: FaultFS) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def empty(path: Path, system: FaultFS) -> None:
    path.write_bytes(b"")


def huge(path: Path, system: FaultFS) -> None:
    os.truncate(path, 1 << 40)


CASES = (
    *(("first session", h) for h in (eio, forbidden, missing, fifo, folder, garbage, empty, huge)),
    *(("last session", harm) for harm in (eio, missing)),
    *(("pack", harm) for harm in (eio, forbidden, fifo, garbage, huge)),
    *(("notes", harm) for harm in (eio, fifo, garbage, huge)),
)


@pytest.mark.parametrize(("what", "harm"), CASES)
def test_only_what_needs_it_cannot_be_had(
    sound: Site,
    faults: FaultFS,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    what: str,
    harm: Callable[[Path, FaultFS], None],
) -> None:
    commands = Commands(sound, capsys)
    commands.settings(f'agent = "local:{sound.config}"\ncaller = "backup-vm"\n')
    here = faults.path / "archive"
    faults.fail()
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(sound.archive, here)
    at = ("--archive", str(here))
    commands.run(*at, "tag", "b", "--session", "latest", "--add", "kept")
    ids = {
        volume["qube"]: volume["id"]
        for volume in commands.json("--archive", str(sound.archive), "list")["volumes"]
    }
    series = sorted((here / "volumes" / ids["a"]).glob("*.session"))
    packs = sorted(here.rglob("*.pack"), key=lambda path: path.stat().st_mtime_ns)
    names = {"first session": series[0], "last session": series[-1], "pack": packs[0]}
    harm(names.get(what, here / "notes.json"), faults)

    listed = commands.run(*at, "list", "--json", expect=None)[0]
    assert '"b"' in listed and listed.count('"session":') >= 3
    for words in (("status",), ("report", "-o", str(tmp_path / "report.html")), ("scrub",)):
        commands.run(*at, *words, expect=None)
    sessions = commands.json("--archive", str(sound.archive), "list", "b/private")["volumes"][0][
        "sessions"
    ]
    for session, number in zip(sessions, range(3), strict=True):
        image = tmp_path / f"{number}.img"
        words = ("b/private", "--session", session["session"], "-o", str(image))
        commands.run(*at, "assemble", *words)
        assert image.stat().st_size == 6 * GRAIN
    assert image.read_bytes()[3 * GRAIN :] == sound.contents("b/private")[3 * GRAIN :]
    times = [session["session"] for session in sessions]
    commands.run(*at, "verify", "b/private", "--session", "all")
    commands.run(*at, "diff", "b/private", *times[:2])
    commands.run(*at, "export", "b/private", "-o", str(tmp_path / "b.sbx"))
    target = tmp_path / "copy"
    words = ("copy", str(target), *(["--init"] if what == "notes" else []))
    unnoticed = harm is missing and what in ("notes", "last session")
    done = commands.json(*at, *words, expect=None)
    assert unnoticed or what == "pack" or done["failed"]
    commands.run("--archive", str(target), "verify", "b/private", "--session", "all")
    if what == "last session":
        commands.run(*at, "verify", "a/private", "--session", times_of(commands, at)[0])
    if what == "notes":
        commands.run(*at, "verify", "a/private", "--session", "all")


def times_of(commands: Commands, at: tuple[str, ...]) -> list[str]:
    volumes = commands.json(*at, "list", "a/private", expect=None)["volumes"]
    return [session["session"] for session in volumes[0]["sessions"]]
