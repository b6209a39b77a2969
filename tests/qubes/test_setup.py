# SPDX-License-Identifier: GPL-2.0-or-later
"""Setting a machine up, making backups from dom0's timer, and noticing that one is late."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from backup_vm.errors import Exit
from dom0_agent import notify
from dom0_agent.admin import catalog, cli, policy
from dom0_agent.admin.cli import backup as backup_command
from dom0_agent.admin.cli import setup as setup_command
from dom0_agent.admin.tags import VM_TAG
from tests.qubes.kit import BACKUP_VM, QubesSite
from tests.qubes.qubesd import Qube, Qubesd, Refusal
from tests.system.guest.qrexec import from_vmexec


def agent(site: QubesSite, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def test_setup_tags_and_does_nothing_twice(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.qubesd.qubes["vault"].tags.add("sparsebak-vm")  # an earlier backup VM
    assert agent(qubes, "setup", BACKUP_VM, "--dry-run") == 0
    assert not any("sparsebak" in qube.tags for qube in qubes.qubesd.qubes.values())
    assert agent(qubes, "setup", BACKUP_VM) == 0
    tagged = {name: qube.tags for name, qube in qubes.qubesd.qubes.items() if qube.tags}
    assert tagged == {
        "fedora": {"sparsebak"},
        "work": {"sparsebak"},
        "vault": {"sparsebak"},
        BACKUP_VM: {"sparsebak-vm"},
    }
    qubes.qubesd.qubes["vault"].properties["include_in_backups"] = (False, "bool", "False")
    capsys.readouterr()
    assert agent(qubes, "setup", BACKUP_VM) == 0
    assert "remove tag sparsebak from vault" in capsys.readouterr().out
    assert agent(qubes, "setup", BACKUP_VM) == 0
    assert "Nothing to do" in capsys.readouterr().out


def test_setup_says_that_the_old_policy_decides_first(
    qubes: QubesSite,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = tmp_path / "30-sparsebak.policy"
    monkeypatch.setattr(policy, "FOLDER", tmp_path)
    assert agent(qubes, "setup", BACKUP_VM) == 0
    assert str(old) not in capsys.readouterr().out
    old.touch()
    assert agent(qubes, "setup", BACKUP_VM) == 0
    assert f"{old} is of an older sparsebak" in capsys.readouterr().out


def test_setup_gives_qubes_4_2_the_rules_that_it_needs(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    release, rules = tmp_path / "qubes-release", tmp_path / policy.OF_4_2
    monkeypatch.setattr(policy, "FOLDER", tmp_path)
    monkeypatch.setattr(policy, "RELEASE", release)
    for text, there in (
        ("Qubes release 4.3 (R4.3)", False),
        ("Qubes release 4.2.4 (R4.2)", True),
        ("Qubes release 4.3.0 (R4.3)", False),  # upgraded in place
    ):
        release.write_text(text + "\n")
        assert agent(qubes, "setup", BACKUP_VM, "--dry-run") == 0
        assert agent(qubes, "setup", BACKUP_VM) == 0
        assert rules.exists() == there
        assert not policy.out_of_date()


def test_setup_says_which_archives_are_for_another_backup_vm(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it says to do lets the new one have them."""
    qubes.add_qube("keeper")
    assert agent(qubes, "setup", "keeper") == 0
    (line,) = [one for one in capsys.readouterr().out.splitlines() if "is for" in one]
    program, *words = line.rpartition(": ")[2].split()
    assert program == "sparsebak-agent" and agent(qubes, *words) == 0
    capsys.readouterr()
    assert agent(qubes, "setup", "keeper") == 0
    assert "is for" not in capsys.readouterr().out


def test_setup_writes_a_configuration_and_refuses_what_is_no_qube(
    qubesd: Qubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is put elsewhere: what a test leaves on the machine, the next one would find."""
    elsewhere = setup_command._CONFIG.replace("/var/lib/sparsebak", str(tmp_path / "state"))
    monkeypatch.setattr(setup_command, "_CONFIG", elsewhere)
    qubesd.pools["p"] = {"driver": "file-reflink", "dir_path": "/x"}
    qubesd.add("keeper", "AppVM", "p")
    qubesd.add("disp1", "DispVM", "p")
    qubesd.add("fedora", "TemplateVM", "p")
    config = tmp_path / "etc/agent.toml"
    for name in ("nobody", "dom0", "../x", "disp1", "fedora"):
        assert cli.main(["--config", str(config), "setup", name]) == 1
        assert not config.exists()
    assert cli.main(["--config", str(config), "setup", "keeper"]) == 0
    from dom0_agent.config import load

    assert load(config).catalog == "qubes"
    assert (tmp_path / "state/catalog.json").exists()


def test_a_clone_of_the_backup_vm_is_not_asked(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the tags of what it was cloned from."""
    agent(qubes, "setup", BACKUP_VM)
    qubes.add_qube("copy")
    qubes.qubesd.qubes["copy"].tags |= qubes.qubesd.qubes[BACKUP_VM].tags
    capsys.readouterr()
    assert agent(qubes, "backup") == 1
    assert f"{BACKUP_VM} and copy are all tagged as the backup VM" in capsys.readouterr().err
    assert agent(qubes, "setup", BACKUP_VM) == 0
    assert VM_TAG not in qubes.qubesd.qubes["copy"].tags


@pytest.mark.parametrize(
    ("state", "code"), [("Halted", 0), ("Running", 0), ("Halted", 3), ("Running", Exit.NOT_NOW)]
)
def test_a_backup_from_dom0(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, state: str, code: int
) -> None:
    agent(qubes, "setup", BACKUP_VM)
    keeper, seen, told = qubes.qubesd.qubes[BACKUP_VM], [], []
    keeper.state = state

    def run_service(self: object, service: str, **named: object) -> subprocess.Popen[bytes]:
        seen.append((service, named["user"], keeper.state))
        return subprocess.Popen(["sh", "-c", f"exit {code}"])

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    monkeypatch.setattr(backup_command, "notify", lambda *words, **named: told.append(words))
    assert agent(qubes, "backup", "--quiet") == (code if code in (0, Exit.NOT_NOW) else 1)
    asked = [backup_command.SERVICE] + [f"{backup_command.QUIET}0"] * (state == "Halted")
    assert seen == [(service, "user", "Running") for service in asked]
    assert keeper.state == state and bool(told) == bool(code)
    titles = {0: [], Exit.NOT_NOW: ["Backup put off"], 3: ["Backup failed"]}
    assert [title for title, _ in told] == titles[code]


@pytest.mark.parametrize("waited", [Exit.OK, Exit.LOCKED])
def test_a_backup_from_dom0_waits_for_the_nightly_check(
    qubes: QubesSite,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    waited: Exit,
) -> None:
    """What it asks for then is understood by the backup VM's own command line."""
    from backup_vm.cli import parser

    agent(qubes, "setup", BACKUP_VM)
    codes, told, given = [Exit.LOCKED, waited], list[tuple[str, ...]](), list[int]()

    def run_service(self: object, service: str, **named: object) -> subprocess.Popen[bytes]:
        words = [from_vmexec(part) for part in service.partition("+")[2].split("+")][1:]
        options = parser(words).parse_args(words)
        if options.command == "wait":
            return subprocess.Popen(["true"])
        given.append(options.lock_wait)
        return subprocess.Popen(["sh", "-c", f"exit {codes.pop(0)}"])

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(qubesadmin.vm.QubesVM, "run_service", run_service, raising=False)
    monkeypatch.setattr(backup_command, "notify", lambda *words, **named: told.append(words))
    assert agent(qubes, "backup") == (1 if waited else 0)
    said = capsys.readouterr()
    assert given == [0, 12 * 3600] and "waits for it to end, 12 hours at most" in said.out
    assert [title for title, _ in told] == (["Backup failed"] if waited else [])
    assert ("still has the archive" in said.err) == bool(waited)
    codes[:] = [Exit.LOCKED]
    assert agent(qubes, "backup", "--lock-wait", "0") == 1 and given[2:] == [0]
    with pytest.raises(SystemExit):
        agent(qubes, "backup", "--lock-wait", "1+x")


@pytest.mark.parametrize(("broken", "result"), [("Start", 1), ("Shutdown", 0), ("List", 1)])
def test_a_backup_that_is_not_made_is_told_on_the_desktop(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, broken: str, result: int
) -> None:
    """It is a timer's, every night. A backup VM that does not shut down is no failed backup."""
    from dom0_agent.admin.cli import check

    agent(qubes, "setup", BACKUP_VM)
    real, told = qubes.qubesd._vm, list[tuple[str, ...]]()

    def stumble(qube: Qube, verb: str, argument: str, payload: str) -> str:
        if verb == broken:
            raise Refusal("QubesException", "not enough memory")
        return real(qube, verb, argument, payload)

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(
        qubesadmin.vm.QubesVM,
        "run_service",
        lambda *_, **__: subprocess.Popen(["true"]),
        raising=False,
    )
    monkeypatch.setattr(qubes.qubesd, "_vm", stumble)
    for module in (backup_command, check):
        monkeypatch.setattr(module, "notify", lambda *words, **named: told.append(words))
    assert agent(qubes, "backup", "--quiet") == result
    assert len(told) == result and all("not enough memory" in text for _, text in told)
    if broken == "List":
        assert agent(qubes, "check", "--notify") == 1 and len(told) == 2


def test_a_backup_that_was_made_is_not_told_as_failed(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a terminal that is gone nothing can be said; the backup VM is shut down all the same."""
    agent(qubes, "setup", BACKUP_VM)
    qubes.qubesd.qubes[BACKUP_VM].state, told = "Halted", list[tuple[str, ...]]()
    read, write = os.pipe()
    os.close(read)

    import qubesadmin.vm  # type: ignore[import-not-found,unused-ignore]

    monkeypatch.setattr(
        qubesadmin.vm.QubesVM,
        "run_service",
        lambda *_, **__: subprocess.Popen(["true"]),
        raising=False,
    )
    monkeypatch.setattr(backup_command, "notify", lambda *words, **named: told.append(words))
    with open(write, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert agent(qubes, "backup") == 128 + signal.SIGPIPE
    assert not told and qubes.qubesd.qubes[BACKUP_VM].state == "Halted"


def test_a_late_backup_is_noticed(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dom0_agent.admin.cli import check

    told: list[tuple[str, ...]] = []
    monkeypatch.setattr(check, "notify", lambda *words, **named: told.append(words))
    qubes.backup("work/private")
    assert agent(qubes, "check", "--days", "3", "--notify") == 1
    late = capsys.readouterr().err
    assert (
        "vault/private: never backed up" in late and "work/private" not in late and len(told) == 1
    )
    qubes.backup()
    assert agent(qubes, "check") == 0  # the backup VM's own volumes do not count
    assert agent(qubes, "check", "--caller", BACKUP_VM) == 0


def test_a_notification_never_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(notify, "RUN", tmp_path)
    assert not notify.notify("title", "text")
    (tmp_path / "0").mkdir()
    (tmp_path / "0/bus").touch()
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody/bus").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not notify.notify("title", "text")


def test_a_qube_made_since_setup_is_picked_up(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agent(qubes, "setup", BACKUP_VM) == 0
    qubes.backup()
    qubes.add_qube("fresh")
    qubes.add_qube("private-one")
    qubes.qubesd.qubes["private-one"].properties["include_in_backups"] = (False, "bool", "False")
    qubes.qubesd.qubes["work"].tags.clear()  # taken by hand of one that has sessions: meant
    capsys.readouterr()
    assert agent(qubes, "check") == 1
    error = capsys.readouterr().err
    assert "fresh: new since setup" in error and f"sparsebak-agent setup {BACKUP_VM}" in error
    assert agent(qubes, "monitor", "--json") == 0
    assert json.loads(capsys.readouterr().out)["new"] == ["fresh"]
    tags = {name: qube.tags for name, qube in qubes.qubesd.qubes.items()}
    assert tags["fresh"] == {"sparsebak"} and not tags["private-one"] and not tags["work"]
    assert tags[BACKUP_VM] == {"sparsebak-vm"}


def test_a_full_disk_does_not_keep_the_monitor_from_making_room(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.backup()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(catalog, "replace", full)
    capsys.readouterr()
    assert agent(qubes, "monitor") == 1  # all followed, but a new qube cannot be backed up
    said = capsys.readouterr()
    assert "volumes followed" in said.out
    assert "catalog.json cannot be written: No space left on device" in said.err
    assert agent(qubes, "volumes") == 1  # that is what it is for


def test_a_backup_from_an_old_list_is_made_and_fails(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # not capsys: the real qubesadmin asks for the number of standard error
    agent(qubes, "setup", BACKUP_VM)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    made: list[object] = []
    monkeypatch.setattr(backup_command, "_backup", lambda *_: made.append(1) or 0)
    assert agent(qubes, "backup") == 0
    monkeypatch.setattr(catalog, "replace", full)
    assert agent(qubes, "backup") == 1 and len(made) == 2
    assert "catalog.json cannot be written" in capfd.readouterr().err


def test_a_new_qube_is_left_alone_where_that_is_wanted(qubes: QubesSite) -> None:
    qubes.config.write_text(qubes.config.read_text() + "tag_new = false\n")
    assert agent(qubes, "setup", BACKUP_VM) == 0
    qubes.add_qube("fresh")
    assert agent(qubes, "monitor") == 0 and not qubes.qubesd.qubes["fresh"].tags
