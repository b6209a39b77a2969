# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent open``: a disposable is made, reads from the backup VM by policy and service,
and mounts what it reads, by FUSE and the kernel.
"""

import io
import subprocess
import sys
import time

import pytest

from dom0_agent.admin import opening
from tests.patience import PATIENCE
from tests.qubes.kit import BACKUP_VM
from tests.qubes.opening_kit import CONTENTS, TEMPLATE, Opened, ext4
from tests.qubes.qubesd import Refusal


class Terminal(io.StringIO):
    """A terminal, as far as the command looks; what is typed comes from ``input``."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def site(opened: Opened) -> Opened:
    return opened


def test_a_session_is_shown_in_a_disposable(
    site: Opened, capfd: pytest.CaptureFixture[str]
) -> None:
    ext4(site.site.image(), CONTENTS)
    site.site.backup()
    (session,) = site.site.images()
    capfd.readouterr()
    assert site.agent("open", "work", "--yes") == 0
    said = capfd.readouterr().out
    (name,) = site.disposables()
    assert name in said and session in said and "work/private" in said
    made = site.qubesd.qubes[name]
    assert made.properties["netvm"] == (False, "vm", "")
    assert made.properties["default_dispvm"] == (False, "vm", "")
    assert "sparsebak-reader" in made.tags and made.properties["template"][2]
    root = site.qubesd.root(name)
    there = root / "mnt/sparsebak" / session
    found = {str(p.relative_to(there)): p.read_bytes() for p in there.rglob("*") if p.is_file()}
    assert found == CONTENTS
    mounts = [line.split() for line in (root / "proc/1/mounts").read_text().splitlines()]
    options = {place: set(what.split(",")) for _, place, _, what, *_ in mounts}
    assert {"ro", "nosuid", "nodev", "noexec"} <= options[f"/mnt/sparsebak/{session}"]
    assert "ro" in options["/run/sparsebak/images"]
    with pytest.raises(OSError, match="Read-only"):
        (there / "new").write_bytes(b"")
    assert (root / "run/sparsebak/images").stat().st_mode & 0o777 == 0o555
    end = time.monotonic() + PATIENCE
    while not site.shown.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert site.shown.read_text() == "/mnt/sparsebak\n"
    calls = [line.split() for line in site.log.read_text().splitlines()]
    assert ["dom0", name, "root", "sparsebak.Open", BACKUP_VM] in calls
    assert not [call for call in calls if call[0] == "deny"]
    # nothing of it is left when the disposable goes
    loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
    assert f"{session}.img" in loops
    site.qubesd._vm(made, "Shutdown", "", "")
    assert name not in site.qubesd.qubes
    end = time.monotonic() + PATIENCE
    while f"{session}.img" in loops:
        assert time.monotonic() < end
        time.sleep(0.05)
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout


def test_partitions_of_a_root_volume_are_mounted_each(site: Opened) -> None:
    image, inner = site.site.image("fedora/root"), site.site.root / "inner"
    ext4(inner, CONTENTS, 4 << 20)
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    table = "label: gpt\nstart=2048, size=2048\nstart=8192, size=8192\n"
    subprocess.run(["sfdisk", "-q", image], input=table, text=True, check=True)
    with open(image, "r+b") as file:
        file.seek(8192 * 512)
        file.write(inner.read_bytes())
    site.site.backup()
    assert site.agent("open", "fedora/root", "--yes", "-q") == 0
    (name,) = site.disposables()
    (session,) = site.site.images("fedora/root")
    (there,) = (site.qubesd.root(name) / "mnt/sparsebak").iterdir()
    assert there.name == f"{session}-p2"
    assert (there / "home/user/letter.odt").read_bytes() == CONTENTS["home/user/letter.odt"]


def fails(site: Opened, capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """A command that fails, of which one line is left and no disposable."""
    capfd.readouterr()
    assert site.agent("open", *words) == 1
    error = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("<")]
    assert len(error) == 1 and not site.disposables() and not site.qubesd.running, error
    return error[0]


def test_what_can_be_wrong(
    site: Opened, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.site.backup()
    image = site.site.image()
    assert "no file system in it could be mounted" in fails(site, capfd, "work", "--yes")
    ext4(image, CONTENTS)
    site.site.backup()
    known = ("work", "--records", site.records())
    assert "'19990101' is no session" in fails(site, capfd, *known, "--yes", "--session=19990101")
    assert "needs --yes" in fails(site, capfd, *known, "-u")
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert "nothing was changed" in fails(site, capfd, *known)
    monkeypatch.setattr("builtins.input", lambda question: "yes")
    site.set(folders=[])
    assert "sparsebak-vm" in fails(site, capfd, *known, "--yes")
    site.set(program="/bin/false")
    assert "did not say how it went (exit code 1)" in fails(site, capfd, *known, "--yes")
    stuck = site.site.root / "stuck"
    with monkeypatch.context() as patch:
        patch.setattr(opening, "PATIENCE", 0.3)
        for script in ("exec sleep 60", "head -c 1000000 /dev/zero"):
            stuck.write_text(f"#!/bin/sh\n{script}\n")
            stuck.chmod(0o755)
            site.set(program=str(stuck))
            assert "did not say how it went" in fails(site, capfd, *known, "--yes")
    site.set()
    with monkeypatch.context() as patch:
        gone: list[str] = []

        def boot(name: str) -> None:
            if not gone:  # as qubesd does, mostly
                del site.qubesd.qubes[name]
            gone.append(name)
            raise Refusal("QubesVMError", "not enough memory")

        patch.setattr(site.qubesd, "_boot", boot)
        for times in (1, 2):
            assert "not enough memory" in fails(site, capfd, *known, "--yes")
            assert len(gone) == times
    assert "no qube other-dvm" in fails(site, capfd, *known, "--yes", "--template", "other-dvm")
    assert "Refusing" in fails(site, capfd, *known, "--yes", "--template", "vault")
    site.qubesd.default_dispvm = ""
    assert "qubes-prefs default_dispvm" in fails(site, capfd, *known, "--yes")
    site.qubesd.default_dispvm = TEMPLATE
    site.qubesd.qubes[BACKUP_VM].tags.discard("sparsebak-vm")
    assert "policy refuses" in fails(site, capfd, *known, "--yes")
    site.qubesd.qubes[BACKUP_VM].tags.add("sparsebak-vm")
    site.qubesd.qubes[BACKUP_VM].state = "Halted"
    assert "is not running" in fails(site, capfd, *known, "--yes")
    assert site.qubesd.qubes[BACKUP_VM].state == "Halted"


def test_it_asks_which_volume(
    site: Opened, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.site.backup()
    monkeypatch.setattr(sys, "stdin", Terminal())
    answers = iter(["3", "n", "", "9"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    capfd.readouterr()
    assert site.agent("open") == 1
    listed = [line.split() for line in capfd.readouterr().out.splitlines()]
    names = [words[1] for words in listed if len(words) == 2]
    assert names == sorted(names) and {"fedora/root", "work/private"} <= {*names}
    assert not [name for name in names if "settings" in name or "config" in name]
    assert "nothing was opened" in fails(site, capfd)
    assert "9" in fails(site, capfd)
