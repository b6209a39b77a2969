# SPDX-License-Identifier: GPL-2.0-or-later
"""Terminal escapes and marks that turn the direction of writing, in every name that somebody else
chose.
"""

import hashlib
import shutil
from pathlib import Path

import pytest

from backup_vm import cli
from backup_vm.agent.client import Agent
from backup_vm.errors import AgentError
from tests.attack.kit import Attacker
from tests.in_process import InProcess
from tests.kit import PASSPHRASE
from wire.messages import VolumeEntry

EVIL = "x\x1b[31m\u202e\u2066\x07\x9b"
COMMANDS = [
    ["list"],
    ["list", EVIL],
    ["status"],
    ["verify", "--session", "all"],
    ["scrub"],
    ["prune", "work", "--keep-last", "1", "--dry-run"],
    ["assemble", "work/private", "--session", EVIL, "-o", "image"],
    ["restore", "work/private", "--session", EVIL],
    ["backup"],
    ["backup", EVIL],
    ["scrub"],
    ["--archive", EVIL, "list"],
]


def plant(root: Path) -> None:
    """Files with such names wherever the archive has files, damaged and sound."""
    session, pack = next(root.rglob("*.session")), next(root.rglob("*.pack"))
    for original in (session, pack):
        folder = original.parent.with_name(EVIL)
        folder.mkdir()
        shutil.copy(original, folder / (EVIL + original.suffix))
        shutil.copy(original, original.with_name(EVIL + original.suffix))
        (folder / ("damaged" + EVIL + original.suffix)).write_bytes(b"damaged")
        original.with_name(EVIL + ".partial").write_bytes(b"damaged")


def test_no_command_prints_what_a_terminal_obeys(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = attacker.site
    plant(site.archive)
    (site.root / "pw").write_bytes(PASSPHRASE)
    monkeypatch.chdir(site.root)
    monkeypatch.setenv("SPARSEBAK_ARCHIVE", str(site.archive))
    for agent in (f"local:{site.config}", f"local:{EVIL}"):
        monkeypatch.setenv("SPARSEBAK_AGENT", agent)
        for words in COMMANDS:
            cli.main(["-v", *words])
    printed = capsys.readouterr()
    for letter in EVIL[1:]:
        assert letter.isprintable() or letter not in printed.out + printed.err
    assert "damaged" in printed.err


def test_a_label_with_escapes_is_no_label(
    attacker: Attacker, capsys: pytest.CaptureFixture[str]
) -> None:
    path = attacker.site.archive / "archive.toml"
    body = path.read_text().split("checksum = ")[0].replace('"tests"', '"te\\u001b[31m\\u202ests"')
    path.write_text(
        f'{body}checksum = "{hashlib.blake2b(body.encode(), digest_size=16).hexdigest()}"\n'
    )
    assert cli.main(["--archive", str(path.parent), "status"]) == 4
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "\x1b" not in printed and "\u202e" not in printed


@pytest.mark.parametrize("qube", ["\x1b[31m", "-rf", "../..", ""])
def test_names_from_the_agent_are_checked_too(
    attacker: Attacker, monkeypatch: pytest.MonkeyPatch, qube: str
) -> None:
    entry = VolumeEntry(qube, "private", bytes(16), 1, 1, bytes(16), 0, 0)
    monkeypatch.setattr("dom0_agent.rpc.services.list.entries", lambda *_: [entry])
    agent = Agent(InProcess(attacker.site.config))
    agent.use(attacker.archive_id(), 64 << 10)
    with pytest.raises(AgentError, match="List: "):
        agent.list()


def test_packs_planted_by_the_disk_are_no_harm(attacker: Attacker) -> None:
    plant(attacker.site.archive)
    site = attacker.site
    site.scrubbed()
    assert len(site.images()) == 3
