# SPDX-License-Identifier: GPL-2.0-or-later
"""Random damage to an archive with parity, against a model: what loses no more blocks of any code
word than there are of parity is byte for byte as it was, all else as it is left, and reported.
"""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from backup_vm.archive.parity.plan import Plan, read
from backup_vm.errors import DamagedError
from tests.conftest import folder_in_memory
from tests.damage.parity import build, contents
from tests.kit import Site

KINDS = ("pack", "session", "parity")
SECTOR = 512
HITS = st.lists(
    st.tuples(
        st.sampled_from(KINDS),
        st.integers(0, 1 << 16),
        st.sampled_from(("flip", "zero", "cut", "lose")),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 4096),
    ),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def made() -> Iterator[Site]:
    for folder in folder_in_memory("parity"):
        yield build(folder / "site")


def plans_of(site: Site) -> list[Plan]:
    """Those that are readable."""
    found = []
    with site.open() as archive:
        for name in contents(site, "parity"):
            try:
                found.append(read(archive.storage, name, archive.parameters.archive))
            except DamagedError:
                continue
    return found


def hit(path: Path, how: str, where: float, sectors: int) -> None:
    """Damage a file that may be gone."""
    raw = bytearray(path.read_bytes()) if path.exists() else bytearray()
    at = int(len(raw) * where)
    if how == "lose":
        path.unlink(missing_ok=True)
        return
    if not raw:
        return
    if how == "flip":
        for place in {*random.Random(sectors).choices(range(len(raw)), k=min(sectors, 20)), at}:
            raw[place] ^= 0x40
    elif how == "zero":
        at -= at % SECTOR
        length = min(sectors * SECTOR, len(raw) - at)
        raw[at : at + length] = bytes(length)
    else:
        del raw[at:]
    path.write_bytes(raw)


def expected(
    plans: list[Plan], whole: dict[str, bytes], there: dict[str, bytes]
) -> dict[str, bytes | None]:
    """What every file is to be after a repair; None for one that stays missing."""
    found = {name: there.get(name) for name in whole if not name.startswith("parity")}
    for plan in plans:
        shape, size, lost = plan.shape, plan.shape.block_size, set[int]()
        for member in plan.members:
            for number in range(member.first, member.end):
                at = (number - member.first) * size
                want = whole[member.name][at : at + size]
                if there.get(member.name, b"")[at : at + size][: len(want)] != want:
                    lost.add(number)
        for number in range(shape.parity_blocks):
            at = plan.parity_at(number)
            if there[plan.name][at : at + size] != whole[plan.name][at : at + size]:
                lost.add(shape.rows * shape.width + number)
        columns = [number % shape.width for number in lost]
        for member in plan.members:
            mine = {number % shape.width for number in lost & {*range(member.first, member.end)}}
            if all(columns.count(column) <= shape.parity_rows for column in mine):
                found[member.name] = whole[member.name]
    return found


@settings(max_examples=3, phases=(Phase.reuse, Phase.generate))
@given(hits=HITS)
def test_what_is_promised_is_mended_and_the_rest_is_reported(
    made: Site, hits: list[tuple[str, int, str, float, int]]
) -> None:
    whole = contents(made, *KINDS)
    folder = made.root.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made.root, folder, symlinks=True)
    site = Site(folder, make=False)
    for kind, which, how, where, sectors in hits:
        names = [name for name in whole if name.endswith(kind)]
        hit(site.archive / names[which % len(names)], how, where, sectors)
    there = contents(site, *KINDS)
    want = expected(plans_of(site), whole, there)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
        code = run(site, "scrub", "--repair")
        after = contents(site, *KINDS)
        assert {n: raw for n, raw in there.items() if n.startswith("parity")} == {
            n: raw for n, raw in after.items() if n.startswith("parity")
        }
        for name, raw in want.items():
            assert after.get(name) == raw, name
        beyond = any(want[name] != whole[name] for name in want)
        assert code == (4 if beyond else 0)
        # What it said once it says again, and a scrub that makes parity leaves what mends.
        assert run(site, "scrub", "--parity", "25%") == code
        assert contents(site) == {n: raw for n, raw in want.items() if raw is not None}
        if not beyond:
            assert run(site, "scrub") == 0
            assert len(site.images()) == 3


def run(site: Site, *words: str) -> int:
    from backup_vm import cli

    return cli.main(["--config", "/dev/null", *words])
