# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeping parity up, for the commands that write. What a command was asked for is done by then:
that parity could not be brought to it is a warning.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from backup_vm.cli.context import Context
from backup_vm.errors import SparsebakError

if TYPE_CHECKING:
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.parity.making import Kept
    from backup_vm.archive.prune import Pruned
    from backup_vm.jobs.removal import Removal
    from backup_vm.terminal.progress import Progress


def share(context: Context) -> float | None:
    """How much parity the option or the settings ask for."""
    given: float | None = getattr(context.options, "parity", None)
    if given is None and "parity" in context.config.texts:
        from backup_vm.quantities import parse_share

        given = parse_share(context.config.texts["parity"])
    return given


def keep(context: Context, archive: "Archive", work: "Callable[[Progress], Kept]") -> bool:
    """Bring parity to what a command left; returns whether that was done."""
    from backup_vm.jobs.parity import text

    try:
        with context.progress("parity") as progress:
            kept = work(progress)
    except (SparsebakError, OSError) as error:
        line = error.line() if isinstance(error, SparsebakError) else str(error)
        context.warn(f"parity is not up to date: {line}")
        return False
    for name, reason in kept.left.items():
        context.warn(f"{archive.storage.describe(name)} gets no new parity: {reason}")
    if line := text(kept):
        context.say(line)
    return True


def files(context: Context, archive: "Archive") -> set[str]:
    """The files there are before a backup, where parity is to be kept."""
    if share(context) is None:
        return set()
    from backup_vm.archive.parity.making import covered

    return covered(archive)


def after_backup(context: Context, archive: "Archive", before: set[str]) -> None:
    """Make parity for what was stored. ``before``: see ``files``."""
    wanted = share(context)
    if wanted is not None:
        from backup_vm.jobs import parity

        keep(context, archive, lambda bar: parity.after_backup(archive, wanted, before, bar))


def removed(context: Context, removal: "Removal") -> "Pruned":
    """Remove sessions, and bring parity to what is left."""
    done, archive = removal.run(), removal.archive
    with suppress(SparsebakError, OSError):  # which is said below
        if not archive.parity_files():
            return done  # without importing what makes them
    from backup_vm.jobs import parity

    keep(context, archive, lambda bar: parity.after_prune(archive, share(context), bar))
    return done
