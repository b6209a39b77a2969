# SPDX-License-Identifier: GPL-2.0-or-later
"""The catalog as it is now, for dom0's own commands, and writing it down for the calls of backup
VMs, which ask nobody.
"""

import time
from collections.abc import Mapping
from contextlib import suppress

from common.durable import Busy, closing_fd, lock, make_directory, replace
from dom0_agent.admin.qubes_catalog import QubesCatalog, document
from dom0_agent.admin.qubes_options import qubes_options
from dom0_agent.admin.renaming import change, followed
from dom0_agent.catalog import SETTINGS, VolumeCatalog, kept, open_catalog
from dom0_agent.config import Config, Volume
from dom0_agent.log import ERROR, log
from dom0_agent.tracking.identities import Identities, load
from wire.status import Code, Refused

PATIENCE = 10.0
"""Seconds to wait for another command that writes the list."""


def ask(config: Config, caller: str = "") -> VolumeCatalog:
    """The catalog as it is now, for a caller; Refused when qubesd does not answer."""
    if config.catalog == "qubes":
        return QubesCatalog(config, qubes_options(config), caller)
    return open_catalog(config, caller)


def _asked_and_kept(config: Config) -> VolumeCatalog:
    """As ``ask``, for no caller; what it shows of the qubes' identities is written down."""
    if config.catalog == "qubes":

        def keep(listed: Mapping[str, str]) -> Identities:
            return change(config.state_dir, lambda known: _followed(config, known, listed))

        return QubesCatalog(config, qubes_options(config), keep=keep)
    try:
        wanted = load(config.state_dir).kept
    except Refused:  # damaged or lost: made again
        wanted = True
    if wanted:
        listed = dict.fromkeys((volume.qube for volume in config.volumes), "")
        change(config.state_dir, lambda known: followed(known, listed))
    return open_catalog(config)


def _followed(config: Config, known: Identities, listed: Mapping[str, str]) -> Identities:
    """Who is who among the qubes that are listed. Settings that were saved of a qube go where
    another has its name now: the next backup would have them as that one's.
    """
    after = followed(known, listed)
    for name in listed:
        if known.by_name(name) is not None and known.of(name) != after.of(name):
            document(config.state_dir, name, SETTINGS).unlink(missing_ok=True)
    return after


def find_anywhere(catalog: VolumeCatalog, qube: str, volume: str) -> Volume | None:
    """A volume by name, also one that is left out; None when there is none."""
    if isinstance(catalog, QubesCatalog):
        return catalog.find(qube, volume, left_out=True)
    return catalog.find(qube, volume)


def write_down(config: Config) -> VolumeCatalog:
    """List the volumes, for no caller in particular, and write that down for calls; the file's
    replacement is the commit point.

    Raises OSError. A list that was asked for later than this one stays.
    """
    asked, catalog = int(time.time()), _asked_and_kept(config)
    if isinstance(catalog, QubesCatalog):
        found = kept.Kept(
            asked=asked,
            options=kept.options_digest(config),
            named=tuple(sorted(set(qubes_options(config).include))),
            volumes=catalog.volumes(),
            skipped=catalog.skipped(),
        )
        _keep(config, found)
    return catalog


def current(config: Config) -> tuple[VolumeCatalog, bool]:
    """As ``write_down``, for a command that is about something else; the second value is whether
    the list was written down. A disk that is full does not keep the command from its work, which
    may be to make room, but shows in its exit code.
    """
    try:
        return write_down(config), True
    except OSError as error:
        log(ERROR, f"{kept.place(config)} cannot be written: {error.strerror}")
        return ask(config), False


def _keep(config: Config, found: kept.Kept) -> None:
    path = kept.place(config)
    make_directory(path.parent)
    try:
        fd = lock(path.with_name("catalog.lock"), patience=PATIENCE)
    except Busy:
        raise Refused(Code.BUSY, "another command lists the qubes just now; try again") from None
    with closing_fd(fd):
        with suppress(Refused):  # none, or one that is good for nothing
            if found.asked < kept.read(config).asked <= time.time():
                return
        replace(path, found.to_bytes())
