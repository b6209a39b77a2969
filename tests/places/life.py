# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole life of an archive at some place, by the commands as users run them, each in a process
of its own; in the VM, where a process takes seconds to start, in the test's.
"""

import contextlib
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from backup_vm import cli
from backup_vm.agent import transport
from dom0_agent.admin import archives
from dom0_agent.config import load
from dom0_agent.keyring import Keyring
from tests.in_process import InProcess
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from wire import slots
from wire.chunks import SUITE_SHA256

SPARSEBAK = str(Path(sys.executable).with_name("sparsebak"))
IN_VM = "SPARSEBAK_VM" in os.environ
LONGEST = 120.0
"""Seconds that a command may take; what takes longer hangs."""
WITHIN = 6.0
"""Seconds within which a refusal comes where waiting cannot help, on a busy machine, too."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended. ``seconds``: how long it took."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Life:
    """An archive at ``place``, of a volume in ``folder``, with ``environment`` for the commands."""

    folder: Path
    place: str
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.site = Site(self.folder / "site", make=False)
        self.site._make()
        fill(self.site.image(), 24 * GRAIN, 1)
        keyring = Keyring(load(self.site.config).state_dir)
        log_n, slots.SCRYPT_LOG_N = slots.SCRYPT_LOG_N, 10
        try:
            archives.add(keyring, "tests", "dom0", SUITE_SHA256, GRAIN, PASSPHRASE)
        finally:
            slots.SCRYPT_LOG_N = log_n
        self.key = self.folder / "pw"
        self.key.write_bytes(PASSPHRASE)
        (self.folder / "config.toml").touch()

    def run(self, *words: str) -> Outcome:
        """A command's outcome: it ends, and whatever it is, in one line and without a traceback."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
        own = {
            "SPARSEBAK_AGENT": f"local:{self.site.config}",
            "SPARSEBAK_ARCHIVE": self.place,
            "XDG_CACHE_HOME": str(self.folder / "cache"),
        }
        command = ["--config", str(self.folder / "config.toml"), *words]
        begun = time.monotonic()
        run = self._here if IN_VM else self._aside
        code, out, err = run(command, kept | own | self.environment)
        outcome = Outcome(code, out, err, time.monotonic() - begun)
        assert code >= 0 and "Traceback" not in out + err, outcome
        assert not code or err.startswith("sparsebak: "), outcome
        return outcome

    @staticmethod
    def _aside(command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        done = subprocess.run(
            [SPARSEBAK, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST,
        )
        return done.returncode, done.stdout, done.stderr

    def _here(self, command: list[str], environment: dict[str, str]) -> tuple[int, str, str]:
        agent = InProcess(self.site.config, "dom0")
        with (
            mock.patch.object(transport, "open_transport", lambda *_: agent),
            mock.patch.dict(os.environ, environment, clear=True),
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            code = cli.main(command)
        lines = err.getvalue().splitlines(keepends=True)  # the agent's log is among them
        return code, out.getvalue(), "".join(one for one in lines if "sparsebak-agent: " not in one)

    def does(self, *words: str) -> str:
        """It goes well, and nothing is said of anything being wrong."""
        outcome = self.run(*words)
        assert (outcome.code, outcome.err) == (0, ""), (words, outcome)
        return outcome.out

    def warns(self, said: str, *words: str) -> None:
        """It goes well, and one line says something that matches ``said``."""
        self.refuses(0, said, *words)

    def refuses(self, code: int, said: str, *words: str, within: float = WITHIN) -> str:
        """It ends with that code and one line that matches ``said``, soon."""
        outcome = self.run(*words)
        assert outcome.code == code and outcome.err.count("\n") == 1, (words, outcome)
        assert re.search(said, outcome.err), (said, outcome.err)
        assert outcome.seconds < within, outcome
        return outcome.err

    def init(self) -> None:
        self.does("init", self.place, "--label", "tests")

    def change(self, seed: int) -> bytes:
        """Change the volume; its contents then."""
        self.site.disturb(random.Random(seed))
        return self.site.contents()

    def sessions(self) -> list[str]:
        """Names of all sessions, oldest first."""
        found = json.loads(self.does("list", "--passphrase-file", str(self.key), "--json"))
        return [s["session"] for volume in found["volumes"] for s in volume["sessions"]]

    def assembled(self, session: str, target: Path | None = None, place: str = "") -> bytes:
        """The volume as it was in a session."""
        out = target or self.folder / "out.img"
        words = ["assemble", "work/private", "--session", session, "-o", str(out)]
        at = ["--archive", place] if place else []
        self.does(*at, *words, "--passphrase-file", str(self.key))
        contents = out.read_bytes()
        out.unlink()
        return contents

    def live(self, copy: str = "") -> None:
        """All of it: everything that was backed up comes back, here and from a copy at ``copy``."""
        key = ("--passphrase-file", str(self.key))
        contents = [self.site.contents()]
        self.init()
        self.does("backup")
        for turn in range(2):
            contents.append(self.change(turn))
            time.sleep(1.0 if turn else 0.0)  # sessions are named by the second
            self.does("backup")
        self.does("backup")  # nothing changed
        self.does("verify", *key)
        self.does("scrub")
        names = self.sessions()
        assert len(names) == 4
        for name, expected in zip(names, contents, strict=False):
            assert self.assembled(name) == expected
        self.does("tag", "work/private", "--session", names[1], "--add", "kept", *key)
        self.does("prune", "work/private", "--session", names[0], *key)
        contents[3:] = [self.site.contents()]
        left = self.sessions()
        assert left == names[1:]
        for name, expected in zip(left, contents[1:], strict=True):
            assert self.assembled(name) == expected
        self.does("scrub")
        second = copy or str(self.folder / "copy")
        for _ in range(2):
            self.does("copy", second, *key)
        assert self.assembled(left[-1], place=second) == contents[-1]
        self.does("status", *key)
        assert self.run("doctor").code in (0, 1)
