# SPDX-License-Identifier: GPL-2.0-or-later
"""qubesd cannot tell all of one qube: the others are backed up and followed, and that one is
reported as failed, never left out.
"""

from collections.abc import Callable

import pytest

from backup_vm.jobs.backup import BackupRun
from backup_vm.jobs.outcome import Report
from backup_vm.terminal.progress import Progress
from dom0_agent import notify
from dom0_agent.admin import cli
from dom0_agent.admin.catalog import write_down
from dom0_agent.admin.tags import TAG
from dom0_agent.config import load
from tests.qubes.kit import QubesSite
from tests.qubes.qubesd import Refusal

Break = Callable[[str], None]


@pytest.fixture
def stumbles(qubes: QubesSite, monkeypatch: pytest.MonkeyPatch) -> Break:
    """Lets one method fail for the qube work."""
    real = qubes.qubesd._call

    def start(broken: str) -> None:
        def call(method: str, argument: str, dest: str, payload: str) -> str:
            if dest == "work" and method.startswith(broken):
                raise Refusal("QubesException", "it stumbles")
            return real(method, argument, dest, payload)  # type: ignore[arg-type]

        monkeypatch.setattr(qubes.qubesd, "_call", call)

    return start


def backed_up(site: QubesSite) -> Report:
    write_down(load(site.config))
    with site.open(True) as archive:
        agent = site.agent(archive)
        try:
            return BackupRun(archive, agent, Progress()).run(agent.list())
        finally:
            agent.close()


@pytest.mark.parametrize("method", ["admin.vm.volume.Info", "admin.vm.property."])
@pytest.mark.parametrize("known", [True, False])
def test_it_is_told_as_failed(
    qubes: QubesSite,
    stumbles: Break,
    method: str,
    known: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if known:
        qubes.backup()
    stumbles(method)
    report = backed_up(qubes)
    assert {done.qube for done in report.done} == {"fedora", "vault"}
    failed = {name for name, _ in report.failed}
    assert failed == ({"work/private", "work/settings"} if known else {"work/private"})
    assert cli.main(["--config", str(qubes.config), "check"]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "sparsebak-agent: work: qubesd: it stumbles"


def test_what_means_nothing_here_is_told_as_failed(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZFS takes names with spaces."""
    qubes.backup()
    qubes.qubesd.pools["odd"] = {"driver": "zfs", "container": "my tank/vms"}
    qubes.qubesd.qubes["work"].volumes["private"].pool = "odd"
    report = backed_up(qubes)
    assert {name for name, _ in report.failed} == {"work/private", "work/settings"}
    for words in (["monitor"], ["status"]):
        assert cli.main(["--config", str(qubes.config), *words]) == 0
    capsys.readouterr()
    assert cli.main(["--config", str(qubes.config), "forget", "work/private", "--yes"]) == 1
    assert "work/private: " in capsys.readouterr().err


def test_one_that_went_meanwhile_is_no_failure(qubes: QubesSite, stumbles: Break) -> None:
    stumbles("admin.vm.volume.Info")
    real = qubes.qubesd._vm

    def listed(qube: object, verb: str, argument: str, payload: str) -> str:
        found = real(qube, verb, argument, payload)  # type: ignore[arg-type]
        if verb == "List" and "admin.vm.volume.Info" in qubes.qubesd.calls:
            return "".join(f"{line}\n" for line in found.splitlines() if line[:5] != "work ")
        return found

    qubes.qubesd._vm = listed  # type: ignore[method-assign]
    qubes.qubesd.calls.clear()
    report = backed_up(qubes)
    assert not report.failed and {done.qube for done in report.done} == {"fedora", "vault"}


def test_commands_of_dom0_go_on_without_its_tags(
    qubes: QubesSite,
    stumbles: Break,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(notify, "RUN", qubes.root)  # no desktop
    qubes.qubesd.qubes["work"].tags.add(TAG)
    stumbles("admin.vm.tag.")
    for words in (["monitor"], ["backup"]):
        capsys.readouterr()
        code = cli.main(["--config", str(qubes.config), *words])
        err = capsys.readouterr().err
        assert "work: its tags are not known: qubesd: it stumbles" in err
        assert code == 0 or "no backup VM is set up" in err  # none is, here


def test_setup_takes_no_tag_away_because_of_it(
    qubes: QubesSite, stumbles: Break, capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.qubesd.qubes["work"].tags.add(TAG)
    stumbles("admin.vm.volume.Info")
    assert cli.main(["--config", str(qubes.config), "setup", "backup-vm"]) == 0
    assert "work: qubesd: it stumbles; its tag was not changed" in capsys.readouterr().out
    assert TAG in qubes.qubesd.qubes["work"].tags and TAG in qubes.qubesd.qubes["vault"].tags
