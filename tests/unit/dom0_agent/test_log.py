# SPDX-License-Identifier: GPL-2.0-or-later
"""Lines of dom0's log reach the journal's socket under one name, also from a service file."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dom0_agent.rpc import dispatch
from tests.conftest import cannot

ROOT = Path(__file__).parent.parent.parent.parent
TEXT = "work/private: \x1b[31mrefused"


def test_the_journal_is_handed_every_line(tmp_path: Path) -> None:
    """By the C library, whose socket is /dev/log: in a folder of its own there, as root may."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        cannot("another /dev needs root and unshare")
    device = tmp_path / "dev"
    device.mkdir()
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(device / "log"))
    receiver.settimeout(10)
    program = (
        "import sys; from dom0_agent.log import *; from dom0_agent.log import to_the_journal;"
        f" to_the_journal(); log(WARNING, {TEXT!r})"
    )
    command = ["unshare", "-m", "sh", "-c", 'mount --bind "$1" /dev && exec "$2" -c "$3"', "sh"]
    done = subprocess.run(
        [*command, device, sys.executable, program],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if "mount" in done.stderr:
        cannot(f"no mounts here: {done.stderr.strip()}")
    shown = r"work/private: \x1b[31mrefused"
    line = receiver.recv(4096).decode()
    daemon = 3
    assert re.fullmatch(rf"<{daemon * 8 + 4}>.*sparsebak-agent\[\d+\]: {re.escape(shown)}", line), (
        line
    )
    assert done.stderr == f"<4>sparsebak-agent: {shown}\n"


@pytest.mark.parametrize("own", [True, False])
def test_only_this_machines_agent_writes_there(
    own: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = list[bool]()
    monkeypatch.setattr(dispatch, "to_the_journal", lambda: asked.append(True))
    monkeypatch.setattr(dispatch, "confine", lambda: None)
    monkeypatch.setattr(dispatch, "answer", lambda *_: 0)
    config = tmp_path / "agent.toml"
    if own:
        monkeypatch.setattr(dispatch, "DEFAULT_PATH", config)
    monkeypatch.setenv("SPARSEBAK_AGENT_CONFIG", str(config))
    assert dispatch.main(["List"]) == 0 and bool(asked) == own
