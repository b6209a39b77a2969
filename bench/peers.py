# SPDX-License-Identifier: GPL-2.0-or-later
"""The other tools, each as its documentation says to back up the image of a volume."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.measure import Measured, run
from bench.tools import BIN, Changed, Tool

UNPACKED = Path(__file__).resolve().parent.parent / "build" / "peers" / "bin"
WYNG = os.environ.get("WYNG", "wyng")
FIXED = ("--chunker-params", "fixed,131072", "-C", "zstd,3")
"""borg with chunks of the same size and the same compression as the others."""


def program(name: str) -> str | None:
    """Where a tool is: what make bench-compare unpacked, or what is installed; None without."""
    unpacked = UNPACKED / name
    return str(unpacked) if unpacked.exists() else shutil.which(name)


class Peer(Tool):
    """What the others have in common: no agent, nothing that notes changes, no restore in place."""

    name: str
    program_name: str
    sealed = False

    def __init__(self, pool: Path, work: Path) -> None:
        self.pool, self.work, self.repository, self._count = pool, work, work / self.name, 0
        found = self.program()
        if found is None:
            raise RuntimeError(f"{self.program_name} is not installed")
        self._program = found

    @classmethod
    def program(cls) -> str | None:
        """Where its program is, or None."""
        return program(cls.program_name)

    @classmethod
    def version(cls) -> str:
        """Its name and version, as it says them."""
        said = subprocess.run([cls.program() or "", "--version"], capture_output=True, text=True)
        words = (said.stdout or said.stderr).split()
        return f"{cls.name} {words[1] if len(words) > 1 else '?'}"

    def monitor(self) -> Measured | None:
        return None

    def restore(self) -> Measured | None:
        return None

    def put_back(self) -> Measured | None:
        return None

    def close(self) -> None:
        """Nothing was started."""


class Borg(Peer):
    """borg 1, fixed chunks of the same size, not encrypted."""

    name = program_name = "borg"

    def __init__(self, pool: Path, work: Path) -> None:
        super().__init__(pool, work)
        os.environ["BORG_BASE_DIR"] = str(work / "borg-home")
        os.environ["BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK"] = "yes"
        run([self._program, "init", "-e", "none", self.repository])

    def backup(self, changed: Changed) -> Measured:
        self._count += 1
        # Without its cache of files, for a changed image is read again anyway, and an unchanged one
        # by its contents.
        options = ["--sparse", *FIXED, "--files-cache", "disabled"]
        archive = f"{self.repository}::s{self._count}"
        return run([self._program, "create", *options, archive, "image"], cwd=self.pool)

    def assemble(self, target: Path) -> Measured:
        target.mkdir()
        archive = f"{self.repository}::s{self._count}"
        return run([self._program, "extract", "--sparse", archive], cwd=target)

    def verify(self) -> Measured:
        return run([self._program, "check", "--verify-data", self.repository])

    def prune(self) -> Measured:
        deleted = run([self._program, "delete", f"{self.repository}::s2"])
        return deleted + run([self._program, "compact", self.repository])


class Borg2(Peer):
    """borg 2, fixed chunks of the same size, encrypted, ids by BLAKE3; reads the image whole."""

    name = program_name = "borg2"
    sealed = True

    def __init__(self, pool: Path, work: Path) -> None:
        super().__init__(pool, work)
        os.environ |= {"BORG_BASE_DIR": str(work / "borg-home"), "BORG_PASSPHRASE": "bench"}
        self._tool = [self._program, "-r", str(self.repository)]
        run([*self._tool, "repo-create", "-e", "aes256-ocb", "-i", "blake3"])

    def backup(self, changed: Changed) -> Measured:
        self._count += 1
        options = [*FIXED, "--files-cache", "disabled", *self._known(changed)]
        return run([*self._tool, "create", *options, f"s{self._count}", "image"], cwd=self.pool)

    def _known(self, changed: Changed) -> list[str]:
        return ["--sparse"]

    def assemble(self, target: Path) -> Measured:
        target.mkdir()
        return run([*self._tool, "extract", "--sparse", f"s{self._count}"], cwd=target)

    def verify(self) -> Measured:
        return run([*self._tool, "check", "--verify-data"])

    def prune(self) -> Measured:
        return run([*self._tool, "delete", "s2"]) + run([*self._tool, "compact"])


class Borg2Map(Borg2):
    """The same with a map of what changed, which it is given: making it is not in its time."""

    name = "borg2-map"

    def _known(self, changed: Changed) -> list[str]:
        path, image = self.work / "map", self.pool / "image"
        size = image.stat().st_size
        ranges = _data(image) if changed is None else changed
        rest = "zero" if changed is None else "same"
        path.write_text("".join(f"{a} {n} {state}\n" for a, n, state in _map(ranges, size, rest)))
        return ["--map", str(path), *(() if changed is None else self._former())]

    def _former(self) -> list[str]:
        return ["--reuse-from", f"s{self._count - 1}"]


def _data(image: Path) -> Sequence[tuple[int, int]]:
    """Where a file has data: offsets and lengths."""
    found: list[tuple[int, int]] = []
    at = 0
    with open(image, "rb") as file:
        while True:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                return found
            at = os.lseek(file.fileno(), data, os.SEEK_HOLE)
            found.append((data, at - data))


def _map(ranges: Sequence[tuple[int, int]], size: int, rest: str) -> Iterator[tuple[int, int, str]]:
    """All of an image as borg's maps say it, the ranges as data; they may overlap."""
    at = 0
    for begin, length in sorted(ranges):
        begin, end = max(begin, at), begin + length
        if begin > at:
            yield at, begin - at, rest
        if end > begin:
            yield begin, end - begin, "data"
        at = max(at, end)
    if at < size:
        yield at, size - at, rest


class Restic(Peer):
    """restic, as it comes."""

    name = program_name = "restic"
    sealed = True

    def __init__(self, pool: Path, work: Path) -> None:
        super().__init__(pool, work)
        os.environ |= {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(work / "restic-cache")}
        self._tool = [self._program, "-r", str(self.repository)]
        run([*self._tool, "init"])

    @classmethod
    def version(cls) -> str:
        said = subprocess.run([cls.program() or "", "version"], capture_output=True, text=True)
        return " ".join(said.stdout.split()[:2])

    def backup(self, changed: Changed) -> Measured:
        return run([*self._tool, "backup", "--force", self.pool / "image"])

    def assemble(self, target: Path) -> Measured:
        return run([*self._tool, "restore", "latest", "--target", target])

    def verify(self) -> Measured:
        return run([*self._tool, "check", "--read-data"])

    def prune(self) -> Measured:
        return run([*self._tool, "forget", "--prune", "--keep-last", "3"])


class Wyng(Peer):
    """Wyng, not encrypted: the program that WYNG names, or a ``wyng`` on the PATH."""

    name, program_name = "wyng", WYNG

    def __init__(self, pool: Path, work: Path) -> None:
        super().__init__(pool, work)
        (work / "pw").write_text("bench bench bench\n")
        # Its agent that remembers keys is left out: like the others, each command stands for
        # itself.
        place = [f"--dest=file:{self.repository}", f"--local={pool}"]
        options = ["--unattended", *place, "--authmin=0"]
        self._options = [*options, f"--passcmd=cat {work}/pw"] if self.sealed else options
        encryption = [] if self.sealed else ["--encrypt=off"]
        self._run("arch-init", *encryption, "--hashtype=blake2b", "--compression=zstd:3")
        self._run("add", "image")

    @classmethod
    def version(cls) -> str:
        said = subprocess.run(
            [cls.program() or "", "--version"], capture_output=True, text=True, env=_environment()
        )
        line = next((line for line in said.stdout.splitlines() if "release" in line), "Wyng ?")
        return f"{cls.name} {' '.join(line.split('release')[-1].split()[:2])}"

    def _run(self, command: str, *more: str) -> Measured:
        return run([self._program, command, *more, *self._options], _environment())

    def backup(self, changed: Changed) -> Measured:
        return self._run("send", "image")

    def monitor(self) -> Measured | None:
        return self._run("monitor", "image")

    def assemble(self, target: Path) -> Measured:
        return self._run("receive", "image", f"--save-to={target}", "--sparse")

    def verify(self) -> Measured:
        return self._run("verify", "image")

    def prune(self) -> Measured:
        return self._run("prune", "image", "--autoprune=full")


def _environment() -> dict[str, str]:
    """The one that sparsebak runs in, which has the Python packages."""
    return {"PATH": f"{BIN}:{os.environ['PATH']}"}


class WyngEncrypted(Wyng):
    """The same with its own encryption."""

    name = "wyng-encrypted"
    sealed = True


PEERS: tuple[type[Peer], ...] = (Borg, Borg2, Borg2Map, Restic, Wyng, WyngEncrypted)
