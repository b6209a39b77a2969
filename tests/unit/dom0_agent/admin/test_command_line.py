# SPDX-License-Identifier: GPL-2.0-or-later
"""The agent's command line: common options on both sides of the command, and clean ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from tests.children import begun, signals_as_usual
from tests.kit import Site, fill
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[4]
AGENT = Path(sys.executable).parent / "sparsebak-agent"
COMMANDS = [
    ["setup", "vm"], ["archive", "add", "x", "--caller", "vm"], ["archive", "list"],
    ["archive", "remove", "x"],
    ["keys", "list", "x"], ["keys", "add", "x"], ["keys", "change", "x"],
    ["keys", "remove", "x", "--slot", "0"],
    ["keys", "new-recovery", "x"], ["keys", "import", "x", "file", "--caller", "vm"], ["volumes"],
    ["monitor"], ["status"],
    ["backup"], ["check"], ["settings", "show", "work"], ["settings", "apply", "work"],
    ["forget", "work/private"], ["serve"], ["grant", "work", "-o", "file"],
    ["open", "work"],
    ["import-ini", "file"],
]  # fmt: skip


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_common_options_before_and_after(words: list[str]) -> None:
    common = ["--config", "/there", "-u", "-q", "-v", "--json"]
    for line in (
        [*common, *words],
        [*words, *common],
        [*common[:2], *words, *common[2:]],
        (
            [words[0], *common, *words[1:]]
            if words[0] in ("archive", "keys", "settings")
            else [*words, *common]
        ),
    ):
        found = cli.parser(line).parse_args(line)
        assert (found.config, found.unattended, found.quiet, found.verbose, found.json) == (
            Path("/there"), True, True, True, True,
        )  # fmt: skip
    bare = cli.parser(words).parse_args(words)
    assert bare.config == cli.DEFAULT_PATH
    assert not (bare.unattended or bare.quiet or bare.verbose or bare.json)
    line = ["--config", "/first", *words, "--config", "/last"]
    assert cli.parser(line).parse_args(line).config == Path("/last")


def run(site: Site, *words: str, **named: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(AGENT), "--config", str(site.config), *words],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, **named,  # type: ignore[call-overload, no-any-return]
    )  # fmt: skip


def test_what_destroys_needs_somebody_to_ask(site: Site) -> None:
    fill(site.image(), 200_000)
    site.backup()
    before = sorted(path for path in site.root.rglob("*") if path.is_file())
    for words in (
        ["forget", "work/private"], ["forget", "--all"], ["archive", "remove", "tests"],
        ["keys", "remove", "tests", "--slot", "0"], ["keys", "new-recovery", "tests"],
    ):  # fmt: skip
        assert cli.main(["--config", str(site.config), "-u", *words]) == 1
        assert cli.main(["--config", str(site.config), *words, "-u"]) == 1
    assert sorted(path for path in site.root.rglob("*") if path.is_file()) == before


def test_output_that_cannot_be_written(site: Site) -> None:
    fill(site.image(), 200_000)
    site.backup()
    with open("/dev/full", "w") as full:
        done = run(site, "status", stdout=full)
        assert run(site, "--help", stdout=full).returncode == 1
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "standard output: No space" in done.stderr
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as pipe:
        done = run(site, "status", stdout=pipe)
    assert (done.returncode, done.stderr) == (141, "")


def test_no_home_and_a_plain_locale(site: Site, tmp_path: Path) -> None:
    ini = tmp_path / "old.ini"
    ini.write_text(
        "[var]\nvgname = g\npoolname = p\ndestdir = caf\u00e9\n[volumes]\nvm-work-private ="
        " enable\n",
        "utf-8",
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C"}
    done = run(
        site, "import-ini", str(ini), "--catalog", "static", stdout=subprocess.PIPE, env=environment
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr and "caf\\xe9" in done.stderr
    assert run(site, "status", stdout=subprocess.DEVNULL, env=environment).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_it_ends_when_it_is_told_to(site: Site, number: signal.Signals) -> None:
    """While it waits for a volume that somebody else works on."""
    from dom0_agent.tracking.state import VolumeState

    fill(site.image(), 200_000)
    site.backup()
    with VolumeState(site.state, "work", "private").locked():
        command = [str(AGENT), "--config", str(site.config), "forget", "work/private", "--yes"]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, preexec_fn=signals_as_usual
        ) as process:
            begun(process)
            process.send_signal(number)
            error = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == (130 if number == signal.SIGINT else 128 + number)
    assert error == "" and len(site.snapshots()) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\0" * 100, b"\xff\xfe[\0v\0a\0r\0]\0", b"[var]\n",
        b"[var\nvgname", b"vgname = x\n", b"[volumes]\nx = enable\n",
        b"[var]\nvgname = g\npoolname = p\n[volumes]\nvm-../../x-private = enable\n",
        b"[var]\nvgname = g\npoolname = p\n[volumes]\nx = maybe\n",
        b"[var]\nvgname = g\nvgname = h\npoolname = p\n[volumes]\n",
        b"[var]\nvgname = \"\x7f\npoolname = p\n[volumes]\nvm-a-root = enable\n",
        b"[[[[" * 1000, b"[var]\nvgname\npoolname\n[volumes]\nx\n",
    ],
)  # fmt: skip
def test_strange_files_are_no_ini(
    tmp_path: Path, raw: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ini").write_bytes(raw)
    out = tmp_path / "agent.toml"
    assert cli.main(["import-ini", str(tmp_path / "ini"), "-o", str(out)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("sparsebak-agent: ") and error.count("\n") == 1
    assert not out.exists()


def test_an_ini_without_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for path in ("/dev/zero", "/nonexistent", str(tmp_path)):
        assert cli.main(["import-ini", path]) == 1
        assert capsys.readouterr().err.count("\n") == 1


CLOSED = [
    ("<&-", 0), (">&-", 1), ("2>&-", 0), ("<&- >&- 2>&-", 1), (">/dev/full", 1), ("2>/dev/full", 0),
]  # fmt: skip


@pytest.mark.parametrize(("how", "code"), CLOSED, ids=[how for how, _ in CLOSED])
def test_without_one_of_the_three_streams(
    site: Site, how: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With it nothing stays in a buffer, to fail again at Python's end.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    fill(site.image(), 100_000)
    site.backup()
    command = f"{AGENT} --config {site.config} monitor {how}"
    (site.state / "volumes/work/private/state.json").write_text("{")  # something to be logged
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert (site.state / "volumes/work/private/state.json.damaged").read_text() == "{"
    assert ("standard output: " in done.stderr) == (how in (">&-", ">/dev/full"))
    done = subprocess.run(
        ["sh", "-c", f"{AGENT} --config {site.config} forget --all {how}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr


def test_check_is_not_content_with_any_number(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 100_000)
    site.backup()
    for days in ("nan", "inf", "-1", "0"):
        with pytest.raises(SystemExit):
            cli.main(["--config", str(site.config), "check", "--days", days])
    assert cli.main(["--config", str(site.config), "check"]) == 0
    then = time.time() - 2 * 86400  # the clock was ahead when the backup was made
    monkeypatch.setattr(time, "time", lambda: then)
    assert cli.main(["--config", str(site.config), "check"]) == 1
    assert "work/private: last backup" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["", "-x", "user:nogui", "a b", "a;b", "Root", "x" * 32, "user\n", "\u00fcser", "a/b"]
)
def test_a_user_that_cannot_be_one_is_refused_before_anybody_is_asked(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It becomes a part of what qrexec is asked for."""
    for words in (["backup"], ["grant", "work", "-o", "file"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, f"--user={name}"])
        assert ended.value.code == 2 and "no name that a user can have" in capsys.readouterr().err
    assert cli.parser(["backup"]).parse_args(["backup", "--user", "_a-1"]).user == "_a-1"
