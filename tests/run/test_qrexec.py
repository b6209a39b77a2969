# SPDX-License-Identifier: GPL-2.0-or-later
"""The transport ``qrexec`` against a stand-in for qrexec-client-vm that gives the service qrexec's
environment.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.agent.transport import qrexec
from tests.kit import GRAIN, Site, fill

ROOT = Path(__file__).parent.parent.parent
CLIENT = """#!/bin/sh
# qrexec-client-vm TARGET SERVICE[+ARGUMENT]
case "$2" in *+*) argument=${2#*+} ;; *) argument= ;; esac
service=${2%%+*}
echo "$1 $2" >>"@LOG@"
[ ! -e "@REFUSE@" ] || exit "$(cat "@REFUSE@")"
if [ "$1" = @adminvm ]; then
    export QREXEC_REQUESTED_TARGET_TYPE=keyword QREXEC_REQUESTED_TARGET_KEYWORD=adminvm
else
    export QREXEC_REQUESTED_TARGET_TYPE=name QREXEC_REQUESTED_TARGET="$1"
fi
export QREXEC_REMOTE_DOMAIN=backup-vm QREXEC_SERVICE_ARGUMENT="$argument"
export SPARSEBAK_AGENT_CONFIG="@CONFIG@" SPARSEBAK_LIB="@TREE@" SPARSEBAK_PYTHON="@PYTHON@"
exec "@TREE@/qubes-rpc/$service" ${argument:+"$argument"} 2>/dev/null
"""


@pytest.fixture
def client(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    path, log = site.root / "client", site.root / "calls"
    words = {
        "LOG": log,
        "REFUSE": site.root / "refuse",
        "CONFIG": site.config,
        "TREE": ROOT,
        "PYTHON": sys.executable,
    }
    text = CLIENT
    for word, value in words.items():
        text = text.replace(f"@{word}@", str(value))
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setattr(qrexec, "CLIENT", str(path))
    monkeypatch.setenv("SPARSEBAK_AGENT", "qrexec")
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
    return log


def test_backup_and_restore_through_qrexec(
    site: Site, client: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(site.image(), 20 * GRAIN)
    before = site.image().read_bytes()
    assert cli.main(["backup"]) == 0
    fill(site.image(), 20 * GRAIN, seed=1)
    assert cli.main(["verify"]) == 0
    assert cli.main(["restore", "work/private"]) == 0
    assert site.image().read_bytes() == before
    capsys.readouterr()
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["volumes"][0]["qube"] == "work"
    calls = client.read_text().splitlines()
    assert "@adminvm sparsebak.List" in calls and "work sparsebak.Extract+private" in calls
    assert "@adminvm sparsebak.Verify" in calls and any(
        call.startswith("work sparsebak.Restore+work+private+2") for call in calls
    )


@pytest.mark.parametrize(
    ("code", "said"), [(126, "policy refused"), (127, "not installed"), (1, "without an answer")]
)
def test_a_call_that_qrexec_refuses_is_told(
    site: Site, client: Path, capsys: pytest.CaptureFixture[str], code: int, said: str
) -> None:
    (site.root / "refuse").write_text(str(code))
    assert cli.main(["backup"]) == 5
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (
        os.listdir(site.archive / "volumes") == [] if (site.archive / "volumes").exists() else True
    )
