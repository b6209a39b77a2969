# SPDX-License-Identifier: GPL-2.0-or-later
"""Places for calls that are processes of their own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dom0_agent.rpc.limits import EVERY, HEAVY, Limit, slot
from tests.attack.kit import Attacker
from tests.kit import Site, fill
from wire.messages import HEADER_SIZE, Status
from wire.status import Code, Refused

ROOT = Path(__file__).parents[4]


def test_of_a_caller_and_of_all(tmp_path: Path) -> None:
    limit = Limit(2, 3)

    def take(caller: str) -> object:
        held = slot(tmp_path / "calls", caller, "every", limit, patience=0.1)
        held.__enter__()
        return held

    held = [take("one"), take("one"), take("two")]
    for caller in ("one", "two", "three"):
        with pytest.raises(Refused, match="too many calls"):
            take(caller)
    held.pop().__exit__(None, None, None)  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        take("one")
    take("three")


def start(site: Site, called: str, caller: str) -> "subprocess.Popen[bytes]":
    environment = {
        "QREXEC_REMOTE_DOMAIN": caller,
        "QREXEC_SERVICE_ARGUMENT": "",
        "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
        "QREXEC_REQUESTED_TARGET_KEYWORD": "adminvm",
        "SPARSEBAK_AGENT_CONFIG": str(site.config),
        "PATH": os.environ["PATH"],
    }
    return subprocess.Popen(
        [sys.executable, "-I", str(ROOT / "dom0_agent/rpc"), called],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
    )  # fmt: skip


def test_calls_that_are_processes_have_places_too(tmp_path: Path) -> None:
    """A caller that has all its places is answered \"busy\"; another one is served, and the first
    again later.
    """
    site = Site(tmp_path / "site")
    fill(site.image(), 200_000)
    site.backup()
    attacker = Attacker(site)
    held = [slot(site.state / "calls", "backup-vm", "heavy", HEAVY) for _ in range(HEAVY.caller)]
    for one in held:
        one.__enter__()
    stream = attacker.request() + attacker.stream().to_bytes()
    started = time.monotonic()
    waiting = start(site, "Verify", "backup-vm")
    assert waiting.stdin is not None
    waiting.stdin.write(stream)
    waiting.stdin.flush()
    other = start(site, "List", "backup-vm")  # not of the heavy ones
    answer = other.communicate(attacker.request())[0]
    assert len(answer) > 50 and other.returncode == 0
    assert waiting.poll() is None
    held.pop().__exit__(None, None, None)
    answer = waiting.communicate()[0]
    assert Status.parse(answer[HEADER_SIZE:]).code == Code.OK and time.monotonic() - started < 15
    assert EVERY.caller > HEAVY.caller
