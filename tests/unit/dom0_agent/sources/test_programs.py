# SPDX-License-Identifier: GPL-2.0-or-later
"""Running the programs of LVM and ZFS."""

import subprocess
import time
from collections.abc import Callable

import pytest

from dom0_agent.sources import programs
from wire.status import Code, Refused


def refused(action: Callable[[], object], code: Code = Code.SOURCE_FAILED) -> str:
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.code == code
    return str(caught.value)


def shell(script: str) -> Callable[[], str]:
    return lambda: programs.run("sh", "-c", script)


def test_commands_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not installed" in refused(lambda: programs.run("no-such-command"))
    assert "out of space" in refused(shell("echo out of space >&2; exit 5"), Code.NO_SPACE)
    assert "sh failed: 3" in refused(shell("exit 3"))
    monkeypatch.setattr(programs, "TIMEOUT", 0.1)
    assert "did not end" in refused(lambda: programs.run("sleep", "5"))


def test_a_command_that_fails_says_what_it_wrote_and_asks_nobody() -> None:
    """Also when that was warnings alone; and its questions are not answered by the caller's
    data.
    """
    assert "only this" in refused(shell("echo WARNING: only this >&2; exit 5"))
    assert shell("read line || echo nobody")() == "nobody\n"


def read(script: str) -> bytes:
    with programs.printed("x: reading", "sh", "-c", script) as stream:
        return stream.read()


def test_one_that_is_not_installed_is_refused_also_where_it_is_read() -> None:
    def begin() -> None:
        with programs.printed("x: reading", "no-such-command"):
            raise AssertionError

    assert refused(begin) == "no-such-command is not installed"


def test_what_is_printed_is_read_as_it_comes() -> None:
    started = time.monotonic()
    with (
        pytest.raises(KeyError),
        programs.printed("x: reading", "sh", "-c", "echo one; exec sleep 60") as stream,
    ):
        assert stream.readline() == b"one\n"
        raise KeyError
    assert time.monotonic() - started < 30, "it is not waited for"


def test_a_command_that_fails_after_it_printed_is_refused() -> None:
    assert refused(lambda: read("echo one; echo no >&2; exit 1")) == "x: reading failed: no"
    assert refused(lambda: read("echo one; exit 7")) == "x: reading failed: 7"


def test_what_makes_no_sense_is_refused_and_the_command_has_the_first_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream that is cut off makes no sense because the command failed, which says why."""

    def senseless(script: str) -> None:
        with programs.printed("x: reading", "sh", "-c", script) as stream:
            stream.readline()
            raise ValueError("it ends too early")

    assert refused(lambda: senseless("echo one")) == "x: reading failed: it ends too early"
    text = refused(lambda: senseless("echo no key >&2; echo one"))
    assert text == "x: reading failed: no key"
    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def noting(*words: object, **options: object) -> object:
        started.append(original(*words, **options))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", noting)
    refused(lambda: senseless("echo one; exec sleep 60"))
    assert started[0].returncode == -9, "it is not waited for"
    with (
        pytest.raises(KeyError),
        programs.printed("x", "sh", "-c", "exec sleep 60"),
    ):
        raise KeyError
    assert started[1].returncode == -9
