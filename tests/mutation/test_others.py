# SPDX-License-Identifier: GPL-2.0-or-later
"""Exported sessions and leases made wrong in every way: nothing is taken in that is not right,
nothing stands in the way.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_vm.archive.format import ExportedFile
from backup_vm.archive.holder import Holder
from backup_vm.errors import Exit
from tests.children import Outcome, run
from tests.conftest import folder_in_memory
from tests.kit import Site
from tests.mutation import forms
from tests.mutation.forms import Change
from tests.mutation.scene import Scene, build
from tests.mutation.test_archive import check, chosen


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    for folder in folder_in_memory("others"):
        scene = build(folder / "site")
        words = ("export", "a/private", "-o", str(scene.exported), *key(scene.site))
        (done,) = run([words], environ(scene.site))
        assert done.code == 0, done
        yield scene


def key(site: Site) -> tuple[str, str]:
    return ("--passphrase-file", str(site.root / "pw"))


def environ(site: Site, archive: Path | None = None) -> dict[str, str]:
    return {
        "SPARSEBAK_ARCHIVE": str(archive or site.archive),
        "SPARSEBAK_AGENT": f"local:{site.config}",
        "HOME": str(site.root),
        "TMPDIR": str(site.root),
    }


def told(outcome: Outcome, *codes: int) -> list[str]:
    """What was wrong with how a command ended."""
    if outcome.fault:
        return [f"{outcome.what}: {outcome.fault}"]
    if outcome.code not in codes or (outcome.code and not outcome.err.strip()):
        return [f"{outcome.what}: exit code {outcome.code}: {outcome.err.strip()[-300:]}"]
    return []


def test_an_exported_session_with_other_contents(scene: Scene, quick_folder: Path) -> None:
    raw, faults = scene.exported.read_bytes(), []
    contents = [kept for kept in scene.kept if kept.volume == "a/private"][-1].contents
    fields = forms.fields_of(ExportedFile, raw)
    changes = [
        *forms.in_fields(raw, fields, forms.seal_exported),
        *forms.in_length(raw, fields, forms.seal_exported),
    ]
    for change in chosen("exported", changes, 8):
        archive, file, out = quick_folder / "a", quick_folder / "file.sbx", quick_folder / "out"
        shutil.rmtree(archive, ignore_errors=True)
        archive.mkdir()
        shutil.copy(scene.site.archive / "archive.toml", archive)
        file.write_bytes(change.raw)
        mine = key(scene.site)
        (taken,) = run([("import", str(file), *mine)], environ(scene.site, archive))
        found = told(taken, 0, Exit.FAILED, Exit.DAMAGED)
        if taken.code == 0:
            words = ("assemble", "a/private", "-o", str(out), *mine)
            (got,) = run([words], environ(scene.site, archive))
            if got.code or out.read_bytes() != contents:
                found.append("taken in, but it is not the session that was exported")
            out.unlink(missing_ok=True)
        elif list(archive.rglob("*.session")):
            found.append("refused, but stored")
        run([("import", str(file))], environ(scene.site, archive))
        faults += [f"{change.name}: {fault}" for fault in found]
        (scrubbed,) = run([("scrub",)], environ(scene.site, archive))
        faults += [f"{change.name}: {fault}" for fault in told(scrubbed, 0)]
    check(faults)


def test_a_lease_with_other_contents(scene: Scene, quick_folder: Path) -> None:
    fields = Holder.this("backup")._asdict()
    changes = [Change(name, json.dumps(tree).encode()) for name, tree in forms.in_tree(fields)]
    changes += forms.in_length(json.dumps(fields).encode(), [], None)
    faults = []
    for change in chosen("lease", changes, 8):
        site = scene.copy(quick_folder / "case")
        (site.archive / "locks").mkdir(exist_ok=True)
        (site.archive / "locks/writer-1").write_bytes(change.raw)
        backup = ("backup", "--ignore-free-space")
        steps = [("list",), backup, ("unlock",), ("unlock", "--yes"), backup]
        listed, first, _, unlocked, second = done = run(steps, environ(site))
        found = told(listed, 0) + told(first, 0, Exit.LOCKED)
        found += told(unlocked, 0) + told(second, 0)
        found += [f"{o.what}: {o.fault}" for o in done if o.fault]
        faults += [f"{change.name}: {fault}" for fault in found]
    check(faults)


@pytest.mark.parametrize("name", ["writer-0", "writer-999999999999999", "writer-", "writer-1-x"])
def test_a_lease_of_an_odd_name_keeps_nobody_away_for_ever(
    scene: Scene, quick_folder: Path, name: str
) -> None:
    site = scene.copy(quick_folder / "case")
    (site.archive / "locks").mkdir(exist_ok=True)
    (site.archive / "locks" / name).write_bytes(b"")
    backup = ("backup", "--ignore-free-space")
    first, unlocked, second = run([backup, ("unlock", "--yes"), backup], environ(site))
    check(told(first, 0, Exit.LOCKED) + told(unlocked, 0) + told(second, 0))
