# SPDX-License-Identifier: GPL-2.0-or-later
"""What another machine does to an archive while a command reads it, at one point of its reading
after another.
"""

import contextlib
import functools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from backup_vm.archive import notes
from backup_vm.archive.opening import open_archive
from backup_vm.archive.prune import prune
from backup_vm.archive.sessions import Session
from backup_vm.archive.storage.blocks import RemoteReader
from backup_vm.archive.storage.files import LocalReader
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.archive.storage.remote import RemoteStorage
from backup_vm.archive.storage.workspace import LocalWorkspace
from backup_vm.errors import Exit
from tests.children import without_log
from tests.commands import Commands
from tests.kit import GRAIN, Site

CHUNKS = 24
PRUNED = (0, 2, 3)
"""Which of the sessions another machine prunes."""
_READING = ("names", "sizes", "stamps", "open", "reader", "read", "size")


@dataclass
class Scene:
    """Six sessions of one volume, each with a few chunks of its own, in small packs; and what each
    of them is.
    """

    site: Site
    names: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)

    @classmethod
    def build(cls, root: Path) -> "Scene":
        site, rng = Site(root), random.Random(4)
        scene = cls(site)
        site.image().write_bytes(rng.randbytes(CHUNKS * GRAIN))
        for _ in range(6):
            site.backup()
            scene.images.append(site.contents())
            with open(site.image(), "r+b") as file:
                for at in rng.sample(range(CHUNKS), 9):
                    file.seek(at * GRAIN)
                    file.write(rng.randbytes(GRAIN))
        scene.names = list(site.images())
        return scene

    def files(self) -> dict[str, Path]:
        """Names in the archive, and where they are."""
        folder = self.site.archive
        found = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {str(path.relative_to(folder)): path for path in found}


def series(place: str | Path) -> list[Session]:
    with open_archive(place, False) as archive:
        (found,) = archive.sessions().values()
        return found


def prunes(place: str | Path) -> None:
    """Another machine merges sessions and reclaims their space."""
    with open_archive(place, True) as archive:
        (found,) = archive.sessions().values()
        assert prune(archive, [found[number] for number in PRUNED]).space > 0


@contextlib.contextmanager
def interfered(after: int, action: Callable[[], object]) -> Iterator[list[int]]:
    """Do something just before the storage is asked for the n-th time. The first of the numbers
    says how often it was asked.
    """
    asked, busy = [0], [False]

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def ask(*words: Any, **named: Any) -> Any:
            # notes are changed under a lock of their own, which works
            if not busy[0] and notes.NAME not in words:
                asked[0] += 1
                if asked[0] == after:
                    busy[0] = True
                    action()
                    busy[0] = False
            return original(*words, **named)

        return ask

    with pytest.MonkeyPatch.context() as patch:
        for kind in (LocalStorage, LocalWorkspace, RemoteStorage):
            for name in filter(functools.partial(hasattr, kind), _READING):
                patch.setattr(kind, name, counting(getattr(kind, name)))
        for reader in (LocalReader, RemoteReader):
            patch.setattr(reader, "read", counting(reader.read))
        yield asked


@dataclass(frozen=True)
class Reading:
    """A command that reads, and what must be true of it when it ended well. ``wanted``: the session
    that it is asked for by name, if one.
    """

    name: str
    words: Callable[[Scene, Path], list[str]]
    right: Callable[[Scene, Path, Any], bool] = lambda *_: True
    wanted: int | None = None
    lenient: bool = False
    """Whether it continues without a session that is gone."""
    ignores: bool = False
    """Whether it says nothing of what an image lacks."""


def _one(number: int) -> list[Reading]:
    """Commands that read one session."""

    def asked(*words: str) -> Callable[[Scene, Path], list[str]]:
        return lambda scene, folder: [
            one.replace("@", str(folder)).replace("#", scene.names[number]) for one in words
        ]

    def image(scene: Scene, folder: Path, data: Any) -> bool:
        return (folder / "out").read_bytes() == scene.images[number]

    def restored(scene: Scene, folder: Path, data: Any) -> bool:
        return scene.site.contents() == scene.images[number]

    def proven(scene: Scene, folder: Path, data: Any) -> bool:
        return [(one["session"], one["ok"]) for one in data["sessions"]] == [
            (scene.names[number], True)
        ]

    def differs(scene: Scene, folder: Path, data: Any) -> bool:
        return bool(data["ranges"] == _differing(scene.images[1], scene.images[number]))

    volume, key, out = "work/private", ("--passphrase-file", "@/pw"), ("-o", "@/out")
    session = ("--session", "#")
    return [
        Reading("verify", asked("verify", volume, *session, *key), proven, number),
        Reading("verify-by-agent", asked("verify", volume, *session), proven, number),
        Reading("assemble", asked("assemble", volume, *session, *key, *out), image, number),
        Reading("export", asked("export", volume, *session, *key, *out), wanted=number),
        Reading("export-sealed", asked("export", volume, *session, *out), wanted=number),
        Reading(
            "export-raw",
            asked("export", volume, *session, "--format", "raw", *key, *out),
            image,
            number,
        ),
        Reading("restore", asked("restore", volume, *session, "--yes"), restored, number),
        Reading("diff", lambda scene, _: ["diff", volume, scene.names[1], scene.names[number]],
                differs, number),
    ]  # fmt: skip


def _differing(old: bytes, new: bytes) -> list[dict[str, int]]:
    found: list[dict[str, int]] = []
    for at in range(0, CHUNKS * GRAIN, GRAIN):
        if old[at : at + GRAIN] != new[at : at + GRAIN]:
            if found and found[-1]["offset"] + found[-1]["length"] == at:
                found[-1]["length"] += GRAIN
            else:
                found.append({"offset": at, "length": GRAIN})
    return found


def _listed(scene: Scene, folder: Path, data: Any) -> bool:
    return [one["session"] for one in data["volumes"][0]["sessions"]] in (
        scene.names,
        [name for number, name in enumerate(scene.names) if number not in PRUNED],
    )


def _would_go(scene: Scene, folder: Path, data: Any) -> bool:
    return [one["session"] for one in data["removed"]] in (
        scene.names,
        [name for number, name in enumerate(scene.names) if number not in PRUNED],
    )


def _all_proven(scene: Scene, folder: Path, data: Any) -> bool:
    names = {one["session"] for one in data["sessions"] if one["ok"]}
    kept = {name for number, name in enumerate(scene.names) if number not in PRUNED}
    return kept <= names and all(one["ok"] for one in data["sessions"])


def _copied(scene: Scene, folder: Path, data: Any) -> bool:
    place, images = folder / "copy", dict(zip(scene.names, scene.images, strict=True))
    found = scene.site.images(folder=place)
    kept = {name for number, name in enumerate(scene.names) if number not in PRUNED}
    return not data["failed"] and kept <= found.keys() and found.items() <= images.items()


_KEY = ("--passphrase-file", "@/pw")
READINGS = [
    *_one(5),
    *_one(3),
    Reading(
        "verify-all",
        lambda _, folder: ["verify", "--session", "all", "--passphrase-file", f"{folder}/pw"],
        _all_proven,
        lenient=True,
    ),
    Reading(
        "list", lambda *_: ["list", "work", "--space"], _listed, lenient=True, ignores=True
    ),
    Reading("status", lambda *_: ["status", "--space"], lenient=True, ignores=True),
    Reading(
        "delete-dry-run",
        lambda *_: ["delete", "work", "--dry-run"],
        _would_go,
        lenient=True,
        ignores=True,
    ),
    Reading(
        "prune-dry-run",
        lambda *_: ["prune", "--dry-run", "--keep-last", "1", "--min-age", "0h"],
        lenient=True,
        ignores=True,
    ),
    Reading(
        "report",
        lambda _, folder: ["report", "-o", f"{folder}/page"],
        lenient=True,
        ignores=True,
    ),
    Reading("copy", lambda _, folder: ["copy", "--init", f"{folder}/copy"], _copied, lenient=True),
    Reading(
        "copy-with-key",
        lambda _, folder: [
            "copy", "--init", f"{folder}/copy", "--passphrase-file", f"{folder}/pw",
        ],
        _copied,
        lenient=True,
    ),
]  # fmt: skip
IDS = [
    one.name + ("" if one.wanted is None else "-kept" if one.wanted == 5 else "-removed")
    for one in READINGS
]


def run(commands: Commands, scene: Scene, one: Reading) -> tuple[int, str, str]:
    """A command in the folder of the site, whose results of before are removed."""
    root = scene.site.root
    for name in ("out", "page"):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / "copy", ignore_errors=True)
    code, out, err = commands.outcome("--json", *one.words(scene, root))
    return code, out, without_log(err)


def judge(scene: Scene, one: Reading, code: int, out: str, err: str) -> None:
    """After another machine has pruned: nothing is called damaged, and what was read is right."""
    if code == Exit.LOCKED:
        assert one.wanted in PRUNED, (one.name, err)
        assert "was removed by another machine while it was read (run it again" in err or (
            "1 session removed by another machine before being read" in err
        ), err
    elif code == 1:
        assert one.wanted in PRUNED and "has no session" in err, err
    else:
        assert code == 0, (one.name, code, out, err)
        assert not err or (one.lenient and "removed by another machine" in err), err
        assert one.right(scene, scene.site.root, json.loads(out) if out else None), (out, err)
    assert err.count("\n") <= 1 and "Traceback" not in err, err


def arrives(kept: Path, place: Path) -> None:
    """A session file that another machine stores is there; its packs were before."""
    shutil.copy2(kept, place.with_suffix(".new"))
    place.with_suffix(".new").rename(place)


def judge_addition(one: Reading, code: int, out: str, err: str) -> None:
    """After another machine has stored the newest session: it is there, or was not yet."""
    said = [line for line in err.splitlines() if "it has been rebuilt" not in line]
    if code == 1:
        assert one.wanted == 5 and "has no session" in err, err
    else:
        assert code == 0, (one.name, code, out, err)
        assert not said, err


def loses(place: Path, session: int) -> None:
    """A session file gets lost, by itself, on which others build or, of the newest one, none."""
    (place / series(place)[session].file).unlink()


def loses_packs(place: Path) -> None:
    """All packs get lost."""
    for pack in place.rglob("*.pack"):
        pack.unlink()


def judge_loss(scene: Scene, one: Reading, code: int, out: str, err: str) -> None:
    """After something got lost: that is named, by whoever needs it, or came too late to matter."""
    if code == 0 and "missing" not in err:
        assert one.ignores or one.right(scene, scene.site.root, json.loads(out) if out else None)
    elif code and (code != 1 or "has no session" not in err):  # gone before it was named
        assert code == Exit.DAMAGED, (one.name, code, out, err)
        assert "missing" in err or "builds on" in err, err
    assert "another machine" not in err and "Traceback" not in err, err
