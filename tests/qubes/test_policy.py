"""Who may call what under the shipped policy: by the real parser where it can be imported, and by a plain reading of it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dom0_agent.service import SERVICES
from tests.qubes import policy

FILE = Path(__file__).parent.parent.parent / "policy/30-sparsebak.policy"
TAGS = {
    "keeper": {"sparsebak-vm"},
    "work": {"sparsebak"},
    "vault": {"sparsebak"},
    "private": set(),
    "evil": set(),
}
REAL = os.environ.get("QREXEC", "")
"""A folder that holds the real qrexec package, if it is not installed."""

EXPECTED = [
    *((service, "", "keeper", "@adminvm", "allow") for service in ("List", "Enroll", "Verify")),
    *(
        (service, "private", "keeper", "work", "allow")
        for service in ("Monitor", "Snapshot", "Extract", "Commit", "Abort")
    ),
    *(
        (service, "config", "keeper", "@adminvm", "allow")
        for service in ("Snapshot", "Extract", "Commit", "Abort")
    ),
    *(
        (service, "private", "keeper", "@adminvm", "deny")
        for service in ("Snapshot", "Extract", "Commit", "Abort")
    ),
    ("Restore", "private", "keeper", "work", "ask"),
    ("Restore", "config", "keeper", "@adminvm", "ask"),
    ("Restore", "private", "keeper", "@adminvm", "deny"),
    ("Restore", "gone+settings", "keeper", "@default", "ask"),
    ("Restore", "private", "keeper", "gone", "ask"),
    *((service, "private", "keeper", "private", "deny") for service in SERVICES),  # not tagged
    *((service, "private", "keeper", "keeper", "deny") for service in SERVICES),
    *(
        (service, "private", source, "work", "deny")
        for service in SERVICES
        for source in ("evil", "work", "vault")
    ),
    *(
        (service, argument, "evil", "@adminvm", "deny")
        for service in SERVICES
        for argument in ("", "config")
    ),
    *((service, "config", "evil", "@default", "deny") for service in SERVICES),
]


@pytest.mark.parametrize(("service", "argument", "source", "target", "expected"), EXPECTED)
def test_as_it_reads(service: str, argument: str, source: str, target: str, expected: str) -> None:
    assert (
        policy.decide(policy.read(FILE), TAGS, f"sparsebak.{service}", argument, source, target)
        == expected
    )


def test_the_backup_vm_is_named_nowhere() -> None:
    lines = policy.read(FILE)
    assert {line.source for line in lines} == {"@tag:sparsebak-vm", "@anyvm"}
    assert all(
        line.action == "ask"
        for line in lines
        if line.service == "sparsebak.Restore" and line.action != "deny"
    )


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    if REAL:
        monkeypatch.syspath_prepend(REAL)
    pytest.importorskip(
        "qrexec.policy.parser",
        reason="Qubes' own policy parser is not here; set QREXEC to a folder with it",
    )


def test_by_the_real_parser(real: None) -> None:
    parser, exc = (
        importlib.import_module("qrexec.policy.parser"),
        importlib.import_module("qrexec.exc"),
    )
    common = {
        "default_dispvm": None,
        "template_for_dispvms": False,
        "icon": "red",
        "guivm": "dom0",
        "power_state": "Running",
    }
    common |= {"internal": False, "relayvm": None, "transport_rpc": None}
    names = {"dom0": set(), **TAGS}
    domains = {
        name: {
            **common,
            "name": name,
            "uuid": str(at),
            "tags": sorted(tags),
            "type": "AdminVM" if name == "dom0" else "AppVM",
        }
        for at, (name, tags) in enumerate(names.items())
    }
    loaded = parser.StringPolicy(policy={"__main__": FILE.read_text()})
    for service, argument, source, target, expected in EXPECTED:
        request = parser.Request(
            f"sparsebak.{service}", f"+{argument}", source, target, system_info={"domains": domains}
        )
        try:
            found = type(loaded.evaluate(request)).__name__.removesuffix("Resolution").lower()
        except exc.AccessDenied:
            found = "deny"
        assert found == expected, (service, argument, source, target)


def test_by_the_real_linter(real: None) -> None:
    environment = {**os.environ, "PYTHONPATH": REAL}
    command = [sys.executable, "-m", "qrexec.tools.qubes_policy_lint", str(FILE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
