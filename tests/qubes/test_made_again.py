# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube that is gone is made from its settings, and has no network before its firewall stands;
whatever fails on the way.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dom0_agent.admin.catalog import ask
from dom0_agent.admin.settings import apply as restored
from dom0_agent.admin.settings.collecting import collect_all
from dom0_agent.admin.settings.document import QubeSettings, collect, from_bytes
from dom0_agent.admin.settings.plan import unexpired
from dom0_agent.config import load
from tests.qubes.qubesd import Qube, Qubesd, Refusal
from wire.status import Refused

RULES = ["action=accept dsthost=example.org proto=tcp dstports=443-443", "action=drop"]
KEPT = QubeSettings("gone", "AppVM", "red", "fedora", "sys-net", firewall=RULES)


@pytest.fixture
def machine(qubesd: Qubesd, monkeypatch: pytest.MonkeyPatch) -> Qubesd:
    """A machine without the qube ``gone``; whenever it gets a network its firewall must stand."""
    qubesd.pools["p"] = {"driver": "file-reflink", "dir_path": "/x"}
    for name, klass in (("fedora", "TemplateVM"), ("sys-net", "AppVM"), ("work", "AppVM")):
        qubesd.add(name, klass, "p")
    real = qubesd._vm_property

    def watched(qube: Qube, verb: str, name: str, payload: str) -> str:
        if verb == "Set" and name == "netvm" and payload:
            assert qube.firewall.splitlines() == RULES, "network before the firewall"
        return real(qube, verb, name, payload)

    monkeypatch.setattr(qubesd, "_vm_property", watched)
    told: list[str] = []
    monkeypatch.setattr(restored, "notify", lambda title, text, urgent: told.append(text))
    qubesd.told = told  # type: ignore[attr-defined]
    return qubesd


def netvm(machine: Qubesd) -> str:
    return machine.qubes["gone"].properties["netvm"][2]


def breaks(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch, handler: str, when: Callable[..., bool]
) -> None:
    real = getattr(machine, handler)

    def failing(qube: Qube, verb: str, argument: str, payload: str) -> str:
        if when(verb, argument, payload):
            raise Refusal("QubesException", "it does not work today")
        text: str = real(qube, verb, argument, payload)
        return text

    monkeypatch.setattr(machine, handler, failing)


def test_firewall_first_then_the_network(machine: Qubesd) -> None:
    restored.create("gone", KEPT)
    made = machine.qubes["gone"]
    assert netvm(machine) == "sys-net" and made.firewall.splitlines() == RULES
    assert "sparsebak" in made.tags and machine.told == []  # type: ignore[attr-defined]


def test_a_firewall_that_fails_means_no_network(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(machine, monkeypatch, "_vm_firewall", lambda verb, *_: verb == "Set")
    restored.create("gone", KEPT)
    assert netvm(machine) == ""
    (text,) = machine.told  # type: ignore[attr-defined]
    assert "gone stays without network: its firewall" in text


def test_a_firewall_that_is_not_taken_as_it_was_given(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_vm_firewall", lambda *_: "action=accept\n")
    restored.create("gone", KEPT)
    assert netvm(machine) == ""


@pytest.mark.parametrize(
    ("settings", "older"),
    [
        (KEPT, True),
        (replace(KEPT, firewall=[]), False),
        (replace(KEPT, netvm="sys-vpn"), False),
        (replace(KEPT, netvm=None), False),
    ],
)
def test_no_network_where_it_is_not_sure(
    machine: Qubesd, settings: QubeSettings, older: bool
) -> None:
    restored.create("gone", settings, older)
    assert netvm(machine) == "" and "gone" in machine.qubes
    assert len(machine.told) == (settings.netvm is not None)  # type: ignore[attr-defined]


def test_a_network_that_fails_is_taken_away(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = machine._vm_property

    def half(qube: Qube, verb: str, name: str, payload: str) -> str:
        text = real(qube, verb, name, payload)
        if (verb, name, payload) == ("Set", "netvm", "sys-net"):
            raise Refusal("QubesException", "set, and then it failed")
        return text

    monkeypatch.setattr(machine, "_vm_property", half)
    restored.create("gone", KEPT)
    assert netvm(machine) == "" and "set, and then it failed" in machine.told[0]  # type: ignore[attr-defined]


def test_a_qube_that_cannot_be_made_offline_is_not_made(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(
        machine, monkeypatch, "_vm_property", lambda verb, name, _: (verb, name) == ("Set", "netvm")
    )
    with pytest.raises(Refused):
        restored.create("gone", KEPT)
    assert "gone" not in machine.qubes


@pytest.mark.parametrize(
    "handler", ["_vm_firewall", "_device", "_vm_notes", "_vm_tag", "_vm_feature"]
)
def test_what_qubesd_does_not_tell_is_not_recorded_as_nothing(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch, handler: str
) -> None:
    assert collect("work")
    if handler == "_vm_notes" and machine.release == "4.2":
        return  # it has none
    (
        breaks(machine, monkeypatch, handler, lambda *_: True)
        if handler != "_device"
        else monkeypatch.setattr(
            machine, "_device", lambda *_: (_ for _ in ()).throw(Refusal("QubesException", "no"))
        )
    )
    with pytest.raises(Refused):
        collect("work")


def test_named_disposables_are_kept_and_made_again(machine: Qubesd, tmp_path: Path) -> None:
    usb = machine.add("sys-usb", "DispVM", "p", auto_cleanup=(False, "bool", "False"))
    usb.devices["pci"] = machine.a_device("sys-usb")
    machine.add("disp7", "DispVM", "p")
    config = tmp_path / "agent.toml"
    config.write_text('state_dir = "state"\ncatalog = "qubes"\n[qubes]\ndom0_config = []\n')
    assert [taken.name for taken in collect_all(load(config)) if taken.changed] == [
        f"{name}/settings" for name in ("fedora", "sys-net", "sys-usb", "work")
    ]
    catalog = ask(load(config))
    assert [v.name for v in catalog.volumes() if v.qube.startswith(("sys-usb", "disp"))] == [
        "sys-usb/settings"
    ]
    assert [s.reason for s in catalog.skipped() if s.name == "disp7"] == [
        "a disposable keeps nothing"
    ]
    kept = from_bytes(collect("sys-usb"))
    del machine.qubes["sys-usb"]
    restored.create("sys-usb", replace(kept, qube="sys-usb"))
    made = machine.qubes["sys-usb"]
    assert made.klass == "DispVM" and made.devices == {}  # devices wait to be applied


def test_features_of_the_moment_are_left_out(machine: Qubesd) -> None:
    machine.qubes["work"].features |= {
        "updates-available": "1", "deferred-netvm-original": "sys-net", "menu-items": "a.desktop",
        "service.cups": "1",
    }  # fmt: skip
    assert from_bytes(collect("work")).features == {"menu-items": "a.desktop", "service.cups": "1"}
    assert "updates" not in json.dumps(collect("work").decode())


def test_rules_that_are_over() -> None:
    rules = [
        "action=accept expire=100",
        "action=accept expire=300 comment=was expire=1",
        "action=drop",
    ]
    assert unexpired(rules, 200) == rules[1:]


def test_one_qube_that_qubesd_stumbles_over_does_not_hide_the_others(
    machine: Qubesd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('state_dir = "state"\ncatalog = "qubes"\n[qubes]\ndom0_config = []\n')
    real = machine._vm_volume

    def gone(qube: Qube, verb: str, name: str, payload: str) -> str:
        if qube is machine.qubes["work"]:
            raise Refusal("QubesVMNotFoundError", "No such domain: work")
        return real(qube, verb, name, payload)

    monkeypatch.setattr(machine, "_vm_volume", gone)
    catalog = ask(load(config))
    assert {v.qube for v in catalog.volumes()} == {"fedora", "sys-net"}
    assert "No such domain" in next(s.reason for s in catalog.skipped() if s.name == "work")
