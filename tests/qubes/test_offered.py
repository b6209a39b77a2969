# SPDX-License-Identifier: GPL-2.0-or-later
"""What Qubes offers a user: the service in a qube's settings, and the entries of dom0's menu."""

import os
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from tests.conftest import cannot
from tests.kit import Site

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "qubes-vm/post-install.d/50-sparsebak.sh"
CORE_AGENT = os.environ.get("COREAGENT", "")
"""A folder of core-agent-linux's sources: qvm-features-request is the real one then."""
ENTRIES = sorted((ROOT / "menu").glob("*.desktop"))
REQUEST = """#!{python}
import sys
for word in sys.argv[1:]:
    name, _, value = word.partition("=")
    open({kept!r}, "a").write("/features-request/" + name + "=" + value + "\\n")
"""
QUBESDB = """
class QubesDB:
    def write(self, path, value):
        open({kept!r}, "a").write(path + "=" + value + "\\n")
"""


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def test_the_backup_vms_template_offers_the_service(tmp_path: Path) -> None:
    """As qubes.PostInstall has it asked for, with qvm-features-request and QubesDB."""
    kept = str(tmp_path / "kept")
    if CORE_AGENT:
        (real,) = Path(CORE_AGENT).rglob("qvm-features-request")
        shutil.copy(real, tmp_path / "real")
        (tmp_path / "qubesdb.py").write_text(QUBESDB.format(kept=kept))
        run = f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} {tmp_path}/real "$@"\n'
        program(tmp_path / "qvm-features-request", run)
        program(tmp_path / "systemctl", "#!/bin/sh\n")  # qrexec's agent runs
    else:
        text = REQUEST.format(python=sys.executable, kept=kept)
        program(tmp_path / "qvm-features-request", text)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run([SCRIPT], env={**os.environ, "PATH": path}, check=True)
    assert done.returncode == 0
    assert Path(kept).read_text() == "/features-request/supported-service.sparsebak=1\n"
    unit = (ROOT / "systemd/vm/sparsebak-backup.service").read_text()
    assert "/run/qubes-service/sparsebak\n" in unit  # what the service makes in the qube


def test_elsewhere_it_asks_for_nothing(tmp_path: Path) -> None:
    subprocess.run(["/bin/sh", SCRIPT], env={"PATH": str(tmp_path)}, check=True)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda path: path.stem)
def test_an_entry_of_the_menu(entry: Path, tmp_path: Path, site: Site) -> None:
    """By the validator of freedesktop.org; and its command, as a menu runs it."""
    if shutil.which("desktop-file-validate") is None:
        cannot("desktop-file-validate is not installed")
    said = subprocess.run(
        ["desktop-file-validate", "--no-hints", entry], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0 and not said.stdout, said.stdout
    fields = ConfigParser(interpolation=None)
    fields.read(entry)
    words = shlex.split(fields["Desktop Entry"]["Exec"])  # quoted as in a shell
    assert not set("\\`$%") & set(fields["Desktop Entry"]["Exec"])
    program(tmp_path / "sudo", '#!/bin/sh\nexec "$@"\n')
    program(
        tmp_path / "sparsebak-agent",
        f"#!{sys.executable}\nimport sys\nfrom dom0_agent.admin.cli import main\n"
        f"sys.exit(main(['--config', {str(site.config)!r}, *sys.argv[1:]]))\n",
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        words,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    expected = {
        "sparsebak-backup": "only Qubes OS has",  # this is none, and it says so before it closes
        "sparsebak-open": "this needs Qubes OS",
        "sparsebak-report": "work/private: never backed up",
    }
    assert expected[entry.stem] in done.stdout, done.stdout
    assert "Traceback" not in done.stdout
