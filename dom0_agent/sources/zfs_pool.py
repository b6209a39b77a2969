# SPDX-License-Identifier: GPL-2.0-or-later
"""A ZFS dataset that holds volumes (zvols), and the commands of ZFS that are run on it. Needs root.

Fields are those of zfsprops(7); one command lists all that there is below the dataset.
"""

import time
from typing import NamedTuple

from dom0_agent.config import Pool, dataset
from dom0_agent.log import WARNING, log
from dom0_agent.sources import programs
from wire.status import Code, Refused

_FIELDS = "name,volsize,guid,used,available"
_PATIENCE = 20
"""How often a removal is tried, a tenth of a second apart: whoever looks at new devices may have
ours open.
"""


class Dataset(NamedTuple):
    """One line of the list: a dataset, a volume or a snapshot of one. Sizes are bytes; ``size`` is
    0 for what is no volume. ``used``: of a snapshot, what it holds alone.
    """

    name: str
    size: int
    guid: int
    used: int
    available: int


class ZfsPool:
    """A dataset and what is below it, as it was when first asked about, and with our own changes
    since.
    """

    def __init__(self, pool: Pool) -> None:
        self.dataset = dataset(pool)
        self._pool, self._known = pool, dict[str, Dataset]()

    def all(self) -> dict[str, Dataset]:
        """Datasets, volumes and snapshots by name."""
        if not self._known:
            raw = programs.run(
                "zfs", "list", "-Hp", "-r", "-t", "filesystem,volume,snapshot", "-o", _FIELDS,
                self.dataset,
            )  # fmt: skip
            try:
                found = [_parse(line) for line in raw.splitlines()]
            except ValueError as error:
                raise Refused(Code.SOURCE_FAILED, f"zfs list: invalid output: {error}") from None
            self._known = {one.name: one for one in found}
        return self._known

    def find(self, name: str) -> Dataset | None:
        """The dataset, volume or snapshot of that name."""
        return self.all().get(name)

    def named(self, prefix: str) -> list[Dataset]:
        """Those whose names begin so."""
        return [one for name, one in self.all().items() if name.startswith(prefix)]

    def require_room(self) -> None:
        """Refused when what the dataset may use is nearly used up, by quotas or by the pool."""
        own = self.all()[self.dataset]
        if own.used * 100 >= self._pool.data_limit * (own.used + own.available):
            raise Refused(
                Code.NO_SPACE,
                f"{self.dataset} is {100 * own.used // max(own.used + own.available, 1)} % full;"
                " make room in its pool, or allow more with data_limit in agent.toml",
            )

    def forget(self) -> None:
        """Ask again what there is, when next it is needed."""
        self._known = {}

    def change(self, *command: str) -> None:
        """Run a command that changes something."""
        try:
            programs.run(*command)
        finally:
            self.forget()

    def remove(self, name: str, patience: int = _PATIENCE) -> None:
        """Destroy what is ours. What cannot go now is tried again later."""
        for turn in range(patience + 1):
            try:
                # of a clone, with the snapshots that it was given when it was promoted
                self.change("zfs", "destroy", *(() if "@" in name else ("-r",)), name)
                return
            except Refused as error:
                if name not in self.all():
                    return
                if "busy" not in str(error) or turn == patience:
                    if patience:
                        log(WARNING, f"cannot remove {name} yet: {error}")
                    return
                time.sleep(0.1)


def _parse(line: str) -> Dataset:
    name, *numbers = line.split("\t")
    size, guid, used, available = (0 if text == "-" else int(text) for text in numbers)
    return Dataset(name, size, guid, used, available)
