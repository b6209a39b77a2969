# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings and dom0's configuration: taken down, brought back, shown, and applied only as far as
was asked for.
"""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.jobs.backup import BackupRun
from backup_vm.terminal.progress import Progress
from dom0_agent.admin import cli, qubes_catalog
from dom0_agent.admin.settings.document import QubeSettings, collect, from_bytes
from dom0_agent.admin.settings.plan import plan
from dom0_agent.catalog import open_catalog
from dom0_agent.config import load
from dom0_agent.qubesd import connect
from dom0_agent.targets.dropbox import CONFIG_LIMIT, LIMIT, Dropped, place, waiting
from dom0_agent.targets.qubesd import TAG
from tests.qubes.kit import BACKUP_VM, QubesSite
from tests.qubes.qubesd import Qubesd, Refusal
from wire.status import Refused

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
NAME = st.from_regex(r"[a-z][a-z0-9_-]{0,10}", fullmatch=True)


@given(
    st.builds(
        QubeSettings,
        qube=NAME,
        klass=NAME,
        label=NAME,
        template=st.none() | NAME,
        netvm=st.none() | NAME,
        properties=st.dictionaries(
            NAME, st.none() | st.booleans() | st.integers() | TEXT, max_size=4
        ),
        features=st.dictionaries(NAME, TEXT, max_size=4),
        tags=st.lists(NAME, max_size=4),
        firewall=st.lists(TEXT, max_size=3),
        devices=st.dictionaries(NAME, st.lists(TEXT, max_size=3), max_size=2),
        notes=TEXT,
    )
)
def test_a_document_comes_back(settings: QubeSettings) -> None:
    assert from_bytes(settings.to_bytes()) == settings


DOCUMENT = QubeSettings("work", "AppVM", "red", None, None).to_bytes()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"[]", b"{}", b'{"format": 2}', b"\xff", b"1", b"[" * 200_000,
        DOCUMENT.replace(b'"work"', b'"../work"'),
        DOCUMENT.replace(b'"tags": []', b'"tags": [3]'),
        DOCUMENT.replace(b'"notes": ""', b'"notes": null'),
        DOCUMENT.replace(b'"red"', b'"red", "more": 1'),
    ],
)  # fmt: skip
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused):
        from_bytes(raw)


def test_nothing_changed_means_the_same_bytes(qubesd: Qubesd) -> None:
    qubesd.pools["p"] = {"driver": "file-reflink", "dir_path": "/x"}
    work, device = qubesd.add("work", "AppVM", "p"), qubesd.a_device()
    work.devices["pci"] = device
    first = collect("work")
    assert collect("work") == first
    settings = from_bytes(first)
    assert settings.template == "fedora" and settings.devices == {"pci": [device.strip()]}
    assert settings.firewall == ["action=accept"] and "memory" not in settings.properties


def test_a_qube_taken_down_while_it_is_restored_can_be_started_later(qubesd: Qubesd) -> None:
    qubesd.pools["p"] = {"driver": "file-reflink", "dir_path": "/x"}
    work = qubesd.add("work", "AppVM", "p")
    work.tags |= {"precious", TAG}
    settings = from_bytes(collect("work"))
    assert settings.tags == ["precious"]
    work.tags.clear()
    app, made_before = connect(), replace(settings, tags=["precious", TAG])
    steps = plan(app, app.domains["work"], made_before, fresh=False)
    assert [step.new for step in steps if step.group == "tags"] == ["precious"]


def agent(site: QubesSite, *words: str) -> int:
    return cli.main(["--config", str(site.config), *words])


def test_settings_of_a_qube_that_exists_wait_to_be_applied(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    work = qubes.qubesd.qubes["work"]
    work.properties |= {"memory": (False, "int", "777"), "kernelopts": (False, "str", "debug")}
    work.features["service.cups"] = "1"
    work.devices["pci"] = qubes.qubesd.a_device()
    work.firewall = "action=drop\n"
    work.tags.add("precious")
    qubes.backup()
    work.properties |= {
        "memory": (False, "int", "400"),
        "kernelopts": (True, "str", ""),
        "netvm": (False, "vm", "vault"),
    }
    work.features.clear()
    work.devices.clear()
    work.firewall = "action=accept\n"
    work.tags.clear()
    assert agent(qubes, "settings", "show", "work") == 1  # nothing was restored yet
    qubes.restore(name="work/settings")
    assert work.properties["memory"][2] == "400"
    capsys.readouterr()
    assert agent(qubes, "settings", "show", "work") == 0
    shown = capsys.readouterr().out
    assert (
        "property memory: 400 -> 777\n" in shown
        and "feature service.cups: - -> 1   (only with --also services)" in shown
    )
    assert agent(qubes, "settings", "apply", "work") == 1  # no terminal to ask on
    assert work.properties["memory"][2] == "400"
    assert agent(qubes, "settings", "apply", "work", "--yes") == 0
    assert work.properties["memory"][2] == "777" and work.properties["netvm"][2] == "vault"
    assert (
        work.properties["kernelopts"][2] == ""
        and not work.features
        and not work.tags
        and work.firewall == "action=accept\n"
    )
    also = [
        word
        for group in ("network", "firewall", "properties", "services", "tags", "devices")
        for word in ("--also", group)
    ]
    assert agent(qubes, "settings", "apply", "work", "--yes", *also) == 0
    assert work.properties["kernelopts"][2] == "debug" and work.properties["netvm"][2] == ""
    assert (
        work.features == {"service.cups": "1"}
        and "precious" in work.tags
        and work.firewall == "action=drop\n"
    )
    assert work.devices == {"pci": qubes.qubesd.a_device()}
    capsys.readouterr()
    assert agent(qubes, "settings", "show", "work") == 0
    assert "already" in capsys.readouterr().out


def test_what_cannot_be_applied_is_said_and_the_rest_goes_on(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    work = qubes.qubesd.qubes["work"]
    work.properties |= {"memory": (False, "int", "777"), "vcpus": (False, "int", "3")}
    qubes.backup()
    del work.properties["vcpus"]
    work.properties["memory"] = (False, "int", "400")
    qubes.restore(name="work/settings")
    assert agent(qubes, "settings", "apply", "work", "--yes") == 1
    assert "vcpus could not be set" in capsys.readouterr().err
    assert work.properties["memory"][2] == "777"


def test_dom0s_own_configuration(
    qubes: QubesSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "etc-qubes"
    (files / "policy.d").mkdir(parents=True)
    policy, other = files / "policy.d/30-mine.policy", files / "other"
    policy.write_text("my.Service * work vault ask\n")
    policy.chmod(0o640)
    other.write_text("as it was\n")
    qubes.config.write_text(
        qubes.config.read_text().replace("dom0_config = []", f'dom0_config = ["{files}"]')
    )
    qubes.backup()
    assert next(done for done in qubes.backup().done if done.qube == "dom0").stored == 0
    policy.write_text("my.Service * work vault allow\n")
    other.unlink()
    qubes.restore(name="dom0/config")
    assert policy.read_text().endswith("allow\n") and not other.exists()  # nothing by itself
    capsys.readouterr()
    assert agent(qubes, "settings", "show", "dom0") == 0
    assert capsys.readouterr().out == f"  {other}: is not here\n  {policy}: differs\n"
    assert agent(qubes, "settings", "apply", "dom0", "--yes") == 1
    assert agent(qubes, "settings", "apply", "dom0", str(policy)) == 1  # no terminal to ask on
    assert "-my.Service * work vault allow" in capsys.readouterr().out
    assert agent(qubes, "settings", "apply", "dom0", "/etc/shadow", "--yes") == 1
    beside = policy.with_name(policy.name + ".tmp")
    beside.write_text("somebody's own\n")
    assert agent(qubes, "settings", "apply", "dom0", str(policy), "--yes") == 0
    assert beside.read_text() == "somebody's own\n"
    assert sorted(policy.parent.iterdir()) == [policy, beside]
    assert (
        policy.read_text().endswith("ask\n")
        and policy.stat().st_mode & 0o777 == 0o640
        and not other.exists()
    )


def collect_command(site: QubesSite, *words: str) -> int:
    return agent(site, "settings", "collect", *words)


def test_settings_are_taken_down_by_dom0_alone(
    qubes: QubesSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """A document changes when what it says does; those of qubes that are gone, or not backed up any
    more, go.
    """
    folder = qubes.state / "settings"
    assert collect_command(qubes) == 0
    assert "4 of 4 saved, 4 changed" in capsys.readouterr().out
    before = {path.name: path.stat().st_ino for path in folder.glob("*.settings")}
    assert before.keys() == {"fedora.settings", "vault.settings", "work.settings"} | {
        f"{BACKUP_VM}.settings"
    }
    work = folder / "work.settings"
    os.utime(work, (1, 1))
    qubes.qubesd.qubes["vault"].features["menu-items"] = "x.desktop"
    del qubes.qubesd.qubes["fedora"]
    assert collect_command(qubes, "-q") == 0 and capsys.readouterr().out == ""
    after = {path.name: path.stat().st_ino for path in folder.glob("*.settings")}
    assert "fedora.settings" not in after and after["vault.settings"] != before["vault.settings"]
    assert after["work.settings"] == before["work.settings"] and work.stat().st_mtime > 1


def test_settings_that_cannot_be_taken_down_count_as_failed_in_the_end(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    qubes.backup()

    def stumbles(*_: object) -> str:
        raise Refusal("QubesException", "no firewall today")

    monkeypatch.setattr(qubes.qubesd, "_vm_firewall", stumbles)
    assert collect_command(qubes) == 1
    assert "work/settings: qubesd: no firewall today" in capsys.readouterr().err
    assert "work/settings" in names(qubes)  # as they were; they are not old yet
    os.utime(qubes.state / "settings/work.settings", (1_700_000_000, 1_700_000_000))
    qubes.write_down()
    with qubes.open(True) as archive:
        report = BackupRun(archive, qubes.agent(archive), Progress()).run(qubes.listed(archive))
    assert [name for name, _ in report.failed] == ["work/settings"]
    assert agent(qubes, "check") == 1
    assert "last saved at 20231114-221320" in capsys.readouterr().err
    assert agent(qubes, "monitor") == 0 and qubes_snapshots(qubes, "work/settings")


def names(site: QubesSite) -> set[str]:
    return {volume.name for volume in open_catalog(load(site.config)).volumes()}


def qubes_snapshots(site: QubesSite, name: str) -> list[Path]:
    return list((site.state / "settings/.sparsebak" / name).iterdir())


def test_dom0s_configuration_is_read_seldom_by_the_timer(qubes: QubesSite, tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text("one\n")
    qubes.config.write_text(
        qubes.config.read_text().replace("dom0_config = []", f'dom0_config = ["{file}"]')
    )
    kept = qubes.state / "settings/dom0.config"
    assert collect_command(qubes, "--due") == 0
    first = kept.read_bytes()
    file.write_text("two\n")
    assert collect_command(qubes, "--due") == 0 and kept.read_bytes() == first
    os.utime(kept, (time.time() - 7 * 3600,) * 2)
    assert collect_command(qubes, "--due") == 0 and kept.read_bytes() != first
    file.write_text("three\n")
    assert collect_command(qubes) == 0 and b"three" in kept.read_bytes()
    # saved while the clock was ahead: nobody knows when
    file.write_text("four\n")
    for path in (kept, kept.with_name("work.settings")):
        os.utime(path, (time.time() + 2 * 3600,) * 2)
    qubes.write_down()
    assert {"dom0/config", "work/settings"} <= names(qubes)
    assert collect_command(qubes, "--due") == 0 and b"four" in kept.read_bytes()


def test_without_the_package_there_are_no_settings(
    qubes: QubesSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    qubes.backup()
    assert "work/settings" in names(qubes)
    monkeypatch.setattr(qubes_catalog, "documents_are_taken_down", lambda: False)
    qubes.write_down()
    assert names(qubes) == {
        "fedora/private", "fedora/root", "vault/private", "work/private", f"{BACKUP_VM}/private",
    }  # fmt: skip


def test_what_is_restored_waits_unread(qubes: QubesSite) -> None:
    """The last one restored is the one that waits; cut off between two steps it counts as older."""
    assert waiting(qubes.state, "work", "settings") is None
    work = qubes.qubesd.qubes["work"]
    for memory in ("300", "500"):
        work.properties["memory"] = (False, "int", memory)
        qubes.backup()
    for session, memory, older in ((0, 300, True), (1, 500, False), (0, 300, True)):
        qubes.restore(session, "work/settings")
        found = waiting(qubes.state, "work", "settings")
        assert found is not None and found[1] == older
        assert from_bytes(found[0].read_bytes()).properties["memory"] == memory
        assert len(list((qubes.state / "restored").iterdir())) == 1
    place(qubes.state, "work", "settings").write_bytes(b"")
    found = waiting(qubes.state, "work", "settings")
    assert found is not None and found[1]


@pytest.mark.parametrize(("qube", "limit"), [("work", LIMIT), ("dom0", CONFIG_LIMIT)])
def test_what_is_too_large_is_not_dropped(tmp_path: Path, qube: str, limit: int) -> None:
    Dropped(tmp_path, qube, "x", LIMIT, False).discard()
    assert not list((tmp_path / "restored").iterdir())
    with pytest.raises(Refused, match="too many"):
        Dropped(tmp_path, qube, "x", limit + 1, False)
