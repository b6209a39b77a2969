# SPDX-License-Identifier: GPL-2.0-or-later
"""What people expect of commands: completion, manuals, no questions when nobody is there, the
journal, doctor, the old ways.
"""

import json
import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backup_vm import cli as vm
from backup_vm.cli import spbk_assemble
from dom0_agent.admin import cli as dom0
from dom0_agent.admin.qubes_options import qubes_options
from dom0_agent.config import load
from tests.commands import Commands
from tests.conftest import cannot
from tests.kit import GRAIN, PASSPHRASE, Site, fill
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent


def test_manuals_and_completion_are_up_to_date() -> None:
    from tools.pages import pages

    made = dict(pages())
    assert len(made) == 8
    if sys.version_info[:2] != (3, 11):  # argparse words its usage otherwise
        return
    for path, text in made.items():
        assert (ROOT / "share" / path).read_text() == text, "run: make pages"
    assert {
        str(path.relative_to(ROOT / "share"))
        for path in (ROOT / "share").rglob("*")
        if path.is_file()
    } == made.keys()
    manual = made["sparsebak-vm/man/man1/sparsebak.1"]
    for command in vm.COMMANDS:
        assert f"sparsebak {command}" in manual
    assert "exit codes" in manual.lower()


def test_manuals_are_read_whole() -> None:
    """roff drops a line that it takes for a request of its own, and warns."""
    if shutil.which("groff") is None:
        cannot("groff is not installed: make packages")
    manuals = [path for path in (ROOT / "share").glob("*/man/*/*") if path.is_file()]
    assert len(manuals) == len(PACKAGES)
    for manual in manuals:
        done = subprocess.run(
            ["groff", "-mandoc", "-ww", "-Tutf8", manual], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


PACKAGES = {"sparsebak": "sparsebak-vm", "sparsebak-agent": "sparsebak-dom0"}
COMPLETED = (
    ("sparsebak", "prun", "prune"),
    ("sparsebak", "doctor --unat", "--unattended"),
    ("sparsebak", "files hist", "history"),
    ("sparsebak-agent", "settings ap", "apply"),
    ("sparsebak-agent", "settings collect --unat", "--unattended"),
)
"""What a user types, and the word that Tab makes of the last one."""


@pytest.mark.parametrize("shell", ["bash", "zsh"])
@pytest.mark.parametrize(("command", "typed", "word"), COMPLETED)
def test_tab_completes(shell: str, command: str, typed: str, word: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        cannot(f"{shell} is not installed: make packages")
    share = ROOT / "share" / PACKAGES[command]
    if shell == "bash":
        words = ["--norc", "--noprofile"]
        takes = f"source {share}/bash-completion/completions/{command}"
    else:
        words = ["-f"]
        takes = f"fpath=({share}/zsh/site-functions $fpath); autoload -Uz compinit; compinit -u -D"
    # Tab, then to the beginning of the line, where echo comes before what stands there now.
    keys = f"{takes}\n{command} {typed}\t\x01echo took: \nexit\n"
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "TERM": "vt100"}
    code, printed = on_a_terminal(
        *(shell, *words, "-i"), environment=environment, typed=keys.encode()
    )
    last = [line for line in printed.splitlines() if line.strip().startswith("took:")]
    assert code == 0 and [line.split()[-1] for line in last] == [word], printed


@pytest.mark.parametrize(("command", "typed", "word"), COMPLETED)
def test_fish_completes(command: str, typed: str, word: str, tmp_path: Path) -> None:
    """It says by itself what it would offer."""
    if shutil.which("fish") is None:
        cannot("fish is not installed: make packages")
    file = ROOT / "share" / PACKAGES[command] / f"fish/vendor_completions.d/{command}.fish"
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source {file}; complete -C '{command} {typed}'"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [word], done
    assert not done.stderr


@pytest.mark.parametrize("command", ["sparsebak", "sparsebak-agent"])
def test_versions(command: str) -> None:
    done = subprocess.run([BIN / command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == command and done.stdout.split()[1][0].isdigit()


def on_a_terminal(
    *words: object, environment: dict[str, str] | None = None, typed: bytes = b""
) -> tuple[int, str]:
    """Run something on a terminal where this is typed; exit code and what it printed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(w) for w in words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    printed = b""
    try:
        if typed:
            os.write(ours, typed)
        while block := os.read(ours, 4096):
            printed += block
    except OSError:  # closed
        pass
    os.close(ours)
    return process.wait(timeout=PATIENCE), printed.decode(errors="replace")


def test_unattended_asks_nothing(site: Site) -> None:
    fill(site.image(), 5 * GRAIN)
    site.backup()
    place = ["--archive", site.archive, "-u"]
    code, printed = on_a_terminal(
        BIN / "sparsebak", *place, "assemble", "work/private", "-o", site.root / "x"
    )
    assert code in (1, 12) and "Passphrase" not in printed
    code, printed = on_a_terminal(
        BIN / "sparsebak-agent",
        "--config",
        site.config,
        "-u",
        "archive",
        "add",
        "x",
        "--caller",
        "y",
    )
    assert code == 1 and "no terminal to ask" in printed


@pytest.mark.parametrize("letters", ["utf-8:strict", "ascii:strict"])
def test_an_answer_in_other_letters_is_no_yes(site: Site, letters: str) -> None:
    """As Python reads in any locale but C."""
    site.backup()
    environment = {**os.environ, "PYTHONIOENCODING": letters}
    for words in (
        ("sparsebak", "--archive", site.archive, "delete", volume_id(site)),
        ("sparsebak-agent", "--config", site.config, "archive", "remove", "tests"),
    ):
        program = (BIN / str(words[0]), *words[1:])
        code, printed = on_a_terminal(*program, environment=environment, typed=b"y\xe9s\n")
        assert code == 1 and "nothing was changed" in printed, printed
        assert "Traceback" not in printed, printed
    assert len(site.images()) == 1


def volume_id(site: Site) -> str:
    return next((site.archive / "volumes").iterdir()).name


def test_no_color_and_progress(site: Site) -> None:
    fill(site.image(), 40 * GRAIN)
    place = [BIN / "sparsebak", "--archive", site.archive, "--agent", f"local:{site.config}"]
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    code, printed = on_a_terminal(*place, "backup", environment=plain)
    assert code == 0 and "\x1b[3" not in printed.replace("\x1b[?", "") and "38;5" not in printed


def test_errors_go_to_the_journal_with_their_priority(site: Site) -> None:
    environment = {**os.environ, "JOURNAL_STREAM": "1:2"}
    command = [BIN / "sparsebak", "--archive", "nowhere", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 10 and done.stderr.startswith("<3>sparsebak: ")


def states(commands: Commands, *words: str, expect: int = 0) -> dict[str, str]:
    out = commands.run(*words, "doctor", "--json", expect=expect)[0]
    return {finding["what"]: finding["state"] for finding in json.loads(out)["findings"]}


def test_doctor(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    site = commands.site
    fill(site.image(), 5 * GRAIN)
    found = states(commands)
    assert found["dom0's policy lets this qube ask, and the agent answers"] == "ok"
    assert found["no session yet"] == "warn" and found["never backed up: work/private"] == "warn"
    assert any(what.startswith("2 key slots, a recovery key among them") for what in found)
    site.backup()
    commands.run("scrub")
    commands.run("drill", "--passphrase-file", str(commands.passphrase))
    found = states(commands)
    assert all(
        state == "ok"
        for what, state in found.items()
        if "timer" not in what and "systemd" not in what
    ), found
    text = commands.run("doctor")[0]
    assert "BAD" not in text and "the agent is version" in text
    assert "BAD" in commands.run("--agent", "local:/nowhere.toml", "doctor", expect=1)[0]
    assert "no archive" in commands.run("--archive", "/nowhere", "doctor", expect=1)[0]
    assert "not mounted" in commands.run("--require-mount", str(site.root), "doctor", expect=1)[0]
    with monkeypatch.context() as earlier:  # or the clock was ahead when these were made
        month_ago = time.time() - 30 * 86400
        earlier.setattr(time, "time", lambda: month_ago)
        found = states(commands)
        future = [what for what, state in found.items() if "in the future" in what]
        assert len(future) == 3 and all(found[what] == "warn" for what in future), found
    monkeypatch.setattr("wire.VERSION", "9.9")
    monkeypatch.setattr("backup_vm.jobs.doctor.VERSION", "9.9")
    assert "install the same version" in commands.run("doctor")[0]
    session = next(site.archive.rglob("*.session"))
    session.write_bytes(session.read_bytes()[:-1])
    assert "is damaged" in commands.run("doctor", expect=1)[0]
    (site.archive / "notes.json").write_text("x")
    assert "notes.json" in commands.run("doctor", expect=1)[0]


def test_spbk_assemble(
    commands_for: Callable[[Site], Commands], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "site", volumes=("work/private", "vault/private"))
    commands_for(site)
    for seed, name in enumerate(site.volumes):
        fill(site.image(name), 5 * GRAIN, seed)
    site.backup()
    (site.root / "pw").write_bytes(PASSPHRASE)
    monkeypatch.chdir(site.root)
    key = ["--passphrase-file", "pw"]
    assert spbk_assemble.main(["archive/work/private", *key]) == 0
    assert (site.root / "work-private.img").read_bytes() == site.contents()
    folder = next((site.archive / "volumes").iterdir())
    assert spbk_assemble.main([str(folder), *key, "-o", "out.img"]) == 0
    assert (site.root / "out.img").read_bytes() in [site.contents(name) for name in site.volumes]
    assert spbk_assemble.main(["-c", str(folder), *key]) == 0
    assert (
        spbk_assemble.main(["archive", *key]) == 2
        and spbk_assemble.main([str(tmp_path), *key]) == 10
    )
    shutil.rmtree(folder)
    assert spbk_assemble.main(["archive", *key, "-o", "only.img"]) == 0


INI = """[var]
vgname = qubes_dom0
poolname = pool00
destvm = qubes://backup
destmountpoint = /mnt/volume
destdir = backups

[volumes]
vm-untrusted-private = enable
vm-My_Work-root = disable
vm-banking-private = enable
root = enable
"""


def test_an_ini_of_the_original(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sparsebak.ini").write_text(INI)
    words = ["import-ini", str(tmp_path / "sparsebak.ini"), "--catalog"]
    assert dom0.main([*words, "static", "-o", str(tmp_path / "agent.toml")]) == 0
    said = capsys.readouterr().err
    assert "archive add main --caller backup" in said and 'require_mount = "/mnt/volume"' in said
    assert "sparsebak init /mnt/volume/backups/sparsebak.archive --label main" in said
    config = load(tmp_path / "agent.toml")
    assert [(v.name, v.vid) for v in config.volumes] == [
        ("untrusted/private", "vm-untrusted-private"),
        ("banking/private", "vm-banking-private"),
        ("dom0/root", "root"),
    ]
    assert (config.volumes[0].pool.volume_group, config.volumes[0].pool.thin_pool) == (
        "qubes_dom0",
        "pool00",
    )
    assert '# vid = "vm-My_Work-root"' in (tmp_path / "agent.toml").read_text()
    assert dom0.main([*words, "static", "-o", str(tmp_path / "agent.toml")]) == 1
    assert dom0.main([*words, "qubes", "-o", str(tmp_path / "qubes.toml")]) == 0
    options = qubes_options(load(tmp_path / "qubes.toml"))
    assert options.include == ("banking", "untrusted") and options.exclude == ("My_Work",)
    (tmp_path / "sparsebak.ini").write_text(INI.replace("qubes://backup", "ssh://me@host"))
    assert dom0.main([*words, "static"]) == 0
    printed = capsys.readouterr()
    assert (
        'driver = "lvm_thin"' in printed.out and "sftp://me@host/mnt/volume/backups" in printed.err
    )
    for wrong in (
        "",
        "[var]\nvgname = x\n",
        INI.replace("= disable", "= maybe"),
        INI.replace("root =", "../x ="),
        "\xff\x00[",
    ):
        (tmp_path / "sparsebak.ini").write_text(wrong)
        assert dom0.main([*words, "static"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
