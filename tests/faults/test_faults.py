# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command and every call on a disk that is full, broken, read-only: nothing that was stored
is lost, and the exit code is 0 only where all is done. What runs then without a fault is exact, and
nothing is left over."""

import os
import re
import zlib
from collections.abc import Iterator

import pytest

from tests.faults.caretaking import CARE
from tests.faults.ends import state
from tests.faults.harness import VOLUMES, WARNING, Bench, Images, Outcome, Place, run
from tests.faults.inside import INSIDE
from tests.faults.kinds import KINDS, Kind
from tests.faults.scenarios import SCENARIOS, Scenario

EVERY = os.environ.get("SPARSEBAK_FAULTS", "")
"""``all``: each call that can fail does; a number: so many calls of each kind of fault. Otherwise a
sample.
"""
SAMPLE = 2
"""Faults of one command in a sample."""
SAMPLED = ("scrub --repair", "records", "serve", "files index")
"""What of CARE and INSIDE is in a sample; FAULTS=1 has all of it."""
FREE = re.compile(r"[0-9.]+ [KMGTP]?i?B free")
"""Of a disk, which others fill and empty meanwhile."""
CHOSEN = SCENARIOS + tuple(one for one in CARE + INSIDE if EVERY or one.name in SAMPLED)


@pytest.mark.parametrize("scenario", CHOSEN, ids=lambda scenario: scenario.name)
def test_a_disk_that_fails(bench: Bench, scenario: Scenario) -> None:
    problems: list[str] = []
    counts = _without_a_fault(bench, scenario, problems)
    if not problems:
        for kind, number in _chosen(scenario, counts):
            problems += _with_a_fault(bench, scenario, kind, number)
    assert not problems, f"{len(problems)} problems:\n" + "\n".join(problems)


def _chosen(scenario: Scenario, counts: list[int]) -> Iterator[tuple[Kind, int]]:
    """Kinds of faults, and the numbers of calls that are to meet them."""
    able = [(kind, count) for kind, count in zip(KINDS, counts, strict=True) if count]
    only = os.environ.get("SPARSEBAK_FAULT", "").partition(":")
    for at, (kind, count) in enumerate(able):
        if only[0]:
            if kind.name == only[0]:
                yield from ((kind, n) for n in ([int(only[2])] if only[2] else range(1, count + 1)))
        elif EVERY:
            step = 1 if EVERY == "all" else -(-count // int(EVERY))
            yield from ((kind, number) for number in range(1, count + 1, step))
        else:
            # Of each command other kinds; of each kind the first call, the last, and those between.
            turn = zlib.crc32(scenario.name.encode()) + at
            if turn % len(able) < SAMPLE:
                spread = (1, count, (count + 1) // 2, 1 + turn * 7919 % count)
                yield kind, spread[turn // len(able) % len(spread)]


def _without_a_fault(bench: Bench, scenario: Scenario, problems: list[str]) -> list[int]:
    """How many calls could meet each kind of fault; the run itself is as it should be."""
    bench.prepare(scenario.prepare)
    faulty, sound = bench.place()
    bench.system.fail(*(kind.counter(bench.pattern(scenario.where)) for kind in KINDS))
    outcome = run(lambda: scenario.started(faulty), turn=1)
    counts = bench.system.seen()
    bench.system.fail()
    bench.shown = _lines(outcome)
    if not any(counts):
        problems.append(f"nothing that it does reaches {scenario.where}")
    if outcome.code != scenario.code:
        problems.append(f"without a fault: exit {outcome.code}: {outcome.text}")
    problems += [
        f"without a fault: {problem}" for problem in _found(bench, scenario, sound, outcome, True)
    ]
    return counts


def _with_a_fault(bench: Bench, scenario: Scenario, kind: Kind, number: int) -> Iterator[str]:
    faulty, sound = bench.place()
    bench.system.fail(kind.fault(number, bench.pattern(scenario.where)))
    outcome = run(lambda: scenario.started(faulty), turn=1)
    met = bench.system.failed()
    bench.system.fail()
    if met:
        for problem in _found(bench, scenario, sound, outcome, bool(kind.short and not kind.then)):
            yield f"* {kind.name}:{number} [{met[0]}] exit {outcome.code}: {problem}"


def _found(
    bench: Bench, scenario: Scenario, place: Place, outcome: Outcome, harmless: bool
) -> Iterator[str]:
    """What is wrong after a run: at once, after another one of the same, and after a backup."""
    yield from outcome.problems()
    if outcome.code == 0 != scenario.code:
        yield f"exit 0 where it should have been {scenario.code}"
    done = outcome.code == scenario.code
    if harmless and not done:
        yield f"exit {outcome.code}, though nothing failed: {outcome.text[-500:]}"
    if done and scenario.shows and (left_out := _silently(bench, outcome)):
        yield f"exit {outcome.code}, and nothing says why it does not show {left_out}"
    end = scenario.name, "done" if done else "", state(place.root)
    if end not in bench.judged:
        bench.judged[end] = [*_at_once(bench, scenario, place, done)]
        if not scenario.once:
            bench.judged[end] += _again(scenario, place)
        end_then = scenario.name, "then", state(place.root)
        if end_then not in bench.judged:
            bench.judged[end_then] = [*_then(bench, scenario, place)]
        bench.judged[end] += bench.judged[end_then]
    yield from bench.judged[end]


def _lines(outcome: Outcome) -> list[str]:
    """What a run showed, without numbers that change by themselves."""
    return FREE.sub("... free", outcome.text).splitlines()


def _silently(bench: Bench, outcome: Outcome) -> set[str]:
    """What a run did not show, if it warns of nothing that it does not warn of without a fault."""
    shown = {*_lines(outcome)}
    warned = [
        line
        for line in shown.difference(bench.shown)
        if WARNING.match(line) or line.startswith(str(bench.system.path))
    ]
    return set() if warned else {*bench.shown} - shown


def _at_once(bench: Bench, scenario: Scenario, place: Place, done: bool) -> Iterator[str]:
    """What is wrong with what a run left."""
    if done:
        yield from _kept(place, scenario, "though the exit code says that it is done")
    if not scenario.damaged:
        yield from _whole(bench, scenario, place, "after it")


def _again(scenario: Scenario, place: Place) -> Iterator[str]:
    """What is wrong with another run of the same."""
    again = run(lambda: scenario.started(place), turn=2)
    if again.code not in {scenario.code, *scenario.again}:
        yield f"the same again: exit {again.code}: {again.text[-500:]}"
    yield from (f"the same again: {problem}" for problem in again.problems())
    yield from _kept(place, scenario, "after the same again")


def _then(bench: Bench, scenario: Scenario, place: Place) -> Iterator[str]:
    """What is wrong with a backup after that, and after it."""
    place.let_time_pass()
    backup = place.command("backup")
    if backup.code:
        yield f"the next backup: exit {backup.code}: {backup.text[-700:]}"
    yield from (f"the next backup: {problem}" for problem in backup.problems())
    yield from _whole(bench, scenario, place, "after the next backup")
    now, images = place.now(), _images(place)
    if isinstance(images, str):
        yield images
    else:
        for name in VOLUMES:
            if [*images[name].values()][-1:] != [now[name]]:
                yield f"the next backup is not the volume {name}"
    for words in (("scrub",), ("verify", "--passphrase-file", "{passphrase}")):
        check = place.command(*words)
        if check.code:
            yield f"{words[0]} afterwards: exit {check.code}: {check.text[-500:]}"
    for archive in ("copy", "fresh"):
        if (place.root / archive).exists():
            check = place.command("scrub", archive=archive)
            if check.code:
                yield f"scrub of {archive}: exit {check.code}: {check.text[-500:]}"
    # What a command was making at a place of its own, on a disk that removes nothing, stays.
    if left := [name for name in place.leftovers() if not name.startswith("out.")]:
        yield f"left over: {left}"


def _kept(place: Place, scenario: Scenario, when: str) -> Iterator[str]:
    """What the command promised and did not keep."""
    try:
        scenario.promised(place)
    except Exception as error:
        yield f"{when}: {type(error).__name__}: {str(error)[:500]}"


def _images(place: Place, archive: str = "site/archive") -> Images | str:
    try:
        return place.images(archive)
    except Exception as error:
        return f"{archive} cannot be read: {type(error).__name__}: {error}"


def _whole(bench: Bench, scenario: Scenario, place: Place, when: str) -> Iterator[str]:
    """What of the sessions stored before is lost, and what was never in a volume."""
    doomed = {place.names.get(word, word) for word in scenario.doomed}
    now = place.now()
    for archive, known in bench.known.items():
        if not (place.root / archive / "archive.toml").exists():
            if archive != "copy":
                yield f"{when}: {archive} is gone"
            continue
        found = _images(place, archive)
        if isinstance(found, str):
            yield f"{when}: {found}"
            continue
        for name in VOLUMES:
            for session, image in known[name].items():
                there = found[name].get(session)
                if there is None and (archive == "copy" or doomed & {session, name}):
                    continue  # removed, as it was asked to be, or the copy is new
                if there is None or there != image:
                    yield (
                        f"{when}: {name} {session} in {archive} is"
                        f" {'lost' if there is None else 'another'}"
                    )
            allowed = [now[name], *bench.known["site/archive"][name].values(), *bench.volumes[name]]
            for session, image in found[name].items():
                if image not in allowed:
                    yield f"{when}: {name} {session} in {archive} is no image that ever was"
    if scenario.changes_volume:
        name = "work/private"
        if now[name] not in (
            *bench.volumes[name],
            bench.known["site/archive"][name][place.names["first"]],
        ):
            yield f"{when}: {name} is a mixture"
