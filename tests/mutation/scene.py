# SPDX-License-Identifier: GPL-2.0-or-later
"""An archive of two volumes to be damaged, every command that is run on it then, and what they may
say.
"""

import os
import random
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backup_vm.archive import pack_writer
from backup_vm.archive.catalog import Place
from backup_vm.archive.storage.local import LocalStorage
from backup_vm.jobs.backup import BackupRun
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import stored_volumes
from docs import reader
from tests.certainty import CutOff
from tests.children import Outcome, Step, run
from tests.kit import GRAIN, PASSPHRASE, Site

VOLUMES = ("a/private", "b/private")
CHUNKS = 9
DAMAGED, NO_ARCHIVE, WRONG_KEY = 4, 10, 12
EVERYTHING = frozenset({""})
"""What a damage to archive.toml concerns."""


@dataclass(frozen=True)
class Kept:
    """A session as it was stored: its volume, name, file, contents, and the packs that its image
    needs.
    """

    volume: str
    name: str
    file: str
    contents: bytes
    packs: tuple[str, ...]
    """In the order in which the image needs them first, for their names are random."""
    needs: frozenset[str]
    """Session files, its own among them."""


@dataclass
class Scene:
    """``site`` is never changed; each case has a copy. ``exported``: a session of a, exported."""

    site: Site
    kept: list[Kept] = field(default_factory=list)
    exported: Path = Path()

    def copy(self, folder: Path) -> Site:
        """The same elsewhere, with changes in both volumes that are still to be backed up."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.site.root, folder, symlinks=True)
        return Site(folder, volumes=VOLUMES, make=False)

    def needing(self, file: str) -> frozenset[str]:
        """Files of the sessions whose image needs a file of the archive."""
        if file == "archive.toml":
            return EVERYTHING
        return frozenset(k.file for k in self.kept if file in {*k.packs, *k.needs})


def build(folder: Path, sealed: bool = True) -> Scene:
    """Three sessions of each of two volumes, a partial one of a; chunks that take little space, a
    few to a pack.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalStorage, "pack_size", 1000)
        patch.setattr(pack_writer, "RECORD_SECONDS", 0)
        site = Site(folder, volumes=VOLUMES, sealed=sealed)
        scene, rng, contents = Scene(site), random.Random(4), {}
        for name in VOLUMES:
            site.image(name).write_bytes(b"".join(_chunk(rng) for _ in range(CHUNKS)))
        for turn in range(3):
            for name in VOLUMES:
                site.backup(name)
                contents[name, turn] = site.contents(name)
                _write(site.image(name), rng, 2)
        _tag(site, "a/private")
        _write(site.image("a/private"), rng, 5)
        cut_off(site, "a/private", 4)
        _write(site.image("b/private"), rng, 1)
        with site.open() as archive:
            keys = site.keys(archive)
            for volume in stored_volumes(archive, keys, {}):
                for turn, session in enumerate(volume.sessions):
                    image = archive.image(list(volume.sessions), session)
                    ids = dict.fromkeys(i for _, window in image.windows() for i in window)
                    places: dict[bytes, Place] = archive.catalog.places(ids)
                    scene.kept.append(
                        Kept(
                            volume.name,
                            session.name,
                            session.file,
                            contents[volume.name, turn],
                            tuple(dict.fromkeys(places[i].pack for i in ids if i in places)),
                            frozenset(s.file for s in volume.sessions[: turn + 1]),
                        )
                    )
    (folder / "pw").write_bytes(PASSPHRASE)
    scene.exported = folder / "exported.sbx"
    return scene


def _chunk(rng: random.Random) -> bytes:
    return rng.randbytes(40) + bytes([rng.randrange(1, 256)]) * (GRAIN - 40)


def _write(image: Path, rng: random.Random, chunks: int) -> None:
    with open(image, "r+b") as file:
        for _ in range(chunks):
            file.seek(rng.randrange(CHUNKS) * GRAIN)
            file.write(_chunk(rng))


def _tag(site: Site, name: str) -> None:
    from backup_vm.archive import notes, noting

    with site.open() as archive:
        volume = next(v for v in stored_volumes(archive, site.keys(archive), {}) if v.name == name)
        key = volume.sessions[0].clear.session.hex()
        note = notes.Note(frozenset({"kept"}), "a note")
        notes.change(archive.storage, lambda all_notes: all_notes.sessions.update({key: note}))
        noting.checked(archive.storage, True, volume.sessions[-1].clear.session)


def cut_off(site: Site, name: str, chunks: int) -> None:
    """A backup that ends after so many chunks."""

    with site.open(True) as archive, pytest.raises(KeyboardInterrupt):
        agent = site.agent(archive)
        try:
            chosen = [v for v in agent.list() if f"{v.qube}/{v.volume}" == name]
            BackupRun(archive, agent, CutOff(chunks)).run(chosen)
        finally:
            agent.close()


def second_reader(site: Site, *words: str) -> Callable[[], None]:
    """docs/reader.py as a step."""

    def read() -> None:
        os.environ["SPARSEBAK_PASSPHRASE_FILE"] = str(site.root / "pw")
        raise SystemExit(reader.main([str(site.archive), *words]))

    read.__name__ = f"reader {' '.join(words[:3])}"
    return read


class Trial:
    """One change of one file, every command, and what was wrong with what they did."""

    def __init__(self, scene: Scene, site: Site, files: Sequence[str], forged: bool) -> None:
        self.scene, self.site, self.files, self.forged = scene, site, files, forged
        self._packs = any(file.startswith("packs/") for file in files)
        self.faults: list[str] = []
        self.affected = frozenset().union(*map(scene.needing, files))
        self._out = site.root / "out"
        self._out.mkdir()
        self._key = ("--passphrase-file", str(site.root / "pw"))
        self._environ = {
            "SPARSEBAK_ARCHIVE": str(site.archive),
            "SPARSEBAK_AGENT": f"local:{site.config}",
            "HOME": str(site.root),
            "XDG_CACHE_HOME": str(site.root / "cache"),
            "TMPDIR": str(site.root),
        }

    def run(self, *steps: Step) -> list[Outcome]:
        """Run steps, and note what none may do."""
        found = run(steps, self._environ)
        for outcome in found:
            if outcome.fault:
                self.faults.append(f"{outcome.what}: {outcome.fault}")
            elif outcome.code and not outcome.err.strip():
                self.faults.append(f"{outcome.what}: exit code {outcome.code} without a word")
        return found

    def may_fail(self, kept: Kept) -> bool:
        return self.affected == EVERYTHING or kept.file in self.affected

    def read(self) -> None:
        """Everything that reads."""
        lost, exits = set(), {DAMAGED} | ({NO_ARCHIVE, WRONG_KEY} if self._of_all() else set())
        assembling: list[Step] = [
            ("assemble", k.volume, "--session", k.name, "-o", str(self._path(k)), *self._key)
            for k in self.scene.kept
        ]
        for kept, outcome in zip(self.scene.kept, self.run(*assembling), strict=True):
            if not self._right(kept, outcome, self._path(kept)):
                lost.add(kept.file)
                # a file's name does not say its session's, and a damaged one may claim another's
                unnamed = "has no session" in outcome.err or "could be" in outcome.err
                if outcome.code not in exits and not (outcome.code == 1 and unnamed):
                    self.faults.append(f"{outcome.what}: exit code {outcome.code}: {outcome.err}")
        reading: list[Step] = [
            second_reader(self.site, "assemble", k.volume, k.name, str(self._path(k)) + ".2")
            for k in self.scene.kept
        ]
        for kept, outcome in zip(self.scene.kept, self.run(*reading), strict=True):
            self._right(kept, outcome, Path(f"{self._path(kept)}.2"))
        self.run(second_reader(self.site, "list"))
        self.run(("list", *self._key), ("status", *self._key), ("list", "a/private", *self._key))
        self.run(
            ("diff", "a/private", self.scene.kept[0].name, "latest", *self._key),
            ("report", "-o", str(self._out / "r.html")),
        )
        verified, exported = self.run(
            ("verify", "--session", "all", *self._key),
            ("export", "a/private", "-o", str(self._out / "x"), *self._key),
        )
        if verified.code == 0 and lost:
            self.faults.append(f"verify: exit code 0, but {sorted(lost)} cannot be assembled")
        if verified.code and not lost and not self.affected:
            self.faults.append(f"verify: exit code {verified.code}: {verified.err}")
        (by_dom0,) = self.run(("verify", "--session", "all"))
        if by_dom0.code == 0 and lost and not self._of_all():  # it needs none of its key slots
            self.faults.append(f"verify in dom0: exit code 0, but {sorted(lost)} are lost")
        if by_dom0.code and not lost and not self.affected:
            self.faults.append(f"verify in dom0: exit code {by_dom0.code}: {by_dom0.err}")
        # a forged chunk is noticed where it is opened, which a sealed export does not do
        proves = not (self.forged and self._packs)
        if exported.code == 0 and proves and self.run(self._prove)[0].code:
            self.faults.append("export: exit code 0, but what it wrote does not prove right")
        self.lost = lost

    def _of_all(self) -> bool:
        return self.affected == EVERYTHING

    def _path(self, kept: Kept) -> Path:
        return self._out / f"{kept.volume.replace('/', '-')}-{kept.name}"

    def _right(self, kept: Kept, outcome: Outcome, output: Path) -> bool:
        """Whether a session came out; it must, unless the damage concerns it."""
        if outcome.code == 0:
            if output.read_bytes() == kept.contents:
                return True
            self.faults.append(f"{outcome.what}: exit code 0, but other contents")
        elif not self.may_fail(kept) and "could be" not in outcome.err:
            self.faults.append(f"{outcome.what}: exit code {outcome.code}: {outcome.err.strip()}")
        return False

    def _prove(self) -> None:
        from backup_vm.jobs.export import prove

        path = self._out / "x"
        with self.site.open() as archive, open(path, "rb") as stream:
            prove(archive, stream, path, Progress(), self.site.keys(archive))

    def copy_and_scrub(self) -> None:
        """What reads all, and what repairs."""
        copied, scrubbed, verified = self.run(
            ("copy", "--init", str(self.site.root / "copy")),
            ("scrub",),
            ("verify", "--session", "all", *self._key),
        )
        if self._of_all():
            return
        if self.lost and verified.code and not self.forged:  # a backup may have healed it
            if scrubbed.code == 0:
                self.faults.append(f"scrub: exit code 0, but {sorted(self.lost)} are lost")
            if copied.code == 0:
                self.faults.append(f"copy: exit code 0, but {sorted(self.lost)} are lost")
        if not self.affected and copied.code and "notes.json" not in copied.err:
            self.faults.append(f"copy: exit code {copied.code}: {copied.err.strip()}")

    def back_up(self, certain: bool) -> None:
        """Two backups: the second has nothing to complain of, and what is newest is what there is.

        Not ``certain``: what was forged only the key shows, and with it nothing comes out wrong.
        """
        words = ("backup", "--ignore-free-space")
        first, second = self.run(words, words)
        if self._of_all():
            return
        if first.code not in (0, DAMAGED):
            self.faults.append(f"backup: exit code {first.code}: {first.err.strip()}")
        if second.code:
            self.faults.append(f"second backup: exit code {second.code}: {second.err.strip()}")
        out = self._out / "newest"
        for name in VOLUMES:
            (outcome,) = self.run(("assemble", name, "-o", str(out), *self._key))
            if outcome.code == DAMAGED and not certain:
                continue
            if outcome.code or out.read_bytes() != self.site.contents(name):
                self.faults.append(f"newest session of {name} after backup: {outcome}")
            out.unlink(missing_ok=True)

    def thin(self) -> None:
        """Prune, and what is left is whole, or prune said that it is damaged and left it there."""
        (pruned,) = self.run(("prune", "--keep-last", "1", "--min-age", "0d"))
        if self._of_all():
            return
        if pruned.code not in (0, DAMAGED):
            self.faults.append(f"prune: exit code {pruned.code}: {pruned.err.strip()}")
        harmed = {*self.files, *re.findall(r"\S+(?= is damaged)", pruned.err)}
        for name in VOLUMES:
            (verified,) = self.run(("verify", name, *self._key))
            lines = verified.err.strip().splitlines() or [""]
            known = all(any(file in line for file in harmed) for line in lines)
            if verified.code and (pruned.code == 0 or not known):
                self.faults.append(f"verify {name} after prune: {verified.err.strip()}")
