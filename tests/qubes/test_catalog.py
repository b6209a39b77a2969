# SPDX-License-Identifier: GPL-2.0-or-later
"""Which volumes there are on a Qubes machine, which are left out and why, and how much qubesd is
asked for it.
"""

import importlib
import importlib.util
import json
import time
from collections import Counter
from pathlib import Path

import pytest

from dom0_agent.admin import cli
from dom0_agent.admin.catalog import _keep, ask, write_down
from dom0_agent.admin.qubes_options import qubes_options
from dom0_agent.catalog import kept
from dom0_agent.config import Config, load
from tests.conftest import elsewhere
from tests.kit import Site
from tests.qubes.kit import QubesSite
from tests.qubes.qubesd import Qubesd

POOLS = {
    "vm-pool": {"driver": "lvm_thin", "volume_group": "qubes_dom0", "thin_pool": "vm-pool"},
    "files": {"driver": "file-reflink", "dir_path": "/var/lib/qubes"},
    "tank": {"driver": "zfs", "container": "tank/vms"},
    "strange": {"driver": "callback"},
}


def configured(folder: Path, options: str = "") -> Config:
    path = folder / "agent.toml"
    path.write_text(
        f'state_dir = "state"\ncatalog = "qubes"\n[qubes]\ndom0_config = []\n{options}\n'
    )
    return load(path)


@pytest.fixture
def machine(qubesd: Qubesd) -> Qubesd:
    qubesd.pools = dict(POOLS)
    for name, klass in (
        ("fedora", "TemplateVM"),
        ("work", "AppVM"),
        ("alone", "StandaloneVM"),
        ("disp1", "DispVM"),
        ("sd-backup", "AppVM"),
    ):
        qubesd.add(name, klass, "vm-pool")
    for qube in qubesd.qubes.values():
        for disk in qube.volumes.values():
            disk.vid = "qubes_dom0/vm-" + disk.vid.split("/", 1)[1].replace("/", "-")
    return qubesd


def test_what_is_backed_up_and_what_is_left_out(
    machine: Qubesd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.add("files", "AppVM", "files").state = "Running"
    machine.add("other", "AppVM", "tank").volumes["private"].vid = "tank/vms/other/private"
    machine.add("strange", "AppVM", "strange")
    machine.add("off", "AppVM", "vm-pool", include_in_backups=(False, "bool", "False"))
    catalog = ask(configured(tmp_path), "sd-backup")
    found = {volume.name: volume for volume in catalog.volumes()}
    assert [name for name in found if "settings" not in name] == [
        "alone/root", "alone/private", "fedora/root", "fedora/private", "files/private",
        "other/private", "work/private",
    ]  # fmt: skip
    assert found["work/private"].vid == "vm-work-private"
    assert found["work/private"].live == "vm-work-private-snap"  # the data, when there is one
    assert found["files/private"].pool.driver == "reflink"
    assert (found["files/private"].vid, found["files/private"].live) == (
        "appvms/files/private.img",
        "appvms/files/private-dirty.img",
    )
    reasons = {skipped.name: skipped.reason for skipped in catalog.skipped()}
    assert (found["other/private"].vid, found["other/private"].pool.path) == (
        "other/private",
        Path("/dev/zvol/tank/vms"),
    )
    assert reasons.keys() == {"disp1", "sd-backup", "strange/private", "off"}
    assert (
        "callback" in reasons["strange/private"]
        and "include_in_backups" in reasons["off"]
        and "backup VM" in reasons["sd-backup"]
    )
    assert cli.main(["--config", str(tmp_path / "agent.toml"), "volumes"]) == 0
    assert "left out: a disposable keeps nothing" in capsys.readouterr().out
    assert cli.main(["--config", str(tmp_path / "agent.toml"), "volumes", "--json"]) == 0
    # Nobody in particular asks: the backup VM is there too.
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 3


def test_lists_by_name_and_tag(machine: Qubesd, tmp_path: Path) -> None:
    for qube in machine.qubes.values():
        qube.properties["include_in_backups"] = (False, "bool", "False")
    machine.qubes["alone"].tags.add("precious")
    machine.qubes["work"].tags |= {"precious", "scratch"}
    config = configured(
        tmp_path,
        'include = ["@tag:precious", "sd-backup"]\nexclude = ["@tag:scratch"]\nsettings = false',
    )
    found = [volume.name for volume in ask(config, "sd-backup").volumes()]
    assert found == ["alone/root", "alone/private", "sd-backup/private"]


def test_running_qubes(machine: Qubesd, tmp_path: Path) -> None:
    machine.qubes["work"].state = "Running"
    found = ask(configured(tmp_path)).find("work", "private")
    assert found is not None and (found.vid, found.live) == (
        "vm-work-private",
        "vm-work-private-snap",
    )
    found = ask(configured(tmp_path, 'running = "committed"')).find("work", "private")
    assert found is not None and found.live == ""


def test_volumes_in_zfs_are_not_taken_from_another_time_or_place(
    machine: Qubesd, tmp_path: Path
) -> None:
    disk = machine.add("other", "AppVM", "tank").volumes["private"]
    for vid, options in (("tank/vms/o/p", 'running = "committed"'), ("tank/else/o/p", "")):
        disk.vid = vid
        catalog = ask(configured(tmp_path, options))
        (skipped,) = [one for one in catalog.skipped() if one.name == "other/private"]
        assert skipped.failed


def test_storage_that_is_not_supported_is_reported(
    machine: Qubesd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A qube that its user wants backed up, on a pool of drivers ``file`` or ``callback``."""
    machine.pools["old"] = {"driver": "file", "dir_path": "/var/lib/qubes"}
    machine.pools["hook"] = {"driver": "callback", "bdriver": "lvm_thin", "conf_id": "x"}
    machine.add("aged", "AppVM", "old")
    machine.add("hooked", "AppVM", "hook")
    words = ["--config", str(tmp_path / "agent.toml")]
    configured(tmp_path)
    assert cli.main([*words, "volumes"]) == 0
    listed = capsys.readouterr().out
    assert cli.main([*words, "check"]) == 1
    late = capsys.readouterr().err
    for name, driver in (("aged", "file"), ("hooked", "callback")):
        for text in (listed, late):
            assert f"has driver {driver}, which sparsebak cannot back up" in text
        assert f"{name}/private: " in late
    configured(tmp_path, 'exclude = ["aged", "hooked"]')
    assert cli.main([*words, "check"]) == 1  # nothing was backed up yet
    assert "aged" not in capsys.readouterr().err


def test_dom0s_own_choice_is_kept(machine: Qubesd, tmp_path: Path) -> None:
    """include_in_backups of dom0, as qvm-backup goes by it for dom0's home."""
    path = tmp_path / "agent.toml"
    machine.qubes["dom0"].properties["include_in_backups"] = (False, "bool", "False")

    def reason(options: str) -> list[str]:
        path.write_text(f'state_dir = "state"\ncatalog = "qubes"\n[qubes]\n{options}\n')
        return [one.reason for one in ask(load(path)).skipped() if one.name == "dom0/config"]

    assert reason("") == ["its property include_in_backups is off"]
    assert reason('include = ["dom0"]') == []
    assert reason('exclude = ["dom0"]') == ["it is in the list 'exclude'"]
    machine.qubes["dom0"].properties["include_in_backups"] = (True, "bool", "True")
    assert reason("") == []


def test_a_volume_without_snapshots(machine: Qubesd, tmp_path: Path) -> None:
    """Qubes OS 4.3 has them: a qube writes to the one volume that there is."""
    machine.qubes["work"].volumes["private"].revisions = -1
    found = ask(configured(tmp_path)).find("work", "private")
    assert found is not None and (found.vid, found.live) == (
        "vm-work-private",
        "vm-work-private-snap",  # never there, so that the other one is read
    )
    catalog = ask(configured(tmp_path, 'running = "committed"'))
    (left_out,) = [one for one in catalog.skipped() if one.name == "work/private"]
    assert left_out.failed and "running = 'live'" in left_out.reason


def test_domains_of_deduplication(machine: Qubesd, tmp_path: Path) -> None:
    machine.add("debian", "TemplateVM", "vm-pool")
    found = {volume.name: volume.dedup_domain for volume in ask(configured(tmp_path)).volumes()}
    assert found["debian/root"] == found["fedora/root"]
    templates = {"debian/root", "fedora/root"}
    others = [domain for name, domain in found.items() if name not in templates]
    assert "alone/root" in found
    assert len(set(others)) == len(others) and found["fedora/root"] not in others


def test_sixty_qubes_cost_few_calls_and_little_time(machine: Qubesd, tmp_path: Path) -> None:
    for number in range(60):
        machine.add(f"qube{number}", "AppVM", "vm-pool")
    config = configured(tmp_path)
    machine.calls.clear()
    start = time.process_time()
    assert len(ask(config).volumes()) > 65
    assert time.process_time() - start < 3.0  # the stand-in's own time included
    calls = Counter(machine.calls)
    assert (
        calls["admin.vm.List"] == 1
        and calls["admin.vm.property.GetAll"] <= 65
        and calls["admin.vm.volume.Info"] <= 70
    )
    assert sum(calls.values()) <= 140


def test_a_qube_that_is_not_there(machine: Qubesd, tmp_path: Path) -> None:
    catalog = ask(configured(tmp_path))
    assert catalog.find("nobody", "private") is None and catalog.find("work", "volatile") is None
    assert catalog.find("disp1", "private") is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('include = ["a b"]', "include"),
        ('running = "both"', "running"),
        ('typo = 1', "typo"),
        ('settings = 1', "settings"),
    ],
)  # fmt: skip
def test_configuration_that_cannot_be(tmp_path: Path, options: str, said: str) -> None:
    from dom0_agent.config import ConfigError

    with pytest.raises(ConfigError, match=said):
        qubes_options(configured(tmp_path, options))


def test_a_session_is_ended_without_asking_qubesd(qubes: QubesSite) -> None:
    """Extract and Commit go by what Snapshot found: a qube that goes away meanwhile is backed up
    all the same.
    """
    qubes.take_down()
    with qubes.open(True) as archive:
        agent = qubes.agent(archive)
        offer = agent.snapshot("work", "private", bytes(16), 0, 0)
        before = qubes.contents()
        del qubes.qubesd.qubes["work"]
        qubes.qubesd.calls.clear()
        with agent.extract("work", "private", offer.session, 0) as reply:
            assert sum(len(payload) for _, payload in reply.frames()) > len(before) // 40
        agent.commit("work", "private", offer.session)
        assert not qubes.qubesd.calls
        qubes.take_down()
        gone = {f"{entry.qube}/{entry.volume}": entry.flags for entry in agent.list()}
        assert gone["work/private"]


def test_calls_ask_qubesd_for_nothing_but_a_restore(qubes: QubesSite) -> None:
    """A whole backup goes by what was written down: a qube made since is not in it, and nobody is
    asked whether one runs.
    """
    qubes.take_down()
    qubes.start("work")
    qubes.add_qube("fresh")
    qubes.qubesd.calls.clear()
    report = Site.backup(qubes)
    assert not qubes.qubesd.calls and "fresh" not in {done.qube for done in report.done}
    assert list(qubes.images().values())[-1] == qubes.dirty().read_bytes()
    qubes.stop("work")
    Site.backup(qubes, "work/private")
    assert list(qubes.images().values())[-1] == qubes.image().read_bytes()
    qubes.qubesd.calls.clear()
    Site.restore(qubes)
    assert "admin.vm.volume.Info" in qubes.qubesd.calls
    assert "fresh" in {done.qube for done in qubes.backup().done}


def test_a_list_that_is_old_is_told_as_such(qubes: QubesSite) -> None:
    qubes.take_down()
    with qubes.open() as archive:
        agent = qubes.agent(archive)
        assert agent.list() and agent.list_age == 0
        kept_list = kept.read(load(qubes.config))
        old = kept_list._replace(asked=kept_list.asked - 4000)
        kept.place(load(qubes.config)).write_bytes(old.to_bytes())
        assert agent.list() and 4000 <= agent.list_age < 4100


def test_of_two_lists_the_one_asked_for_later_stays(qubes: QubesSite) -> None:
    config = load(qubes.config)
    write_down(config)
    first = kept.read(config)
    _keep(config, first._replace(asked=first.asked - 5))
    assert kept.read(config) == first
    kept.place(config).write_bytes(first._replace(asked=first.asked + 500).to_bytes())
    write_down(config)  # the clock was wrong, and is right again
    assert kept.read(config).asked <= time.time()


def test_the_machine_that_qubes_itself_tests_with(
    qubesd: Qubesd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MockQubesComplete of the real qubesadmin, which answers in its release's own words."""
    if importlib.util.find_spec("qubesadmin.tests") is None:
        elsewhere("the real qubesadmin is not here: make test-qubes QUBES=FOLDER")
    mock = importlib.import_module("qubesadmin.tests.mock_app").MockQubesComplete()
    group = b"0\0driver=lvm_thin\nvolume_group=qubes_dom0\nthin_pool=vm-pool\n"
    for call in (("admin.pool.Info", "vm-pool"), ("admin.pool.List", None)):
        mock.expected_calls["dom0", *call, None] = group if call[1] else b"0\0vm-pool\n"
    monkeypatch.setattr(importlib.import_module("qubesadmin"), "Qubes", lambda: mock)
    catalog = ask(configured(tmp_path))
    found = {volume.name: volume for volume in catalog.volumes()}
    reasons = {one.name: one.reason for one in catalog.skipped()}
    assert not [one for one in catalog.skipped() if one.failed or one.unsupported]
    for qube in mock.domains:
        if qube.klass == "DispVM":
            lasts = not getattr(qube, "auto_cleanup", False)
            assert lasts or reasons[qube.name] == "a disposable keeps nothing"
        elif qube.klass in ("AppVM", "StandaloneVM", "TemplateVM"):
            name = f"{qube.name}/private"
            if (
                "save_on_stop=True"
                not in mock.qubesd_call(qube.name, "admin.vm.volume.Info", "private")
                .decode()
                .splitlines()
            ):
                # 4.2's says so of every volume.
                assert reasons.get(qube.name) or "not kept" in reasons[name]
            elif not reasons.get(qube.name):
                assert found[name].vid == f"vm-{qube.name}-private"
                assert found[name].live == f"vm-{qube.name}-private-snap"
    assert len(found) + len(reasons) > 10
