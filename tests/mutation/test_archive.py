# SPDX-License-Identifier: GPL-2.0-or-later
"""Each file of an archive made wrong in every way that its structure allows: damage is named, and
stays where it is.
"""

import hashlib
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backup_vm.archive.format import PackFile, PartialFile, SessionFile
from tests.conftest import folder_in_memory
from tests.kit import Site
from tests.mutation import forms
from tests.mutation.forms import Change
from tests.mutation.scene import VOLUMES, Scene, Trial, build

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
SAMPLE = int(os.environ.get("SPARSEBAK_SAMPLE", "2"))
"""Changes of each kind of file, in a short run."""


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    for folder in folder_in_memory("mutation"):
        yield build(folder / "site")


@pytest.fixture
def folder(quick_folder: Path) -> Path:
    return quick_folder / "case"


FAILED_ONCE = {
    "pack": ("chunks[1].sealed.method largest, forged",),
    "shared pack": (
        "chunks[6].sealed.method largest, forged",
        "chunks[0].sealed.data first bit, forged",
    ),
    "partial": ("offer.previous first bit", "offer.previous zero"),
}
"""Changes that a command once took wrongly: tried in every run."""


def chosen(kind: str, changes: list[Change], count: int = SAMPLE) -> list[Change]:
    """All of them in a long run; else so many, the same ones each time.

    A change is known by its name: keys, and so ids, digests and sizes, are others in every run.
    """
    if LONG:
        return changes
    once = FAILED_ONCE.get(kind, ())
    assert {*once} <= {change.name for change in changes}, "a field has another name now"
    rest = [change for change in changes if change.name not in once]
    rest.sort(
        key=lambda change: hashlib.sha256(f"{kind} {_in_general(change.name)}".encode()).digest()
    )
    return [change for change in changes if change.name in once] + rest[:count]


def _in_general(name: str) -> str:
    """A change's name without what is random in it."""
    return re.sub("[0-9a-f]{7,}", "", name)


def check(faults: list[str]) -> None:
    """Fail with every fault; in a file, too, where SPARSEBAK_FAULTS names one."""
    if faults and (path := os.environ.get("SPARSEBAK_FAULTS")):
        with open(path, "a") as file:
            file.write("\n".join(fault.replace("\n", " | ") for fault in faults) + "\n")
    assert not faults, "\n".join(faults)


def file_of(scene: Scene, kind: str) -> str:
    """A file of each kind, in the middle where there are several."""
    a, b = (k for k in scene.kept if k.volume == "a/private"), scene.kept[1]
    first, middle, last = a
    if kind in ("first session", "session", "last session"):
        return {"first session": first, "session": middle, "last session": last}[kind].file
    if kind == "pack":
        new = [name for name in middle.packs if name not in first.packs]
        return next((name for name in new if name not in last.packs), new[0])
    if kind == "shared pack":
        return next((name for name in first.packs if name in b.packs), first.packs[0])
    patterns = {"partial": "volumes/*/*.partial", "parameters": "archive.toml"}
    patterns |= {"notes": "notes.json", "catalog": "catalog.sqlite"}
    (found,) = scene.site.archive.glob(patterns[kind])
    return str(found.relative_to(scene.site.archive))


def changes_of(kind: str, raw: bytes) -> list[Change]:
    """Every change of a file's contents."""
    if kind == "notes":
        return list(forms.notes_changes(raw))
    if kind == "parameters":
        return list(forms.toml_changes(raw))
    if kind == "catalog":
        return list(forms.in_length(raw, [forms.Field("header", 0, 100, None)], None))
    structure, seal = {
        "session": (SessionFile, forms.seal_session),
        "pack": (PackFile, forms.seal_pack),
        "partial": (PartialFile, forms.seal_partial),
    }[kind.rsplit(maxsplit=1)[-1]]
    described = forms.fields_of(structure, raw)
    return [
        *forms.in_fields(raw, described, seal),
        *forms.in_length(raw, described, seal),
    ]


KINDS = (
    *("first session", "session", "last session", "pack", "shared pack"),
    *("partial", "parameters", "notes", "catalog"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_other_contents(scene: Scene, folder: Path, kind: str) -> None:
    file, faults = file_of(scene, kind), []
    raw = (scene.site.archive / file).read_bytes()
    for number, change in enumerate(chosen(kind, changes_of(kind, raw))):
        site = scene.copy(folder)
        (site.archive / file).write_bytes(change.raw)
        read_whole = "pack" in kind or "session" in kind
        certain = not (change.forged and (read_whole or kind == "partial"))
        if read_whole and len(change.raw) == len(raw):
            number = 1
        faults += tried(scene, folder, (file,), change.name, change.forged, number, certain)
    check(faults)


def tried(
    scene: Scene,
    folder: Path,
    files: tuple[str, ...],
    name: str,
    forged: bool,
    number: int,
    certain: bool = True,
) -> list[str]:
    """What was wrong with all that the commands did with a changed file.

    ``number``: with an odd one it is scrubbed before it is backed up, as what kept its size only
    shows when it is read.
    """
    trial = Trial(scene, Site(folder, volumes=VOLUMES, make=False), files, forged)
    trial.read()
    if number % 2:
        trial.copy_and_scrub()
        trial.back_up(certain)
    else:
        trial.back_up(certain)
        trial.copy_and_scrub()
    if certain:
        trial.thin()
    return [f"{' and '.join(files)}: {name}: {fault}" for fault in trial.faults]


def _size(site: Site, name: str) -> int:
    path = site.archive / name
    return path.lstat().st_size if path.exists() else -1


def gone(path: Path, other: Path) -> None:
    path.unlink()


def swapped(path: Path, other: Path) -> None:
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def replaced(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


def twice(path: Path, other: Path) -> None:
    """The same file once more, under the name that its kind has."""
    stem = path.name.partition(".")[0]
    if path.suffix == ".pack":
        new = path.parent / f"{stem[:2]}{stem[:1:-1]}.pack"
    else:
        new = path.parent / f"0000000077-{stem.rpartition('-')[2]}{path.suffix}"
    shutil.copyfile(path, new)


def fifo(path: Path, other: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path, other: Path) -> None:
    path.unlink()
    path.mkdir()


def link_out(path: Path, other: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


HARMS = (gone, swapped, replaced, twice, fifo, directory, link_out)
Harm = Callable[[Path, Path], None]


PLACES = [
    (kind, harm) for kind in ("session", "pack", "partial", "notes", "catalog") for harm in HARMS
]


@pytest.mark.parametrize(
    ("kind", "harm"),
    PLACES if LONG else random.Random(1).sample(PLACES, 6),
    ids=lambda one: one if isinstance(one, str) else str(one.__name__),
)
def test_a_file_in_another_place(scene: Scene, folder: Path, kind: str, harm: Harm) -> None:
    file = file_of(scene, kind)
    site = scene.copy(folder)
    others = {"session": "last session", "pack": "shared pack"}
    other = site.archive / file_of(scene, others.get(kind, "first session"))
    harm(site.archive / file, other)
    files = (file, str(other.relative_to(site.archive)))[: 1 + (harm is swapped)]
    same_size = all(_size(site, name) == _size(scene.site, name) for name in files)
    faults = tried(scene, folder, files, harm.__name__, False, int(same_size))
    if harm is directory:  # nothing of ours is in the way of removing it, and it is named
        faults = [fault for fault in faults if "is not a regular file" not in fault]
    check(faults)


NUMBERS = (
    None,
    -1,
    0,
    1,
    23,
    24,
    84,
    1 << 31,
    (1 << 63) - 1,
    -(1 << 63),
    1.5,
    "x",
    b"x",
    b"\0" * 32,
)
SCHEMA = (
    "CREATE TABLE more (a)",
    "CREATE VIEW more AS SELECT * FROM chunks",
    "CREATE TRIGGER more AFTER INSERT ON chunks BEGIN DELETE FROM packs; END",
    "CREATE INDEX more ON packs (name)",
    "DROP INDEX freed_by_pack",
    "DROP TABLE rotten",
    "ALTER TABLE meta ADD COLUMN more",
    "PRAGMA user_version = 77",
    "PRAGMA application_id = 77",
    "PRAGMA journal_mode = WAL",
    "PRAGMA page_size = 512; VACUUM",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA auto_vacuum = FULL; VACUUM",
    "INSERT INTO freed SELECT pack, offset, length FROM chunks",
    "INSERT INTO freed SELECT number, 0, 1 << 40 FROM packs",
    "INSERT INTO rotten SELECT name, offset FROM packs JOIN chunks ON pack = number",
    "INSERT INTO spoilt SELECT name FROM files",
    "INSERT INTO meta VALUES ('reclaiming', '1')",
    "INSERT INTO meta VALUES ('storing', '1'), ('unclaimed', '1')",
    "INSERT INTO meta VALUES ('compare:' || hex(randomblob(16)), '1')",
    "UPDATE packs SET name = '../../../etc/passwd' WHERE number = 1",
    "UPDATE packs SET number = -number",
    "UPDATE chunks SET pack = (SELECT max(number) FROM packs)",
    "UPDATE chunks SET id = randomblob(32)",
    "DELETE FROM chunks",
    "DELETE FROM packs",
    "DELETE FROM files",
    "DELETE FROM meta",
    "DELETE FROM chunks WHERE rowid IN (SELECT 1)",
)


def catalog_lies() -> list[tuple[str, str, tuple[object, ...]]]:
    """Name, statements, and what is bound in the one that is an UPDATE of a column."""
    found: list[tuple[str, str, tuple[object, ...]]] = [(text, text, ()) for text in SCHEMA]
    columns = ("packs.size", "packs.name", "files.size", "files.name", "meta.value", "chunks.id")
    columns += ("chunks.pack", "chunks.offset", "chunks.length", "packs.number")
    for column in columns:
        table, name = column.split(".")
        for value in NUMBERS:
            text = f"UPDATE OR REPLACE {table} SET {name} = ?"
            found.append((f"{text} {value!r}", text, (value,)))
    return found


def test_a_catalog_that_lies(scene: Scene, folder: Path) -> None:
    lies, faults = catalog_lies(), []
    if not LONG:
        lies = random.Random(3).sample(lies, 2 * SAMPLE)
    for number, (name, text, values) in enumerate(lies):
        site = scene.copy(folder)
        database = sqlite3.connect(site.archive / "catalog.sqlite", isolation_level=None)
        try:
            if values:
                database.execute(text, values)
            else:
                database.executescript(text)
        except sqlite3.Error:  # it cannot even be written
            continue
        finally:
            database.close()
        faults += tried(scene, folder, ("catalog.sqlite",), name, True, number)
    check(faults)
