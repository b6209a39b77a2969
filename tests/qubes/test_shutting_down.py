# SPDX-License-Identifier: GPL-2.0-or-later
"""When dom0 shuts a backup VM down that it started: when nobody uses it any more."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pytest

from dom0_agent.admin.cli import backup as backup_command
from tests.conftest import cannot
from tests.qubes.kit import BACKUP_VM, QubesSite
from tests.qubes.test_setup import agent
from tests.system.guest.qrexec import from_vmexec

BIN = Path(sys.executable).parent


@pytest.mark.parametrize("state", ["Halted", "Running"])
def test_the_last_of_two_backups_shuts_the_backup_vm_down(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """ "Back up now" during the nightly one, for which it waits there."""
    agent(qubes, "setup", BACKUP_VM)
    keeper, codes, at_work, ended = qubes.qubesd.qubes[BACKUP_VM], [], Event(), Event()
    keeper.state = state
    second = Thread(target=lambda: codes.append(agent(qubes, "backup", "-q")))

    def run_service(self: object, service: str, **named: object) -> subprocess.Popen[bytes]:
        if not second.ident:
            second.start()
            assert at_work.wait(10)
        else:
            at_work.set()
            assert ended.wait(10)
        return subprocess.Popen(["true"])

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    assert agent(qubes, "backup", "-q") == 0 and keeper.state == "Running"
    ended.set()
    second.join()
    assert codes == [0] and keeper.state == state


@pytest.mark.parametrize("end", ["ends", "stays", "off", "again"])
def test_a_restore_by_hand_in_the_backup_vm_is_not_cut_off(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    """Begun while dom0's backup ran; by the backup VM's own command, in processes of its own."""
    if os.getuid() != 0:
        cannot("only root has namespaces of processes")
    agent(qubes, "setup", BACKUP_VM)
    keeper, waiting = qubes.qubesd.qubes[BACKUP_VM], list[str]()
    keeper.state = "Halted"
    # what a program is called is the kernel's to say: of a script by "ends", of any other else
    shutil.copy("/bin/sleep", tmp_path / "sparsebak")
    begin = f"{BIN}/sparsebak ui --no-open >/dev/null" if end == "ends" else "./sparsebak 60"
    hand = f"{begin} & hand=$!; while ! grep -q sparsebak /proc/$hand/comm; do sleep 0.1; done"
    later = "(sleep 0.7; kill $hand) &" if end in ("ends", "again") else ""

    def run_service(self: object, service: str, **named: object) -> subprocess.Popen[bytes]:
        program, *words = (from_vmexec(part) for part in service.partition("+")[2].split("+"))
        if "wait" not in words:
            return subprocess.Popen(["true"])
        waiting.append(words[-1])
        if words[-1] != "0":
            words[-1] = "1" if end == "stays" else words[-1]
            keeper.state = "Halted" if end == "off" else keeper.state
            if end == "again":  # another backup begins meanwhile, and is the last
                other.append(backup_command._joined(qubes.state / "backups", BACKUP_VM))
        if end == "off" and words[-1] != "0":
            return subprocess.Popen(["false"])
        script = f"{hand}; {later} {BIN}/{program} {' '.join(words)}; exit $?"
        return subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script], cwd=tmp_path
        )

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    other = list[int]()
    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    assert agent(qubes, "backup", "--quiet") == 0
    assert waiting == ["0", "43200"]
    assert keeper.state == ("Halted" if end in ("ends", "off") else "Running")
    for fd in other:
        os.close(fd)
