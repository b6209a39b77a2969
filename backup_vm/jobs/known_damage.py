# SPDX-License-Identifier: GPL-2.0-or-later
"""Damage that earlier runs found, and that nothing has shown to be mended since: a check of a part
must not be silent about what is outside of it.
"""

from collections.abc import Collection, Iterator, Mapping

from backup_vm.archive import notes
from backup_vm.archive.archive import Archive
from backup_vm.archive.incomplete import incomplete
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError
from common.text import session_name


def outside(archive: Archive, names: Mapping[str, str], part: Collection[str]) -> list[str]:
    """A line for each pack or session that is known to be damaged, except those of this ``part``
    (file names), of which it was said.

    ``names``: of the volumes that are asked about, by id.
    """

    def read() -> list[str]:
        try:
            found = notes.load(archive.storage)
        except DamagedError:  # reported by whoever reads them first
            found = notes.Notes()
        asked = {id: one for id, one in archive.sessions().items() if id in names}
        return [
            *_packs(archive, found, part),
            *_sessions(archive, found, asked, names, part),
        ]

    return archive.looking.steady(read, frozenset)


def _packs(archive: Archive, found: notes.Notes, part: Collection[str]) -> Iterator[str]:
    """Packs that a scrub found damaged."""
    for name in archive.pack_files():
        pack = notes.short(name)
        if pack in found.unsound and name not in part:
            yield (
                f"{archive.storage.describe(name)} was damaged when it was last checked"
                f"{_on(found.packs.get(pack))}; if it is mended, run: sparsebak scrub"
            )


def _sessions(
    archive: Archive,
    found: notes.Notes,
    asked: Mapping[str, list[Session]],
    names: Mapping[str, str],
    part: Collection[str],
) -> Iterator[str]:
    """Sessions that did not prove good, and those of which something is missing."""
    spoilt = incomplete(archive, asked)
    for volume, sessions in asked.items():
        for session in sessions:
            if session.file in part:
                continue
            what = f"{names[volume]} {session.name}"
            last = found.verified.get(session.clear.session.hex())
            if session.file in spoilt:
                yield f"{what}: {spoilt[session.file]}; the next backup stores again what it can"
            elif last is not None and not last.sound:
                yield (
                    f"{what} did not prove good when it was last verified{_on(last.time)}; if it is"
                    f" mended, run: sparsebak verify {names[volume]} --session {session.name}"
                )


def _on(when: int | None) -> str:
    return "" if when is None else f", {session_name(when)}"
