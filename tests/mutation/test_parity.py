# SPDX-License-Identifier: GPL-2.0-or-later
"""Parity files made wrong in every way, foreign ones and old ones put back: a scrub with --repair
makes no good file worse, and passes no damage off.
"""

import hashlib
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from backup_vm.archive.format import DIGEST_SIZE, ParityFile, ParityFoot
from tests.children import Outcome, run
from tests.conftest import folder_in_memory
from tests.damage.parity import build, contents, files, spoil
from tests.kit import GRAIN, Site
from tests.mutation import forms
from tests.mutation.test_archive import check, chosen

DAMAGED = 4


@dataclass
class Covered:
    """``site`` with parity, and its packs and sessions; ``old``: its files, parity as well, from
    before a prune and a backup; ``other``: the parity files of another archive.
    """

    site: Site
    whole: dict[str, bytes]
    old: dict[str, bytes]
    other: dict[str, bytes]
    images: list[bytes]


def environ(site: Site) -> dict[str, str]:
    return {
        "SPARSEBAK_ARCHIVE": str(site.archive),
        "SPARSEBAK_AGENT": f"local:{site.config}",
        "HOME": str(site.root),
        "TMPDIR": str(site.root),
    }


def must(site: Site, *words: str) -> None:
    (done,) = run([words], environ(site))
    assert done.code == 0 and not done.fault, done


@pytest.fixture(scope="module")
def covered() -> Iterator[Covered]:
    for folder in folder_in_memory("mutated-parity"):
        site, other = build(folder / "site"), build(folder / "other")
        old = contents(site, "pack", "session", "parity")
        with open(site.image(), "r+b") as file:
            file.write(random.Random(9).randbytes(3 * GRAIN))
        site.backup()
        must(site, "prune", "--keep-last", "2", "--min-age", "0d", "--max-removed", "100%")
        must(site, "scrub", "--parity", "25%")
        yield Covered(
            site, contents(site), old, contents(other, "parity"), list(site.images().values())
        )


def seal(raw: bytes) -> bytes:
    """The digests of both copies of the plan made right, where the foot says they are."""
    end = len(raw) - ParityFoot.length()
    (length,) = struct.unpack_from("<Q", raw, end)
    if not DIGEST_SIZE < length <= end // 2:
        return raw
    whole = bytearray(raw)
    for at in (0, end - length):
        body = raw[at : at + length - DIGEST_SIZE]
        digest = hashlib.blake2b(body, digest_size=DIGEST_SIZE).digest()
        whole[at + length - DIGEST_SIZE : at + length] = digest
    return bytes(whole)


def twice(raw: bytes) -> bytes:
    """What was changed in the first copy of the plan is so in the second, too."""
    end = len(raw) - ParityFoot.length()
    (length,) = struct.unpack_from("<Q", raw, end)
    if not DIGEST_SIZE < length <= end // 2:
        return raw
    return seal(raw[: end - length] + raw[:length] + raw[end:])


def tried(
    covered: Covered, folder: Path, what: str, harm: Callable[[Site], object], damage: bool
) -> list[str]:
    """What was wrong with a repair of an archive, one of whose packs and sessions are damaged with
    ``damage``, after ``harm`` was done to its parity.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(covered.site.root, folder, symlinks=True)
    site = Site(folder, make=False)
    if damage:
        spoil(files(site, "pack")[1], 100, 5000)
        spoil(files(site, "session")[0], 100, 300)
    harm(site)
    before = contents(site)
    repaired, scrubbed, status = run(
        [("scrub", "--repair", "--json"), ("scrub",), ("status",)], environ(site)
    )
    after, faults = contents(site), [one.fault for one in (repaired, scrubbed, status) if one.fault]
    for name, raw in covered.whole.items():
        # Old parity brings a session back as it was, with those it was built on.
        if after.get(name) not in (raw, before.get(name), covered.old.get(name)):
            faults.append(f"{name} is neither what it was nor what was left of it")
        if before.get(name) == raw != after.get(name):
            faults.append(f"{name} was good, and is not any more")
    for name in after.keys() - before.keys() - covered.whole.keys():
        if after[name] != covered.old.get(name):
            faults.append(f"{name} was made of nothing")
    if after == covered.whole and repaired.code:
        faults.append(f"scrub --repair: exit code {repaired.code}, and all is whole")
    if after == before != covered.whole and not repaired.code:
        faults.append("scrub --repair: exit code 0, and nothing is mended")
    faults += _told(repaired, scrubbed)
    if not scrubbed.code and list(site.images().values())[-2:] != covered.images:
        faults.append("scrub: exit code 0, and images are others")
    return [f"{what}: {fault}" for fault in faults]


def _told(repaired: Outcome, scrubbed: Outcome) -> Iterator[str]:
    # Which packs there are under which names is chance, and so is whether what was spoilt is in a
    # chunk that no session needs any more: that is reported once.
    said_once = repaired.code == DAMAGED and not any(
        row["sessions"] for row in json.loads(repaired.out)["damaged"]
    )
    if (repaired.code == 0) != (scrubbed.code == 0) and not (said_once and not scrubbed.code):
        yield f"scrub --repair: {repaired.code}, scrub after it: {scrubbed.code}"
    for done in (repaired, scrubbed):
        if done.code not in (0, DAMAGED):
            yield f"{done.what}: exit code {done.code}: {done.err.strip()[-300:]}"


def test_damage_to_what_no_session_needs_is_said_once(covered: Covered, quick_folder: Path) -> None:
    """In a hole, and no parity to mend it by."""
    holes = [one for one in files(covered.site, "pack") if not any(one.read_bytes()[100:5100])]
    holed = holes[0].relative_to(covered.site.archive)

    def harm(site: Site) -> None:
        spoil(site.archive / holed, 100, 5000)
        shutil.rmtree(site.archive / "parity")

    check(tried(covered, quick_folder / "case", "a hole", harm, False))


@pytest.mark.parametrize("which", [0, -1], ids=["packs", "sessions"])
def test_a_parity_file_with_other_contents(
    covered: Covered, quick_folder: Path, which: int
) -> None:
    name = max(sorted(contents(covered.site, "parity").items()), key=lambda one: len(one[1]))[0]
    if which:
        name = min(contents(covered.site, "parity").items(), key=lambda one: len(one[1]))[0]
    raw = (covered.site.archive / name).read_bytes()
    fields = forms.fields_of(ParityFile, raw)
    changes = [*forms.in_fields(raw, fields, twice), *forms.in_length(raw, fields, seal)]
    faults = []
    for number, change in enumerate(chosen(f"parity {which}", changes, 2)):

        def harm(site: Site, change: forms.Change = change) -> None:
            (site.archive / name).write_bytes(change.raw)

        faults += tried(covered, quick_folder / "case", change.name, harm, number % 2 == 0)
    check(faults)


def put(found: dict[str, bytes]) -> Callable[[Site], None]:
    """Put parity files in the place of those there are."""

    def harm(site: Site) -> None:
        shutil.rmtree(site.archive / "parity")
        for name, raw in found.items():
            path = site.archive / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)

    return harm


def swap(site: Site) -> None:
    first, *_, last = files(site, "parity")
    one, other = first.read_bytes(), last.read_bytes()
    first.write_bytes(other)
    last.write_bytes(one)


@pytest.mark.parametrize("damage", [True, False])
def test_parity_of_another_archive_or_another_time(
    covered: Covered, quick_folder: Path, damage: bool
) -> None:
    now = contents(covered.site, "parity")
    old = {name: raw for name, raw in covered.old.items() if name.startswith("parity")}
    folder, faults = quick_folder / "case", []
    for what, harm in (
        ("another archive's", put(covered.other)),
        ("old", put(old)),
        ("old beside the new", put({**old, **now})),
        ("another archive's beside ours", put({**covered.other, **now})),
        ("swapped", swap),
    ):
        faults += tried(covered, folder, what, harm, damage)
    check(faults)
