# SPDX-License-Identifier: GPL-2.0-or-later
"""The tools under test, each with the same few steps: set up, back up, assemble, restore, verify,
prune.
"""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench.measure import ChildrenPeak, Measured, files, run, stored

BIN = Path(sys.executable).parent
WYNG = os.environ.get("WYNG", "wyng")


class Tool(Protocol):
    """A tool under test, set up on a folder of volumes and a work folder. What it does not have
    gives None.
    """

    name: str
    repository: Path

    def __init__(self, pool: Path, work: Path) -> None: ...

    def backup(self) -> Measured:
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
            self.repository,
        ]
        self._process = serve(self._agent, work) if self.resident else None
        self._peak = ChildrenPeak(self._process.pid) if self._process else None
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
        run([*self._tool, "init", self.repository, "--label", "bench"])

    def close(self) -> None:
        """See Tool."""
        if self._process is not None and self._peak is not None:
            self._peak.stop()
            self._process.terminate()
            self._process.wait()

    def backup(self) -> Measured:
        return self._run("backup")

    def _run(self, *command: str | Path) -> Measured:
        measured = run([*self._tool, *command])
        measured.agent = self._peak.take() if self._peak else 0
        return measured

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


class Borg:
    """borg, fixed chunks of the same size, zstd level 3, not encrypted."""

    name = "borg"

    def __init__(self, pool: Path, work: Path) -> None:
        self.pool, self.repository, self._count = pool, work / "borg", 0
        os.environ["BORG_BASE_DIR"] = str(work / "borg-home")
        os.environ["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"
        run(["borg", "init", "-e", "none", self.repository])

    def backup(self) -> Measured:
        self._count += 1
        # Without its cache of files, for a changed image is read again anyway, and an unchanged one
        # by its contents.
        options = [
            "--sparse",
            "--chunker-params",
            "fixed,131072",
            "-C",
            "zstd,3",
            "--files-cache",
            "disabled",
        ]
        return run(
            ["borg", "create", *options, f"{self.repository}::s{self._count}", "image"],
            cwd=self.pool,
        )

    def monitor(self) -> Measured | None:
        return None

    def assemble(self, target: Path) -> Measured:
        target.mkdir()
        return run(
            ["borg", "extract", "--sparse", f"{self.repository}::s{self._count}"], cwd=target
        )

    def restore(self) -> Measured | None:
        return None

    def put_back(self) -> Measured | None:
        return None

    def verify(self) -> Measured:
        return run(["borg", "check", "--verify-data", self.repository])

    def prune(self) -> Measured:
        return run(["borg", "delete", f"{self.repository}::s2"])

    def close(self) -> None:
        """See Tool."""


class Restic:
    """restic, as it comes."""

    name = "restic"

    def __init__(self, pool: Path, work: Path) -> None:
        self.pool, self.repository = pool, work / "restic"
        os.environ |= {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(work / "restic-cache")}
        self._tool = ["restic", "-r", str(self.repository)]
        run([*self._tool, "init"])

    def backup(self) -> Measured:
        return run([*self._tool, "backup", "--force", self.pool / "image"])

    def monitor(self) -> Measured | None:
        return None

    def assemble(self, target: Path) -> Measured:
        return run([*self._tool, "restore", "latest", "--target", target])

    def restore(self) -> Measured | None:
        return None

    def put_back(self) -> Measured | None:
        return None

    def verify(self) -> Measured:
        return run([*self._tool, "check", "--read-data"])

    def prune(self) -> Measured:
        return run([*self._tool, "forget", "--prune", "--keep-last", "3"])

    def close(self) -> None:
        """See Tool."""


class Wyng:
    """Wyng, not encrypted: the program that WYNG names, or a ``wyng`` on the PATH."""

    name = "wyng"
    encrypted = False

    def __init__(self, pool: Path, work: Path) -> None:
        self.pool, self.repository, self.work = pool, work / "wyng", work
        (work / "pw").write_text("bench bench bench\n")
        # Its agent that remembers keys is left out: like the others, each command stands for
        # itself.
        options = [
            "--unattended",
            f"--dest=file:{self.repository}",
            f"--local={pool}",
            "--authmin=0",
        ]
        self._options = [*options, f"--passcmd=cat {work}/pw"] if self.encrypted else options
        encryption = [] if self.encrypted else ["--encrypt=off"]
        self._run("arch-init", *encryption, "--hashtype=blake2b", "--compression=zstd:3")
        self._run("add", "image")

    def _run(self, command: str, *more: str) -> Measured:
        # In the environment that sparsebak runs in, which has the Python packages.
        return run([WYNG, command, *more, *self._options], {"PATH": f"{BIN}:{os.environ['PATH']}"})

    def backup(self) -> Measured:
        return self._run("send", "image")

    def monitor(self) -> Measured | None:
        return self._run("monitor", "image")

    def assemble(self, target: Path) -> Measured:
        return self._run("receive", "image", f"--save-to={target}", "--sparse")

    def restore(self) -> Measured | None:
        return None

    def put_back(self) -> Measured | None:
        return None

    def verify(self) -> Measured:
        return self._run("verify", "image")

    def prune(self) -> Measured:
        return self._run("prune", "image", "--autoprune=full")

    def close(self) -> None:
        """See Tool."""


class WyngEncrypted(Wyng):
    """The same with its own encryption."""

    name = "wyng-encrypted"
    encrypted = True


def installed() -> list[type[Tool]]:
    """Ours, and those of the peers that are on this machine."""
    peers = [
        tool
        for tool in (Borg, Restic, Wyng, WyngEncrypted)
        if shutil.which(WYNG if issubclass(tool, Wyng) else tool.name)
    ]
    return [Sparsebak, SparsebakFiles, *peers]


def size_of(tool: Tool) -> tuple[float, int]:
    """MiB and files of a tool's repository."""
    return stored(tool.repository), files(tool.repository)
