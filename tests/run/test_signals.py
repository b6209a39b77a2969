# SPDX-License-Identifier: GPL-2.0-or-later
"""A signal ends every command within two seconds, clean: exit code 128 and its number, one line,
nothing left behind.
"""

import _thread
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backup_vm.terminal import interrupts
from tests.children import begun, signals_as_usual
from tests.kit import Site, fill
from tests.patience import AT_ONCE, PATIENCE

SPARSEBAK = Path(sys.executable).parent / "sparsebak"
SIZE = 48 << 20


@pytest.fixture
def big(tmp_path: Path) -> Site:
    """A site whose commands take long enough to be met in the middle."""
    site = Site(tmp_path / "site", sealed=False)
    fill(site.image(), SIZE)
    site.backup()
    return site


def environment(site: Site) -> dict[str, str]:
    return os.environ | {
        "SPARSEBAK_ARCHIVE": str(site.archive),
        "SPARSEBAK_AGENT": f"local:{site.config}",
    }


COMMANDS = {
    "assemble": ["assemble", "work/private", "-o", "out"],
    "export": ["export", "work/private", "-o", "out"],
    "restore": ["restore", "work/private", "--yes"],
    "copy": ["copy", "out"],
    "verify": ["verify"],
    "scrub": ["scrub"],
    "list": ["list"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_a_command_clean(big: Site, command: str) -> None:
    before, contents = {*os.listdir(big.root), *os.listdir(big.pool)}, big.contents()
    for number, delay in ((signal.SIGTERM, 0.2), (signal.SIGHUP, 0.05), (signal.SIGINT, 0.12)):
        process = subprocess.Popen(
            [SPARSEBAK, *COMMANDS[command]],
            env=environment(big),
            cwd=big.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=signals_as_usual,
        )
        begun(process)
        time.sleep(delay)
        for _ in range(2):  # a terminal that is closed sends more than one
            process.send_signal(number)
        start = time.monotonic()
        _, err = process.communicate(timeout=PATIENCE)
        assert time.monotonic() - start < AT_ONCE
        assert process.returncode in (0, 128 + number), (command, number, err)
        assert err in ("", f"{interrupts.MESSAGE}\n")
        left = {*os.listdir(big.root), *os.listdir(big.pool)} - before - {"out"}
        assert not left, (command, number)
        if command != "copy":
            (big.root / "out").unlink(missing_ok=True)
    assert big.contents() == contents


def test_a_signal_just_before_a_wait_ends_it() -> None:
    """Python notes it, and the main thread begins to read before it looks."""
    reading, writing = os.pipe()
    noting = threading.Timer(0.1, _thread.interrupt_main, [signal.SIGTERM])  # notes it, no more
    start = time.monotonic()
    with pytest.raises(interrupts.Stop), interrupts.handled(process=False):
        noting.start()
        os.read(reading, 1)
    assert time.monotonic() - start < AT_ONCE
    assert interrupts.exit_code() == 128 + signal.SIGTERM
    os.close(reading)
    os.close(writing)


def test_a_run_that_waits_for_a_silent_service_ends(site: Site, tmp_path: Path) -> None:
    """A socket that takes calls and never answers."""
    import socket

    folder = tmp_path / "sockets"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(folder / "sparsebak.List"))
        silent.listen()
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(
                [SPARSEBAK, "backup", "--agent", f"unix:{folder}"],
                env=environment(site),
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=signals_as_usual,
            )
            accepted, _ = silent.accept()
            with accepted:
                time.sleep(0.2)
                process.send_signal(number)
                start = time.monotonic()
                _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 128 + number and err == f"{interrupts.MESSAGE}\n"
            assert time.monotonic() - start < AT_ONCE


def test_a_terminal_that_is_closed(big: Site) -> None:
    """The kernel sends SIGHUP, and nothing can be shown any more."""
    import fcntl
    import termios

    def take_terminal() -> None:
        signals_as_usual()
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    for command in ("verify", "backup"):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [SPARSEBAK, command],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment(big),
            preexec_fn=take_terminal,
        )
        os.close(theirs)
        time.sleep(0.3)
        os.close(ours)
        assert process.wait(timeout=PATIENCE) in (0, 128 + signal.SIGHUP, -signal.SIGHUP)


def answered(site: Site, answer: bytes | signal.Signals, *words: object) -> tuple[int, str]:
    """Run a command on a terminal where somebody types an answer to its question, or sends a
    signal.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [SPARSEBAK, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(site),
        preexec_fn=signals_as_usual,
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
            if b"[y/N] " in shown and isinstance(answer, signal.Signals):
                process.send_signal(answer)
            elif b"[y/N] " in shown and answer:
                os.write(ours, answer)
            else:
                continue
            answer = b""
    except OSError:  # closed
        pass
    os.close(ours)
    return process.wait(timeout=PATIENCE), shown.decode()


def test_questions_on_a_terminal(tmp_path: Path) -> None:
    site = Site(tmp_path / "site", sealed=False)
    fill(site.image(), 1 << 20)
    site.backup()
    contents = site.contents()
    fill(site.image(), 1 << 20, 1)
    for words, asked in (
        (("delete", "work/private"), "Remove all of work/private, 1 session?"),
        (("prune", "work/private", "--session", "latest"), "Remove 1 session of work/private?"),
        (("restore", "work/private"), "Replace the present contents of work/private?"),
    ):
        for no in (b"n\n", b"\n", b"maybe\n", b"\x04"):
            code, shown = answered(site, no, *words)
            assert code == 1 and asked in shown and "nothing was changed" in shown, shown
    assert len(site.images()) == 1 and site.contents() != contents
    assert answered(site, signal.SIGINT, "delete", "work/private")[0] == 130
    assert answered(site, b"y\n", "restore", "work/private")[0] == 0
    assert site.contents() == contents
    # By rules or by name, where nobody is there to be asked, is what scripts do.
    assert answered(site, b"", "prune", "--keep-last", "1", "--min-age", "0d", "-u")[0] == 0
    assert answered(site, b"yes\n", "delete", "work/private")[0] == 0
    assert not site.images()


def test_a_copy_asks_before_it_removes(tmp_path: Path) -> None:
    site, copy = Site(tmp_path / "site", sealed=False), tmp_path / "copy"
    words = ("copy", str(copy), "--delete", "--min-age", "0d")
    fill(site.image(), 1 << 20)
    site.backup()
    assert answered(site, b"", *words)[0] == 0, "there is nothing to ask for"
    for folder in (site.archive, copy):
        fill(site.image(), 1 << 20, 1)
        site.backup(folder=folder)
    before = site.images(folder=copy)
    code, shown = answered(site, b"n\n", *words)
    assert code == 1 and "Remove 1 session that is not here from" in shown, shown
    assert site.images(folder=copy) == before != site.images()
    assert answered(site, signal.SIGINT, *words)[0] == 130
    assert answered(site, b"y\n", *words)[0] == 0
    assert site.images(folder=copy) == site.images()


IMPORTING = """
import os, sys
from {package} import cli

class Member:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), {number:d})
        for _ in range(1000):  # the handler runs between two of Python's instructions
            pass

def parser(words):
    class Enumeration:
        member = Member()
    raise AssertionError

cli.parser = parser
sys.argv[1:] = []
sys.exit(cli.main())
"""


@pytest.mark.parametrize("package", ["backup_vm", "dom0_agent.admin"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_module_is_imported(package: str, number: signal.Signals) -> None:
    """What a handler raises there may come out as an error of another kind."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING.format(package=package, number=number)],
        stderr=subprocess.PIPE, text=True, check=False, preexec_fn=signals_as_usual,
    )  # fmt: skip
    assert (done.returncode, "Traceback" in done.stderr) == (128 + number, False), done.stderr


BEGINNING = """
import os, signal, sys, threading
from backup_vm import cli

begin, handle = threading.Thread.start, signal.signal

def start(thread):
    begin(thread)
    os.kill(os.getpid(), {number:d})

def install(number, handler):
    before = handle(number, handler)
    if number == {number:d}:
        signal.signal = handle
        os.kill(os.getpid(), number)
    return before

{patch}
sys.argv[1:] = ["--version"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("patch", ["threading.Thread.start = start", "signal.signal = install"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_command_begins(patch: str, number: signal.Signals) -> None:
    """It comes while handlers are set up. Before they are, one that kills may do that."""
    done = subprocess.run(
        [sys.executable, "-c", BEGINNING.format(patch=patch, number=number)],
        capture_output=True, text=True, check=False,
        preexec_fn=signals_as_usual,
    )  # fmt: skip
    assert done.returncode in (128 + number, -signal.SIGTERM), done
    assert done.stderr in ("", f"{interrupts.MESSAGE}\n") and not done.stdout
