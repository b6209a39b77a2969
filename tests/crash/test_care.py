# SPDX-License-Identifier: GPL-2.0-or-later
"""Parity being made and mended by, upkeep and a drill, killed at every durable step: nothing that
was good is lost, and the same command again makes it whole.
"""

import os
import shutil
from collections.abc import Callable, Iterator

import pytest

from backup_vm import cli
from tests.conftest import folder_in_memory
from tests.damage.parity import build, contents, files, spoil
from tests.kit import PASSPHRASE, Site, in_child
from tests.steps import DIED, Counter

LONG = os.environ.get("SPARSEBAK_LONG") == "1"
STEPS = ("fsync", "replace", "rename", "unlink", "mkdir", "ftruncate", "pwrite", "open")
SAMPLE = 3
"""Steps at which a command dies in a short run: the first, the last and some between."""


@pytest.fixture(scope="module")
def made() -> Iterator[Site]:
    for folder in folder_in_memory("care"):
        yield build(folder / "site")


def called(site: Site, *words: str) -> int:
    os.environ |= {"SPARSEBAK_ARCHIVE": str(site.archive), "XDG_STATE_HOME": str(site.root / "s")}
    os.environ["XDG_CACHE_HOME"] = str(site.root / "c")
    return cli.main(["--config", "/dev/null", "-u", "-q", *words])


def _steps(site: Site, *words: str) -> int:
    """How many there are."""
    counted = site.root / "steps"

    def count() -> None:
        counter = Counter(0)
        counter.install(STEPS)
        assert called(site, *words) == 0
        counted.write_text(str(counter.done))

    assert in_child(count) == 0
    return int(counted.read_text())


def dying(
    made: Site,
    words: tuple[str, ...],
    harm: Callable[[Site], object],
    after: Callable[[Site], None],
) -> None:
    """``harm`` a copy, run a command that dies there at its n-th step, and look at what is left."""

    def copy() -> Site:
        folder = made.root.parent / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made.root, folder, symlinks=True)
        (folder / "pw").write_bytes(PASSPHRASE)
        site = Site(folder, make=False)
        harm(site)
        return site

    most = _steps(copy(), *words)
    assert most > 3
    chosen = range(1, most + 1)
    spread = sorted({1 + at * (most - 1) // (SAMPLE - 1) for at in range(SAMPLE)})
    for fatal in chosen if LONG else spread:
        site = copy()

        def die(site: Site = site, fatal: int = fatal) -> None:
            Counter(fatal).install(STEPS)
            called(site, *words)

        assert in_child(die) in (0, DIED), fatal
        after(site)
        assert in_child(lambda site=site: _ended(called(site, *words))) == 0, fatal
        after(site)
        left = [path for path in site.archive.rglob("*") if path.name.endswith((".tmp", ".new"))]
        assert not left, (fatal, left)
        assert in_child(lambda site=site: _ended(called(site, "scrub"))) == 0, fatal


def _ended(code: int) -> None:
    assert code == 0, code


def without_parity(site: Site) -> None:
    shutil.rmtree(site.archive / "parity")


def damaged(site: Site) -> None:
    spoil(files(site, "pack")[1], 100, 5000)
    spoil(files(site, "session")[1], 100, 300)


def test_making_parity(made: Site) -> None:
    whole = contents(made)

    def as_it_was(site: Site) -> None:
        assert contents(site) == whole

    dying(made, ("scrub", "--parity", "25%"), without_parity, as_it_was)


def test_mending(made: Site) -> None:
    """Each file is as it was before the damage, or as the damage left it, at any moment."""
    whole = contents(made)
    bad: dict[str, bytes] = {}

    def harm(site: Site) -> None:
        damaged(site)
        bad.update({n: raw for n, raw in contents(site).items() if raw != whole[n]})

    def the_one_or_the_other(site: Site) -> None:
        for name, raw in contents(site).items():
            assert raw in (whole[name], bad.get(name)), name

    dying(made, ("scrub", "--repair"), harm, the_one_or_the_other)


def test_upkeep(made: Site) -> None:
    """With rules that prune: what stays is exact."""
    newest = list(made.images().values())[-1]

    def rules(site: Site) -> None:
        (site.root / "copies").mkdir()
        (site.root / "rules").write_text(
            'sample = "all"\n[prune]\nkeep_last = 1\nmin_age = "0d"\nmax_removed = "100%"\n'
        )

    case = made.root.parent / "case"
    words = ("upkeep", str(case / "archive"), "--copy-to", str(case / "copies"))
    words += ("--rules", str(case / "rules"))

    def kept(site: Site) -> None:
        assert in_child(lambda: _is(list(site.images().values())[-1], newest)) == 0

    dying(made, words, rules, kept)


def _is(one: bytes, other: bytes) -> None:
    assert one == other


def test_a_drill(made: Site) -> None:
    whole = contents(made)

    def as_it_was(site: Site) -> None:
        assert contents(site) == whole

    pw = made.root.parent / "case/pw"
    dying(made, ("drill", "--passphrase-file", str(pw)), lambda site: None, as_it_was)
