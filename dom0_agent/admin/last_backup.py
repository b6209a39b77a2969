# SPDX-License-Identifier: GPL-2.0-or-later
"""When each qube was backed up last, as Qubes OS itself notes it after ``qvm-backup``: its property
``backup_timestamp``, which Qube Manager and qvm-ls show.

It follows from what dom0 knows of committed sessions. So Commit has nothing to do for it, a crash
loses nothing, and no call asks qubesd: a command of dom0 that lists the qubes anyway notes it.
"""

import time
from collections import defaultdict

from dom0_agent.admin.qubes_catalog import QubesCatalog
from dom0_agent.catalog import VolumeCatalog
from dom0_agent.config import Config, Volume
from dom0_agent.log import WARNING, log
from dom0_agent.qubesd import asking
from dom0_agent.tracking.state import VolumeState
from wire.status import Refused

_DAY = 86400


def note(config: Config, catalog: VolumeCatalog) -> list[str]:
    """Set the property of the qubes that were backed up since; their names. What qubesd refuses is
    logged, and tried again the next time. Nothing without Qubes.
    """
    if not isinstance(catalog, QubesCatalog):
        return []
    done = []
    for qube, when in whole_backups(config, catalog).items():
        try:
            with asking():
                domain = catalog.domain(qube)
                if (getattr(domain, "backup_timestamp", None) or 0) >= when:
                    continue
                domain.backup_timestamp = when
        except (Refused, KeyError) as error:  # the qube may have gone
            log(WARNING, f"{qube}: its last backup could not be noted: {error}")
            continue
        done.append(qube)
    return done


def whole_backups(config: Config, catalog: VolumeCatalog) -> dict[str, int]:
    """For each qube of which an archive has all volumes of the catalog, the Unix time of which the
    oldest of their newest sessions is.
    """
    unsure = {one.name.partition("/")[0] for one in catalog.skipped() if one.failed}
    times = defaultdict[str, list[dict[str, int]]](list)
    for volume in catalog.volumes():
        if volume.qube != "dom0" and volume.qube not in unsure:
            times[volume.qube].append(_committed(config, volume))
    found = dict[str, int]()
    for qube, volumes in times.items():
        archives = set.intersection(*(set(of_volume) for of_volume in volumes))
        when = max((min(of[one] for of in volumes) for one in archives), default=0)
        if 0 < when <= time.time() + _DAY:  # one of a day to come is of a clock that was wrong
            found[qube] = when
    return found


def _committed(config: Config, volume: Volume) -> dict[str, int]:
    """The time of the newest session in each archive."""
    try:
        follows = VolumeState.of(config.state_dir, volume).load().follows
    except Refused:
        return {}
    return {
        archive: progress.committed.time
        for archive, progress in follows.items()
        if progress.committed is not None
    }
