# SPDX-License-Identifier: GPL-2.0-or-later
"""What changes who is who (``tracking.identities``): a qube that was renamed, made again, or is
known from an archive.

The rules are functions from what is known to what is known then; ``change`` keeps the result.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from common.durable import Busy, closing_fd, lock, make_directory, sync_directory
from common.durable import replace as replace_file
from common.existing import exists, is_dir
from dom0_agent.log import ERROR, INFO, log
from dom0_agent.tracking.identities import DOM0, Identities, Known, load, place, written
from dom0_agent.tracking.state import VolumeState, known_volumes
from wire.names import new_identity, parse_name, set_aside
from wire.status import Code, Refused

PATIENCE = 10.0
"""Seconds to wait for another command that does the same."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_NO_UUID = "00000000-0000-0000-0000-000000000000"


def change(state_dir: Path, rule: Callable[[Identities], Identities]) -> Identities:
    """Apply a rule to what is known and keep what comes of it; the file's replacement is the commit
    point. Raises OSError.

    What is damaged or lost is made again from the volumes' states, as far as they say it.
    """
    make_directory(state_dir)
    try:
        fd = lock(state_dir / "identities.lock", patience=PATIENCE)
    except Busy:
        raise Refused(Code.BUSY, "another command renames qubes just now; try again") from None
    with closing_fd(fd):
        try:
            before = load(state_dir)
        except Refused as damaged:
            log(ERROR, f"{damaged}; it is made again from the states of the volumes")
            before = Identities()
        if not before.kept:
            before = rebuilt(state_dir)
        after = rule(before)
        if after != before or not before.kept:
            replace_file(place(state_dir), after.to_bytes())
            for line in _words(before, after):
                log(INFO, line)
        if not exists(written(state_dir)):
            written(state_dir).touch(0o600)
            sync_directory(state_dir)
        return after._replace(kept=True)


def _words(before: Identities, after: Identities) -> Iterable[str]:
    """What became of names, for the log."""
    for identity, known in after.known.items():
        was = before.name(identity)
        if was == known.name or identity not in before.known and not known.retired:
            continue
        if known.retired:
            yield f"{was} is another qube now; what was kept of the one before is {known.name}"
        else:
            yield f"{was} is called {known.name} now, and keeps its history"


def nothing_kept(state_dir: Path) -> Callable[[str], bool]:
    """Tells of an identity whether nothing is kept of its volumes."""
    return lambda identity: not is_dir(state_dir / "volumes" / identity)


def rebuilt(state_dir: Path) -> Identities:
    """Who is who as the volumes' states say it, from the time of their last sessions."""
    found: list[tuple[int, str, str]] = []
    for identity, volume in known_volumes(state_dir):
        with suppress(Refused):
            state = VolumeState(state_dir, identity, volume).load()
            newest = max((one.mark_time for one in state.follows.values()), default=0)
            name = str((state.place or {}).get("qube", identity))
            found.append((newest, identity, name))
    known = Identities()
    for _, identity, name in sorted(found, reverse=True):
        known = claimed(known, identity, name)
    return known


def claimed(known: Identities, identity: str, name: str) -> Identities:
    """What is known then, with an identity that something kept tells of and the name it had; the
    name stays with whoever has it already.
    """
    if identity == DOM0 or identity in known.known:
        return known
    if known.by_name(name) is None:
        return _with(known, identity, Known(name))
    return _with(known, identity, Known(set_aside(name, _names(known)), retired=True))


def adopted(
    known: Identities, identity: str, name: str, empty: Callable[[str], bool]
) -> Identities:
    """As ``claimed``, for the records of an archive: the name is taken over from a qube of which
    nothing is kept (``empty``, by identity), which continues that history. So is the identity, from
    a qube that only has the name which the other had first.
    """
    first = known.known.get(identity)
    if first is not None and first.name == identity != name and empty(identity):
        known = _without(known, identity)
        other = new_identity(first.name, {identity, *known.known})
        known = _with(known, other, first)
    holder = known.by_name(name)
    if holder is None or holder == identity or identity in known.known or not empty(holder):
        return claimed(known, identity, name)
    return _with(_without(known, holder), identity, known.known[holder])


def renamed(
    known: Identities,
    old: str,
    new: str,
    listed: Iterable[str] = (),
    empty: Callable[[str], bool] = lambda _: False,
) -> Identities:
    """The qube ``new`` is what was called ``old``: it has that history. One that it had already,
    and is not ``empty``, is set aside, under a name that none of the qubes ``listed`` has.
    """
    identity, holder = known.by_name(old) or known.of(old), known.of(new)
    uuid = known.known[holder].uuid if holder in known.known else ""
    if holder != identity and empty(holder):
        known = _without(known, holder)
    elif holder != identity:
        known = _retired(known, holder, new, listed)
    return _with(known, identity, Known(new, uuid))


def expected(known: Identities, qube: str) -> Identities:
    """Whatever qube is made next under that name continues its history, whatever its UUID."""
    identity = known.by_name(qube)
    if identity is None:
        return known
    return _with(known, identity, known.known[identity]._replace(uuid=""))


def followed(known: Identities, listed: Mapping[str, str]) -> Identities:
    """As qubesd lists the qubes now, UUIDs by name (nothing where it tells none).

    A UUID that is known under another name: renamed. A name that is known with another UUID: made
    again. Without UUIDs a name is a qube.
    """
    uuids = {name: uuid for name, uuid in listed.items() if _is_uuid(uuid)}
    holders = {one.uuid: identity for identity, one in known.known.items() if one.uuid}
    moved = {
        holders[uuid]: name
        for name, uuid in uuids.items()
        if uuid in holders and known.name(holders[uuid]) != name
    }
    # All at once, for two may have changed their names with each other.
    taken = set(moved.values())
    rest = {one: what for one, what in known.known.items() if one not in moved}
    new = {one: known.known[one]._replace(name=name) for one, name in moved.items()}
    ousted = [one for one, what in rest.items() if what.name in taken]
    known = Identities({**rest, **new}) if moved else known
    ousted += [one for one, what in known.known.items() if _is_another(what, listed, uuids)]
    for identity in dict.fromkeys(ousted):
        known = _retired(known, identity, known.known[identity].name, listed)
    for name in listed:
        held, uuid = known.by_name(name), uuids.get(name, "")
        if held is None:
            known = _with(known, known.of(name), Known(name, uuid))
        elif uuid and not known.known[held].uuid:
            known = _with(known, held, known.known[held]._replace(uuid=uuid))
    return known


def _is_another(known: Known, listed: Mapping[str, str], uuids: Mapping[str, str]) -> bool:
    """Whether the qube that has the name now is not this one."""
    if known.retired:
        return known.name in listed
    return bool(known.uuid) and uuids.get(known.name, known.uuid) != known.uuid


def _is_uuid(uuid: str) -> bool:
    return _UUID.fullmatch(uuid) is not None and uuid != _NO_UUID


def _retired(known: Identities, identity: str, name: str, listed: Iterable[str] = ()) -> Identities:
    base = name if identity not in known.known else known.known[identity].name
    free = set_aside(base, _names(known) | set(listed))
    return _with(known, identity, Known(free, retired=True))


def _names(known: Identities) -> set[str]:
    return {one.name for one in known.known.values()}


def _without(known: Identities, identity: str) -> Identities:
    """Nothing was ever kept of it, so that another may have it."""
    others = {one: what for one, what in known.known.items() if one != identity}
    return Identities(others, known.kept)


def _with(known: Identities, identity: str, what: Known) -> Identities:
    parse_name(what.name, "qube")
    return Identities({**known.known, identity: what}, known.kept)
