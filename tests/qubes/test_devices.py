# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of a qube, in the calls of Qubes OS 4.2 and of 4.3, and settings that come from the one
to the other.
"""

import importlib
import importlib.util
from collections.abc import Callable

import pytest

from dom0_agent.admin.settings import apply as restored
from dom0_agent.admin.settings.document import QubeSettings, collect, from_bytes
from dom0_agent.admin.settings.plan import plan
from dom0_agent.qubesd import connect
from tests.conftest import elsewhere
from tests.qubes.qubesd import Qubesd

OLD = "dom0+00_14.0 no-strict-reset=True persistent=yes"
NEW = (
    "dom0+00_14.0:0x8086:0xa0ed::p0c0330 device_id='0x8086:0xa0ed::p0c0330' port_id='00_14.0'"
    " devclass='pci' backend_domain='dom0' mode='required' frontend_domain='work'"
    " _no-strict-reset='True'"
)


@pytest.fixture
def machine(qubesd: Qubesd) -> Callable[[str], Qubesd]:
    """The machine with a qube ``work``, as of a release."""
    qubesd.pools["p"] = {"driver": "file-reflink", "dir_path": "/x"}
    qubesd.add("work", "AppVM", "p")

    def of(release: str) -> Qubesd:
        qubesd.release = release
        return qubesd

    return of


def given(settings: QubeSettings) -> list[str | None]:
    """What went wrong with each step that gives devices."""
    app = connect()
    steps = [s for s in plan(app, app.domains["work"], settings, False) if s.group == "devices"]
    return [error for _, error in restored.apply(steps, frozenset({"devices"}))]


@pytest.mark.parametrize(("release", "line"), [("4.2", OLD), ("4.3", NEW)])
def test_devices_are_kept_and_given_back(
    machine: Callable[[str], Qubesd], release: str, line: str
) -> None:
    work = machine(release).qubes["work"]
    work.devices["pci"] = f"{line}\n"
    if release == "4.2":
        work.devices["block"] = "sys-usb+sda read-only=yes persistent=no\n"  # just now, by hand
    settings = from_bytes(collect("work"))
    assert settings.devices == {"pci": [line]}
    assert given(settings) == []  # it has them
    work.devices.clear()
    assert given(settings) == [None]
    assert work.devices == {"pci": f"{line}\n"}


def test_those_of_4_2_are_given_on_4_3_and_not_the_other_way(
    machine: Callable[[str], Qubesd],
) -> None:
    work = machine("4.3").qubes["work"]
    assert given(QubeSettings("work", "AppVM", "red", None, None, devices={"pci": [OLD]})) == [None]
    (line,) = work.devices["pci"].splitlines()
    assert line.startswith("dom0+00_14.0 device_id='*' ")
    machine("4.2")
    work.devices.clear()
    (error,) = given(QubeSettings("work", "AppVM", "red", None, None, devices={"pci": [NEW]}))
    assert error is not None and "newer Qubes OS" in error and not work.devices


def test_the_real_qubes_understands_what_is_assigned(machine: Callable[[str], Qubesd]) -> None:
    """By the classes with which qubesadmin, and qubesd of 4.3, too, read an assignment."""
    if importlib.util.find_spec("qubesadmin.devices") is None:
        elsewhere("the real qubesadmin is not here: make test-qubes QUBES=FOLDER")
    newer = importlib.util.find_spec("qubesadmin.device_protocol") is not None
    work = machine("4.3" if newer else "4.2").qubes["work"]
    lines = {"pci": [OLD, NEW] if newer else [OLD]}
    settings = QubeSettings("work", "AppVM", "red", None, None, devices=lines)
    assert given(settings) == [None] * len(lines["pci"])
    app = connect()
    devices = app.domains["work"].devices["pci"]
    if not newer:
        (read,) = devices.assignments(persistent=True)
        assert (str(read.backend_domain), read.ident) == ("dom0", "00_14.0")
        assert read.options == {"no-strict-reset": "True"}
        return
    protocol = importlib.import_module("qubesadmin.device_protocol")
    for line, device in zip(
        work.devices["pci"].splitlines(), ("*", "0x8086:0xa0ed::p0c0330"), strict=True
    ):
        identity, _, payload = line.partition(" ")
        expected = protocol.VirtualDevice.from_qarg(identity, "pci", app.domains)
        read = protocol.DeviceAssignment.deserialize(payload.encode(), expected_device=expected)
        assert (read.port_id, read.device_id, read.devclass) == ("00_14.0", device, "pci")
        assert read.mode.value == "required" and read.options == {"no-strict-reset": "True"}
