# SPDX-License-Identifier: GPL-2.0-or-later
"""What a tool under test does, and sparsebak as one: set up, back up, assemble, restore, verify,
prune. The others are in ``bench.peers``.
"""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.measure import Measured, files, run, stored

BIN = Path(sys.executable).parent
Changed = Sequence[tuple[int, int]] | None
"""What changed since the last session, as offsets and lengths; None for a first one."""


class Tool(Protocol):
    """A tool under test, set up on a folder of volumes and a work folder. What it does not have
    gives None.
    """

    name: str
    repository: Path

    def __init__(self, pool: Path, work: Path) -> None: ...

    @classmethod
    def version(cls) -> str:
        """Its name and version."""

    def backup(self, changed: Changed) -> Measured:
        """A session of the image as it is now."""

    def monitor(self) -> Measured | None:
        """Note what changed, without sending anything."""

    def assemble(self, target: Path) -> Measured:
        """The newest session as a file, or as one in a folder."""

    def restore(self) -> Measured | None:
        """The newest session in the image's own place, all of it."""

    def put_back(self) -> Measured | None:
        """The same of what differs from what is there."""

    def verify(self) -> Measured:
        """Prove what is stored."""

    def prune(self) -> Measured:
        """Remove the second session."""

    def close(self) -> None:
        """End what was started."""


def configure(pool: Path, work: Path) -> Path:
    """Write an agent.toml for the image of a pool, and the passphrase file ``pw`` beside it."""
    config = work / "agent.toml"
    config.write_text(
        f'state_dir = "{work}/dom0"\n[[pool]]\nname = "p"\ndriver = "reflink"\npath = "{pool}"\n'
        '[[volume]]\nqube = "work"\nvolume = "private"\npool = "p"\nvid = "image"\n'
    )
    (work / "pw").write_text("bench\n")
    return config


def serve(agent: Sequence[str | Path], work: Path) -> "subprocess.Popen[str]":
    """Start a resident agent that listens in ``sockets`` of the work folder."""
    process = subprocess.Popen(
        [*agent, "serve", "--listen", work / "sockets"], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None and "ready" in process.stderr.readline()
    threading.Thread(target=process.stderr.read, daemon=True).start()
    return process


class Sparsebak:
    """sparsebak, sealed, with a resident agent, as systemd would have it."""

    name = "sparsebak"
    resident = True

    def __init__(self, pool: Path, work: Path) -> None:
        self.pool, self.work, self.repository = pool, work, work / "sparsebak"
        config = configure(pool, work)
        self._agent: list[str | Path] = [BIN / "sparsebak-agent", "--config", config]
        agent = f"unix:{work}/sockets" if self.resident else f"local:{config}"
        self._tool: list[str | Path] = [
            BIN / "sparsebak",
            "--agent",
            agent,
            "--archive",
            self.place(),
        ]
        self._process = serve(self._agent, work) if self.resident else None
        run(
            [
                *self._agent,
                "archive",
                "add",
                "bench",
                "--caller",
                "vm",
                "--passphrase-file",
                work / "pw",
            ]
        )
        run([*self._tool, "init", self.place(), "--label", "bench"])

    @property
    def agent(self) -> int:
        """The process of the resident agent."""
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """See Tool."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def place(self) -> str:
        """Where the archive is made."""
        return str(self.repository)

    @classmethod
    def version(cls) -> str:
        said = subprocess.run([BIN / "sparsebak", "--version"], capture_output=True, text=True)
        return f"{cls.name} {said.stdout.split()[-1]}"

    def backup(self, changed: Changed = None) -> Measured:
        return self._run("backup")

    def _run(self, *command: str | Path) -> Measured:
        agent = self._process.pid if self._process else None
        return run([*self._tool, *command], agent=agent)

    def monitor(self) -> Measured | None:
        return run([*self._agent, "monitor"])

    def assemble(self, target: Path) -> Measured:
        return run(
            [
                *self._tool,
                "assemble",
                "work/private",
                "--passphrase-file",
                self.work / "pw",
                "-o",
                target,
            ]
        )

    def restore(self) -> Measured | None:
        return self._run("restore", "--yes", "--whole", "work/private")

    def put_back(self) -> Measured | None:
        return self._run("restore", "--yes", "work/private")

    def verify(self) -> Measured:
        return self._run("verify")

    def prune(self) -> Measured:
        listed = subprocess.run(
            [*self._tool, "list", "work/private"], capture_output=True, text=True, check=True
        ).stdout
        return self._run("prune", "work/private", "--session", listed.splitlines()[2].split()[1])


class SparsebakFiles(Sparsebak):
    """The same without a resident agent: every call starts a service file."""

    name = "sparsebak-files"
    resident = False


def size_of(tool: Tool) -> tuple[float, int]:
    """MiB and files of a tool's repository."""
    return stored(tool.repository), files(tool.repository)
