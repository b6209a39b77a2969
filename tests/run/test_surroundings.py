# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands where a machine is not as a test's machine is: streams closed or full, other letters, no
home, odd settings.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backup_vm.archive.storage.local import LocalStorage
from tests.commands import Commands
from tests.kit import GRAIN, Site, fill

SPARSEBAK = Path(sys.executable).parent / "sparsebak"


class Shell:
    """Runs ``sparsebak`` as a process of its own, as a shell would, with what stands behind the
    command line.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(site.root),
            "SPARSEBAK_ARCHIVE": str(site.archive),
            "SPARSEBAK_AGENT": f"local:{site.config}",
        }

    def run(self, line: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", f'set -o pipefail; "$0" {line}', SPARSEBAK],
            env=self.environment | environment,
            cwd=self.site.root,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1")

    def line(self, code: int, line: str, **environment: str) -> str:
        """The one line on standard error with which it ends."""
        ended, out, err = self.run(line, **environment)
        assert ended == code, (line, ended, out, err)
        assert err.count("\n") == 1 and err.startswith("sparsebak: "), err
        return err


@pytest.fixture
def shell(site: Site) -> Shell:
    fill(site.image(), 5 * GRAIN)
    site.backup()
    return Shell(site)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_a_failure(shell: Shell, unbuffered: str) -> None:
    for command in ("list", "--version"):
        for odd, code, said in (
            (">&-", 1, "standard output is closed"),
            (">/dev/full", 1, "No space left"),
            ("2>&- >/dev/full", 1, ""),
            ("<&- 2>&-", 0, ""),
        ):
            ended, _, err = shell.run(f"{command} {odd}", PYTHONUNBUFFERED=unbuffered)
            assert ended == code and said in err and err.count("\n") == bool(said), (command, odd)
    # Whoever reads no more has seen enough: no message, and the exit code of SIGPIPE, as of any
    # program.
    assert shell.run("list | true", PYTHONUNBUFFERED=unbuffered) == (141, "", "")


def test_a_file_never_takes_the_place_of_a_closed_stream(shell: Shell) -> None:
    sound = {path: path.read_bytes() for path in shell.site.archive.rglob("*.pack")}
    shell.site.image().write_bytes(b"x" * GRAIN)
    for streams in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        shell.run(f"backup -v --note x {streams}")
        shell.run(f"scrub -v {streams}")
    assert all(path.read_bytes() == data for path, data in sound.items())
    assert shell.run("scrub -v")[:2] == (0, "No damage found.\n")
    assert list(shell.site.images().values())[-1] == b"x" * GRAIN


def test_letters_that_the_terminal_does_not_have(shell: Shell) -> None:
    assert shell.run("tag work/private --add x --note 'Grüße ☃'")[0] == 0
    for odd in (
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        code, out, err = shell.run("list work/private", **odd)
        assert code == 0 and "\\u2603" in out and not err, (odd, out, err)
        assert "\\udcff" in shell.line(10, r"list --archive $'no\xffthing'", **odd)
        shell.line(2, r"tag x --note $'\xff'", **odd)


def test_a_user_without_a_home(shell: Shell) -> None:
    """As in a container: no HOME, and an id that is in no passwd."""
    if os.geteuid() != 0:
        pytest.skip("needs root to be somebody unknown")
    import shutil

    for path in (shell.site.root, *shell.site.root.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    subprocess.run(["chmod", "-R", "a+rwX", shell.site.archive], check=True)
    del shell.environment["HOME"]
    prefix = f"exec {shutil.which('setpriv')} --reuid 54321 --clear-groups"
    for command, code in (("list", 0), ("scrub -v", 0), ("list --config '~/x'", 2)):
        done = subprocess.run(
            ["bash", "-c", f'{prefix} "$0" {command}', SPARSEBAK],
            env=shell.environment | {"SPARSEBAK_AGENT": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def test_tilde_in_settings_environment_and_options(shell: Shell) -> None:
    home = {"HOME": str(shell.site.root)}
    shell.environment |= home | {"SPARSEBAK_ARCHIVE": "~/archive"}
    assert shell.run("list")[0] == 0
    assert shell.run("list", SPARSEBAK_AGENT="local:~/agent.toml")[0] == 0
    assert shell.run("list --archive='~/archive'", SPARSEBAK_ARCHIVE="")[0] == 0
    (shell.site.root / "s.toml").write_text('archive = "~/archive"\nrequire_mount = "~"\n')
    assert "not mounted" in shell.line(1, "list --config '~/s.toml'", SPARSEBAK_ARCHIVE="")
    assert "home folder" in shell.line(2, "list", SPARSEBAK_ARCHIVE="~nobody-of-that-name/x")
    assert shell.run("report -o '~/page.html'")[0] == 0
    assert (shell.site.root / "page.html").is_file()
    assert "no archive" in shell.line(10, "list", SPARSEBAK_ARCHIVE="~/none")
    assert not list(shell.site.root.glob("~*"))


def test_a_link_to_what_is_mounted_does_for_it(shell: Shell) -> None:
    (shell.site.root / "mounted").symlink_to("/proc")
    (shell.site.root / "gone").symlink_to("nowhere")
    assert shell.run(f"--require-mount {shell.site.root}/mounted list")[0] == 0
    assert "is not mounted" in shell.line(1, f"--require-mount {shell.site.root}/gone list")


def test_what_is_imported_is_a_file_that_can_be_read_twice(shell: Shell) -> None:
    """Nothing waits for whoever writes to a pipe, and least of all with the archive's lease."""
    os.mkfifo(shell.site.root / "fifo")
    for name in ("fifo", "/dev/zero", "."):
        assert "not a regular file" in shell.line(2, f"import {name}")


def test_settings_that_are_no_settings(shell: Shell) -> None:
    os.mkfifo(shell.site.root / "fifo")
    (shell.site.root / "mark").write_bytes(b"\xef\xbb\xbfarchive = '/none'\n")
    (shell.site.root / "latin").write_bytes(b"archive = '\xff'\n")
    (shell.site.root / "nul").write_text('archive = "a\\u0000b"\n')
    (shell.site.root / "large").write_bytes(b"#" * (2 << 20))
    (shell.site.root / "deep").write_text("a = " + "[" * 5000)
    for name, said in (
        ("fifo", "not a regular file"),
        (".", "Is a directory"),
        ("/dev/zero", "not a regular file"),
        ("none", "no such file"),
        ("latin", "not UTF-8"),
        ("nul", "'archive' is not a setting"),
        ("large", "too large"),
        ("deep", "deep"),
    ):
        assert said in shell.line(2, f"list --config {name}")
    assert "no archive in /none" in shell.line(10, "list --config mark", SPARSEBAK_ARCHIVE="")
    assert shell.run("list --config /dev/null")[0] == 0


def test_small_oddities(shell: Shell) -> None:
    for odd in ({"COLUMNS": "1"}, {"COLUMNS": "0"}, {"TERM": "dumb"}, {"TZ": "No/Where"}):
        assert shell.run("prune --help", **odd)[0] == 0
        assert shell.run("list", **odd)[0] == 0
    gone = shell.site.root / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["bash", "-c", f'cd {gone} && rmdir {gone} && exec "$0" list', SPARSEBAK],
        env=shell.environment,
        check=False,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    # A device is never replaced by a file.
    assert "not a regular file" in shell.line(1, "report -o /dev/null")
    assert Path(os.devnull).is_char_device()


def test_room_that_is_not_known(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network mounts say that a disk has 0 blocks: unknown is not full."""
    for seed in range(3):
        fill(commands.site.image(), 5 * GRAIN, seed)
        monkeypatch.setattr("time.time", lambda at=1_800_000_000 + seed * 100: at)
        commands.site.backup()
    monkeypatch.undo()
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(commands.site.archive))
    monkeypatch.setenv("SPARSEBAK_AGENT", f"local:{commands.site.config}")
    monkeypatch.setattr(LocalStorage, "free", lambda self: None)
    monkeypatch.setattr(LocalStorage, "capacity", lambda self: None)
    for room in ("20G", "10%"):
        assert "cannot be determined" in commands.fails(2, "prune", "--until-free", room)
    for wrong in ("9" * 400 + "G", "²%", "0%", "100%", "-1", "much"):
        assert "10%, or a size" in commands.fails(2, "prune", f"--until-free={wrong}")
    assert len(commands.names()) == 3
    commands.run("backup")
    found = json.loads(commands.run("doctor", "--json")[0])["findings"]
    assert any("not known" in finding["what"] for finding in found)
    # A backup that is done is reported so, also where what comes after it cannot be.
    commands.settings('[prune]\nkeep_last = 9\nuntil_free = "20G"\nafter_backup = true\n')
    out, err = commands.run("backup", "--json", expect=2)
    assert len(json.loads(out)["sessions"]) == 1 and "nothing was pruned after the backup" in err
    assert len(commands.names()) == 5


def test_what_destroys_asks(commands: Commands) -> None:
    """Without anybody to ask it fails, unless told --yes."""
    site = commands.site
    fill(site.image(), 5 * GRAIN)
    site.backup()
    before = site.contents()
    fill(site.image(), 5 * GRAIN, 1)
    now = site.contents()
    key = ("--passphrase-file", str(commands.passphrase))
    copy = ("copy", str(site.root / "copy"), "--delete")
    for words in (
        ("delete", "work/private"),
        ("restore", "work/private"),
        ("restore", "work"),
        copy,
    ):
        for more in ((), ("-u",), ("--json",), ("-q",)):
            assert "--yes" in commands.fails(1, *words, *key, *more)
    assert not (site.root / "copy").exists()
    assert len(commands.names()) == 1 and site.contents() == now
    commands.run("delete", "-n", "work/private", *key)
    commands.run("restore", "work/private", "--yes", *key)
    assert site.contents() == before and len(commands.names()) == 1
    site.image().unlink()
    commands.run("restore", "work/private", *key)  # nothing is there that could be lost
    assert site.contents() == before
    commands.run("delete", "work/private", "--yes", *key)
    assert commands.names() == []


def test_the_command_printed_after_an_import_works(commands: Commands) -> None:
    import shlex

    site, file = commands.site, str(commands.site.root / "x.sbx")
    fill(site.image(), 5 * GRAIN)
    site.backup()
    key = ("--passphrase-file", str(commands.passphrase))
    commands.run("export", "work/private", "-o", file, *key)
    commands.run("delete", "work/private", "--yes", *key)
    said = commands.run("import", file, "-v")[0].strip()
    program, *words = shlex.split(said.partition("verify it with: ")[2])
    assert program == "sparsebak"
    assert "authentic and complete" in commands.run(*words, "-v")[0]


def test_remedies_of_doctor_work(commands: Commands) -> None:
    """What it says to run here, run here, leaves nothing to do."""
    fill(commands.site.image(), 5 * GRAIN)

    def remedies() -> list[str]:
        findings = json.loads(commands.run("doctor", "--json")[0])["findings"]
        return [
            one["remedy"].removeprefix("run: sparsebak ")
            for one in findings
            if one["state"] != "ok" and one["remedy"].startswith("run: sparsebak ")
        ]

    assert {remedy.split(";")[0] for remedy in remedies()} == {"backup", "drill", "scrub"}
    for remedy in remedies():
        words = remedy.split(";")[0].split()
        key = ("--passphrase-file", str(commands.passphrase)) if words == ["drill"] else ()
        commands.run(*words, *key)
    assert remedies() == []


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "work", "--session", ""),
        ("restore", "work", "--yes", "--session", ""),
        ("diff", "work/private", "latest", ""),
        ("copy", ""),
        ("init", "", "--label", "tests"),
        ("upkeep", ""),
        ("upkeep", "--copy-to", ""),
        ("assemble", "work/private", "-o", ""),
        ("list", "--archive", ""),
        ("list", "--tag", ""),
        ("inspect", ""),
        ("list", "--require-mount", ""),
        ("list", "--agent", ""),
        ("backup", "--caller", ""),
    ],
)
def test_an_empty_word_stands_for_nothing(
    commands: Commands, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    """As of a variable that a script forgot to set: not for the only session, nor for what the
    settings name.
    """
    commands.site.backup()
    with pytest.raises(SystemExit) as ended:
        commands.run(*words)
    assert ended.value.code == 2 and "it is empty" in capsys.readouterr().err
    assert len(commands.names()) == 1


def test_all_and_some_contradict_each_other(commands: Commands) -> None:
    assert "contradict" in commands.fails(2, "backup", "--all", "work")
