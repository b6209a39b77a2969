# SPDX-License-Identifier: GPL-2.0-or-later
"""An office through time: laptops back up each working day, upkeep runs each week, and what stays
is what the rules say. ``make office``: 50 laptops for a year; with ``make test`` a few of them for
some weeks.
"""

import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backup_vm.archive.opening import open_archive
from bench.office import Laptop
from tests.upkeep.kit import DAY, Office

RULES = """
sample = "20%"
max_age = "21d"
[prune]
keep_daily = 5
keep_weekly = 4
keep_monthly = 12
min_age = "2d"
max_removed = "100%"
"""
LAPTOPS = int(os.environ.get("SPARSEBAK_LAPTOPS", "4"))
WEEKS = int(os.environ.get("SPARSEBAK_WEEKS", "6"))
BEGIN = datetime(2025, 1, 6, 12, tzinfo=UTC).timestamp()
"""So long ago that the year is over: a store's clock, which is the real one, is never behind."""


def by_rules(times: list[float]) -> set[float]:
    """The newest of each of the last days, weeks and months that have a session. ``times`` rise."""
    kept = set(times[-1:])
    for count, kind in ((5, "%Y-%m-%d"), (4, "%G-%V"), (12, "%Y-%m")):
        newest: dict[str, float] = {}
        for when in reversed(times):
            newest.setdefault(datetime.fromtimestamp(when, UTC).strftime(kind), when)
        kept |= set(list(newest.values())[:count])
    return kept


def stay(times: list[float], stored: dict[float, float], now: float) -> set[float]:
    """The model: what the rules keep, what is younger than two days, and what the rules keep of
    those alone that the store has had for longer.
    """
    settled = [when for when in times if max(when, stored[when]) <= now - 2 * DAY]
    young = {when for when in times if now - when < 2 * DAY}
    return by_rules(times) | by_rules(settled) | young


def stored(place: Path, taken: list[float], now: float) -> dict[float, float]:
    """When the store got the file of each session, by its time; those written since the clock was
    set got there now. ``taken``: times of all sessions that were ever taken.
    """
    found = {}
    for path in place.glob("volumes/*/*.session"):
        if path.stat().st_mtime > now:
            os.utime(path, (now, now))
        found[taken[int(path.name[:10]) - 1]] = path.stat().st_mtime
    return found


def held(place: Path) -> list[float]:
    """Times of the sessions that an archive has."""
    with open_archive(place, writing=False) as archive:
        assert not archive.warnings
        found = archive.sessions().values()
        return [float(one.clear.time) for series in found for one in series]


def told(
    week: int, row: Any, kept: set[float], had: dict[float, float], office: Office
) -> dict[str, Any]:
    """What there is to say of an archive that has not got the sessions that it should have."""
    there = set(held(Path(office.place, row["name"])))
    return {
        "week": week,
        "too many": {when: had.get(when) for when in there - kept},
        "too few": {when: had.get(when) for when in kept - there},
        "row": {key: row[key] for key in ("name", "state", "problems", "sessions", "kept")},
    }


def test_a_year_of_an_office(office: Office) -> None:
    rng, copies = random.Random(1), office.folder / "copies"
    copies.mkdir()
    office.rules.write_text(RULES)
    office.clock = BEGIN
    names = [f"laptop-{number:02d}" for number in range(LAPTOPS)]
    laptops = {name: Laptop(f"{office.place}/{name}", BEGIN) for name in names}
    expected: dict[str, list[float]] = {name: [] for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    gone, broken = names[0], names[1]
    """One that is never switched on again after the first weeks, and one whose disk rots."""
    noticed = False
    for week in range(WEEKS):
        for day in range(5):
            for name, laptop in laptops.items():
                if (name == gone and week >= 3) or rng.random() < 0.15:
                    continue
                at = float(int(BEGIN + (7 * week + day) * DAY + rng.randrange(DAY // 3)))
                laptop.back_up(at)
                expected[name].append(at)
                taken[name].append(at)
                stored(Path(office.place, name), taken[name], at)
        office.clock = BEGIN + (7 * week + 6) * DAY
        words = ("--rules", str(office.rules), "--copy-to", str(copies))
        if week == WEEKS // 2:
            # of its newest session, in a week in which all is looked at: a part of the packs
            # might come to it when nothing needs it any more
            packs = Path(office.place, broken, "packs").rglob("*.pack")
            newest = max(packs, key=lambda path: path.stat().st_mtime_ns)
            raw = bytearray(newest.read_bytes())
            raw[len(raw) // 3] ^= 1
            newest.write_bytes(raw)
            words += ("--sample", "100%")
        had = {n: stored(Path(office.place, n), taken[n], office.clock) for n in names}
        report = office.keep(*words, expect=None)[0]
        damaged = {row["name"] for row in report["archives"] if row["state"] == "damaged"}
        assert (report["exit"] == 4) == bool(damaged) and damaged <= {broken}, report
        noticed |= bool(damaged)
        assert noticed == (week >= WEEKS // 2)
        for row in report["archives"]:
            name, times = row["name"], expected[row["name"]]
            if name == broken and noticed:
                continue
            kept = stay(times, had[name], office.clock)
            expected[name] = [when for when in times if when in kept]
            assert row["sessions"] == len(kept), told(week, row, kept, had[name], office)
            aged = name == gone and office.clock - times[-1] > 21 * DAY
            assert row["state"] == ("look at it" if aged else "well"), row
            assert row["copied"] is not None
            stored(Path(office.place, name), taken[name], office.clock)
    for name in names:
        if name == broken and noticed:
            continue
        assert held(Path(office.place, name)) == expected[name]
        assert set(held(copies / name)) >= set(expected[name])
        if name != broken:  # what was pruned is given back: no pack without a chunk that is needed
            with open_archive(Path(office.place, name), writing=False) as archive:
                assert len(archive.pack_files()) <= archive.catalog.count()[0]
    if WEEKS >= 52:
        # put back from the copy, it is kept as all others are
        shutil.rmtree(Path(office.place, broken))
        shutil.copytree(copies / broken, Path(office.place, broken))
        rows = {row["name"]: row for row in office.keep(*words, expect=None)[0]["archives"]}
        assert rows[broken]["state"] == "well", rows[broken]
