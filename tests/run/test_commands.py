# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands as a user runs them: real processes, the real service files, exit codes, errors of
one line.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backup_vm import cli
from tests.kit import GRAIN, Site, change, fill
from tests.patience import PATIENCE

BIN = Path(sys.executable).parent
SIZE = 30 * GRAIN + 5


class Shell:
    """A folder with a pool, an agent.toml, and the two commands."""

    def __init__(self, root: Path, mode: str) -> None:
        self.root, self.image = root, root / "pool/work.img"
        (root / "pool").mkdir()
        (root / "agent.toml").write_text(
            'state_dir = "dom0"\n[[pool]]\nname = "p"\ndriver = "file"\npath = "pool"\n'
            '[[volume]]\nqube = "work"\nvolume = "private"\npool = "p"\nvid = "work.img"\n'
            '[[volume]]\nqube = "vault"\nvolume = "private"\npool = "p"\nvid = "vault.img"\n'
        )
        (root / "pw").write_text("correct horse\n")
        fill(self.image, SIZE)
        fill(root / "pool/vault.img", SIZE, 1)
        self.key = [] if mode == "open" else ["--passphrase-file", "pw"]
        extra = ["--open"] if mode == "open" else ["--passphrase-file", "pw"]
        self.added = self.agent("archive", "add", "lab", "--caller", "some-vm", *extra).stdout
        self.ok("init", "archive", "--label", "lab")

    def _run(
        self, *words: str, expect: int = 0, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        names = {
            "SPARSEBAK_AGENT": f"local:{self.root}/agent.toml",
            "SPARSEBAK_ARCHIVE": f"{self.root}/archive",
        }
        environ = {**os.environ, **names, "HOME": str(self.root), **environment}
        done = subprocess.run(
            words,
            cwd=self.root,
            env=environ,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expect, (words, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def agent(self, *words: str, expect: int = 0) -> "subprocess.CompletedProcess[str]":
        return self._run(
            str(BIN / "sparsebak-agent"), "--config", "agent.toml", *words, expect=expect
        )

    def ok(self, *words: str, **environment: str) -> str:
        return self._run(str(BIN / "sparsebak"), *words, **environment).stdout

    def fails(self, code: int, *words: str, **environment: str) -> str:
        """Run a command that is to fail; returns its one line of error."""
        error = self._run(str(BIN / "sparsebak"), *words, expect=code, **environment).stderr
        assert error.startswith("sparsebak: ") and error.count("\n") == 1, error
        return error


@pytest.fixture(params=["sealed", "open"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    return Shell(tmp_path, request.param)


@pytest.fixture
def sealed(tmp_path: Path) -> Shell:
    return Shell(tmp_path, "sealed")


def test_a_whole_life(shell: Shell) -> None:
    assert shell.ok("backup") == "", "silent where there is no terminal"
    first = shell.image.read_bytes()
    import random

    change(shell.image, random.Random(1))
    second = shell.image.read_bytes()
    done = json.loads(shell.ok("backup", "work", "--json"))
    assert [s["qube"] for s in done["sessions"]] == ["work"] and done["failed"] == []
    listed = json.loads(shell.ok("list", "--json"))["volumes"]
    assert [(v["qube"], v["volume"], len(v["sessions"])) for v in listed] == [
        ("vault", "private", 1),
        ("work", "private", 2),
    ]
    names = [session["session"] for session in listed[1]["sessions"]]
    assert all(re.fullmatch(r"\d{8}-\d{6}", name) for name in names)
    assert names[0] in shell.ok("list", "work/private")
    for name, contents in zip([*names, "latest"], [first, second, second], strict=True):
        shell.ok(
            "assemble",
            "work/private",
            "--session",
            name,
            *shell.key,
            "-o",
            "out.img",
            "--force",
        )
        assert (shell.root / "out.img").read_bytes() == contents
        shell.ok("restore", "--yes", "work/private", "--session", name)
        assert shell.image.read_bytes() == contents
    results = json.loads(shell.ok("verify", "--session", "all", "--json"))["sessions"]
    assert len(results) == 3 and all(result["ok"] for result in results)
    assert json.loads(shell.ok("scrub", "--json")) == {
        "damaged": [], "ok": True, "mended": [], "noted": True,
    }  # fmt: skip
    status = json.loads(shell.ok("status", "--json"))
    assert status["label"] == "lab" and {v["name"] for v in status["volumes"]} == {
        "work/private",
        "vault/private",
    }
    plan = json.loads(
        shell.ok("prune", "work", "--keep-last", "1", "--min-age", "0d", "--dry-run", "--json")
    )
    assert [s["session"] for s in plan["removed"]] == names[:1] and len(
        shell.ok("list", "work").splitlines()
    ) == 3
    shell.ok("prune", "work/private", "--session", names[0])
    shell.ok("delete", "--yes", "vault/private")
    listed = json.loads(shell.ok("list", "--json"))["volumes"]
    assert [(v["qube"], len(v["sessions"])) for v in listed] == [("work", 1)]
    shell.ok("verify")
    shell.ok("backup", "--all")
    assert "2 sessions" not in shell.ok("scrub")


def test_without_agent_and_key_a_sealed_archive_shows_no_names(sealed: Shell) -> None:
    sealed.ok("backup")
    hidden = sealed.ok("list", SPARSEBAK_AGENT="")
    assert "work" not in hidden and "vault" not in hidden
    volume = json.loads(sealed.ok("list", "--json", SPARSEBAK_AGENT=""))["volumes"][0]["id"]
    assert volume in hidden
    sealed.ok("list", volume, SPARSEBAK_AGENT="")
    named = sealed.ok("list", "--passphrase-file", "pw", SPARSEBAK_AGENT="")
    assert "work/private" in named and "vault/private" in named
    for path in (sealed.root / "archive").rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert b"vault" not in raw and b"work" not in raw and b"private" not in raw, path


def test_the_recovery_key_opens_the_archive(sealed: Shell) -> None:
    sealed.ok("backup")
    key = re.search(r"(?:[A-Z2-7]{5}-){7}[A-Z2-7]{5}", sealed.added)
    assert key is not None
    (sealed.root / "recovery").write_text(key[0].lower())
    sealed.ok(
        "assemble",
        "work/private",
        "--passphrase-file",
        "recovery",
        "-o",
        "out.img",
        SPARSEBAK_AGENT="",
    )
    assert (sealed.root / "out.img").read_bytes() == sealed.image.read_bytes()


def test_mistakes_get_one_line_and_a_code(sealed: Shell) -> None:
    sealed.ok("backup")
    (sealed.root / "wrong").write_text("wrong\n")
    (sealed.root / "empty").write_text("")
    assert "no archive" in sealed.fails(10, "--archive", "nowhere", "list")
    assert "no archive" in sealed.fails(10, "list", SPARSEBAK_ARCHIVE="")
    assert "does not open" in sealed.fails(
        12, "assemble", "work/private", "--passphrase-file", "wrong", "-o", "x"
    )
    assert "sealed" in sealed.fails(12, "assemble", "work/private", "-o", "x")
    assert "empty" in sealed.fails(
        2, "assemble", "work/private", "--passphrase-file", "empty", "-o", "x"
    )
    assert "no volume" in sealed.fails(1, "list", "nobody")
    assert "no session" in sealed.fails(
        1, "restore", "work/private", "--session", "19990101-000000"
    )
    assert "neither" in sealed.fails(2, "--agent", "ssh:host", "backup")
    assert "agent configuration" in sealed.fails(5, "--agent", "local:missing.toml", "backup")
    assert "lists no volume" in sealed.fails(1, "backup", "nobody")
    assert "starting with" in sealed.fails(2, "backup", "../etc")
    assert "exists" in sealed.fails(
        1, "assemble", "work/private", "--passphrase-file", "pw", "-o", "agent.toml"
    )
    assert "not mounted" in sealed.fails(1, "--require-mount", str(sealed.root), "backup")
    assert "already" in sealed.fails(1, "init", "archive", "--label", "lab")
    assert "not empty" in sealed.fails(1, "init", "pool", "--label", "lab")
    assert "no such archive" in sealed.fails(5, "init", "other", "--label", "nothing")
    assert not (sealed.root / "other").exists()
    # An init whose disk went read-only half way leaves this, and is to be had again.
    (sealed.root / "again").mkdir()
    (sealed.root / "again" / "archive.toml.tmp").write_bytes(b"format")
    sealed.ok("init", "again", "--label", "lab")
    assert not (sealed.root / "again" / "archive.toml.tmp").exists()
    assert "no such archive" in sealed.fails(5, "--caller", "evil", "backup")
    assert (
        sealed._run(str(BIN / "sparsebak"), "prune", "work", "--keep-last", "0", expect=2).stdout
        == ""
    )


def test_mistakes_in_dom0(sealed: Shell) -> None:
    def fails(*words: str) -> str:
        error = sealed.agent(*words, expect=1).stderr
        assert error.startswith("sparsebak-agent: ") and error.count("\n") == 1
        return error

    assert "already" in fails("archive", "add", "lab", "--caller", "x", "--open")
    assert "label" in fails("archive", "add", "../x", "--caller", "x", "--open")
    assert "caller" in fails("archive", "add", "x", "--caller", "a b", "--open")
    assert "takes no passphrase" in fails(
        "archive", "add", "x", "--caller", "y", "--open", "--passphrase-file", "pw"
    )
    assert "no terminal" in fails("archive", "add", "x", "--caller", "y")
    assert "no volume" in fails("monitor", "nobody")
    (sealed.root / "agent.toml").write_text("state_dir = 1\n")
    assert "agent.toml" in fails("status")


def test_monitor_and_status_in_dom0(sealed: Shell) -> None:
    sealed.agent("monitor")
    sealed.ok("backup")
    with open(sealed.image, "r+b") as file:
        file.write(b"changed")
    sealed.agent("monitor", "work", "vault/private")
    volumes = {v["qube"]: v for v in json.loads(sealed.agent("status", "--json").stdout)["volumes"]}
    assert (
        volumes["work"]["archives"][0]["changed"] == GRAIN
        and volumes["vault"]["archives"][0]["changed"] == 0
    )
    assert "changed since" in sealed.agent("status").stdout
    sealed.agent("forget", "work/private", "--yes")
    assert json.loads(sealed.ok("backup", "work", "--json"))["sessions"][0]["full"]


def test_an_interrupted_command_goes_on(sealed: Shell) -> None:
    import signal
    import time

    sealed.image.write_bytes(os.urandom(60 << 20))
    environ = {
        **os.environ,
        "SPARSEBAK_AGENT": f"local:{sealed.root}/agent.toml",
        "SPARSEBAK_ARCHIVE": f"{sealed.root}/archive",
    }
    process = subprocess.Popen(
        [BIN / "sparsebak", "backup", "work"], env=environ, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE
    while not list((sealed.root / "archive").rglob("*.pack.tmp")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    error = process.communicate()[1].decode()
    if process.returncode == 130:  # else it was done before the signal came
        assert "interrupted" in error
    sealed.ok("backup", "work")
    sealed.ok("assemble", "work/private", "--passphrase-file", "pw", "-o", "out.img")
    assert (sealed.root / "out.img").read_bytes() == sealed.image.read_bytes()
    sealed.ok("scrub")


def test_keys_are_readable_by_their_owner_only(sealed: Shell) -> None:
    sealed.ok("backup")
    for path in (sealed.root / "dom0").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (sealed.root / "archive/archive.toml").stat().st_mode & 0o077 == 0


def test_init_makes_the_archive_the_default(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 300_000)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(site.root / "settings"))
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{site.config}")
    words = ["init", str(site.root / "second"), "--label", "tests", "--default"]
    assert cli.main(words) == 0
    assert (
        (site.root / "settings/sparsebak/config.toml")
        .read_text()
        .startswith(f'archive = "{site.root}/second"\n')
    )
    assert cli.main(["backup"]) == 0
    assert list((site.root / "second").rglob("*.session"))
    words[1] = str(site.root / "third")
    assert cli.main(words) == 1
    assert "exists already" in capsys.readouterr().err
