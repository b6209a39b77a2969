# SPDX-License-Identifier: GPL-2.0-or-later
"""One of several machines on an archive: its commands, each in a process of its own."""

import time
from dataclasses import dataclass, field

from backup_vm.archive import holder
from tests.children import Child, Outcome
from tests.machines.stages import Coverage, Death, Stages
from tests.remote.kit import Network

SECONDS = 60.0
"""Within which a command must end."""


@dataclass
class Machine:
    """One machine: its way to the store (None: a disk, or a mount that all of them have), its
    cache, and how many seconds its clock is off.
    """

    name: str
    network: Network | None
    environ: dict[str, str]
    coverage: Coverage
    off: float = 0.0
    stages: Stages = field(default_factory=Stages)
    """Of the command that it began last."""

    def start(self, words: tuple[str, ...], death: Death | None = None) -> Child:
        self.stages = stages = Stages(death)

        def be_it() -> None:
            real, off = time.time, self.off
            time.time = lambda: real() + off  # type: ignore[assignment]
            holder._text = lambda _: self.name  # machine's id and its boot's
            stages.install()

        return Child([words], self.environ, before=be_it, memory=0)

    def outcome(self, child: Child) -> Outcome:
        """How the command ended that was begun last."""
        (outcome,) = child.outcomes(SECONDS)
        self.coverage.add(self.stages.come_to())
        return outcome

    def run(self, *words: str) -> Outcome:
        return self.outcome(self.start(words))

    def troubled(self, kind: str) -> None:
        """Note where its command is, being troubled now."""
        self.coverage.troubled[kind][self.stages.now()] += 1
