# SPDX-License-Identifier: GPL-2.0-or-later
"""Proving sessions authentic and complete: with the key if it is here, through the agent
otherwise.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from backup_vm.agent.call import RefusedError
from backup_vm.agent.client import Agent
from backup_vm.archive import noting
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, RemovedError
from backup_vm.jobs.feeding import feed
from backup_vm.jobs.reading import image_bytes, read_image
from backup_vm.jobs.sampling import Candidate
from backup_vm.terminal.progress import Progress
from backup_vm.volumes import Contents, Named
from wire.merkle import chunk_count
from wire.status import STATUS_OLDER, STATUS_UNKNOWN, Code

Choice = tuple[Named, Session]


class Proof(NamedTuple):
    """What came of one session; ``problem`` is None if it is authentic and complete."""

    volume: Named
    session: Session
    problem: str | None

    def row(self) -> dict[str, Any]:
        """What came of it, as --json prints it."""
        return {
            "qube": self.volume.qube,
            "volume": self.volume.volume,
            "session": self.session.name,
            "ok": self.problem is None,
            "problem": self.problem,
        }


class Prover:
    """Proves sessions of an archive that is open, and notes when each was proven.

    ``agent``: asked for only where the key is not here.
    """

    def __init__(
        self,
        contents: Contents,
        agent: Callable[[], Agent],
        progress: Progress,
        warn: Callable[[str], None],
    ) -> None:
        self._contents, self._agent = contents, agent
        self._progress, self._warn = progress, warn
        self.proofs: list[Proof] = []
        self.removed: list[str] = []
        """Sessions that another machine removed before they were read."""
        self.unnoted: str | None = None
        """Why not everything that was proven could be noted; None if it was."""

    def prove_all(self, chosen: Iterable[Choice]) -> None:
        """Prove these; raise AgentError."""
        for volume, session in chosen:
            try:
                proof = Proof(volume, session, self._problem(volume, session))
            except RemovedError:
                self.removed.append(f"{volume.name} {session.name}")
                continue
            self.proofs.append(proof)
            storage = self._contents.archive.storage
            reason = noting.checked(storage, proof.problem is None, session.clear.session)
            self.unnoted = self.unnoted or reason

    @property
    def sound(self) -> bool:
        """Whether nothing was found wrong."""
        return all(proof.problem is None for proof in self.proofs)

    def _problem(self, volume: Named, session: Session) -> str | None:
        archive, keys = self._contents.archive, self._contents.keys
        try:
            image = self._contents.image(volume, session)
            self._progress.start(image_bytes(image))
            self._progress.volume(volume.name)
            if keys is not None:
                read_image(archive, image, keys, volume.name, self._progress, None)
                return None
            status = self._agent().verify(feed(archive, image, volume.name, self._progress))
        except DamagedError as error:
            return str(error)
        except RefusedError as error:
            if error.refusal not in (Code.NOT_AUTHENTIC, Code.BAD_REQUEST):
                raise
            return error.line()
        if status.flags & STATUS_OLDER and session is volume.sessions[-1]:
            known = "no session" if status.flags & STATUS_UNKNOWN else "another session"
            self._warn(
                f"{volume.name} {session.name}: the newest here; dom0 knows {known} as the newest"
            )
        return None


def candidate(volume: Named, session: Session) -> Candidate[Choice]:
    """A session as something to be proven in its turn; its bytes are those of its image."""
    clear = session.clear
    last = volume.notes.verified.get(clear.session.hex())
    return Candidate(
        (volume, session),
        last.time if last else clear.time,
        last.sound if last else None,
        chunk_count(clear.size, clear.chunk_size) * clear.chunk_size,
    )
