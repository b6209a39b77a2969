# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may call what under the shipped policy: by the real parser where it can be imported, and by a
plain reading of it.
"""

import ast
import asyncio
import importlib
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.sax import saxutils

import pytest

from dom0_agent.rpc.heads import SERVICES
from tests.conftest import elsewhere
from tests.qubes import policy

FILE = Path(__file__).parent.parent.parent / "policy/80-sparsebak.policy"
OF_4_2 = FILE.with_name("79-sparsebak-4.2.policy")
"""What setup puts before it on Qubes OS 4.2."""
TAGS = {
    "keeper": {"sparsebak-vm"},
    "work": {"sparsebak"},
    "vault": {"sparsebak"},
    "private": set(),
    "evil": set(),
    "disp1": {"sparsebak-reader"},
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
    ("Restore", "work+private+20261123-061500", "keeper", "work", "ask"),
    ("Restore", "work+private+20261123-061500+older", "keeper", "work", "ask"),
    ("Restore", "dom0+config+20261123-061500", "keeper", "@adminvm", "ask"),
    ("Restore", "gone+settings+20261123-061500", "keeper", "@default", "ask"),
    ("Restore", "gone+settings+20261123-061500", "keeper", "gone", "ask"),
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
    ("Read", "0+1", "disp1", "keeper", "allow"),
    *(
        ("Read", "0+1", source, target, "deny")
        for source in ("keeper", "work", "evil")
        for target in ("keeper", "work", "@adminvm", "disp1")
    ),
    *(("Read", "0+1", "disp1", target, "deny") for target in ("work", "evil", "@adminvm")),
    *(
        ("Open", "keeper", source, target, "deny")  # dom0 alone gives grants
        for source in ("keeper", "work", "evil", "disp1")
        for target in ("keeper", "work", "disp1", "@adminvm")
    ),
    *((service, "private", "disp1", "work", "deny") for service in SERVICES),
    *((service, "", "disp1", "@adminvm", "deny") for service in SERVICES),
]


@pytest.mark.parametrize(("service", "argument", "source", "target", "expected"), EXPECTED)
def test_as_it_reads(service: str, argument: str, source: str, target: str, expected: str) -> None:
    for lines in (policy.read(FILE), policy.read(OF_4_2) + policy.read(FILE)):
        found = policy.decide(lines, TAGS, f"sparsebak.{service}", argument, source, target)
        assert found == expected


def test_the_backup_vm_is_named_nowhere() -> None:
    lines = policy.read(FILE)
    named = {"@tag:sparsebak-vm", "@tag:sparsebak-reader", "@anyvm"}
    assert {line.source for line in lines} == named
    assert all(
        line.action == "ask"
        for line in lines
        if line.service == "sparsebak.Restore" and line.action != "deny"
    )


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    if REAL:
        monkeypatch.syspath_prepend(REAL)
    if importlib.util.find_spec("qrexec") is None:
        elsewhere("Qubes' own policy parser is not here: set QREXEC to a folder of core-qrexec")


def test_by_the_real_parser(real: None) -> None:
    exc = importlib.import_module("qrexec.exc")
    for service, argument, source, target, expected in EXPECTED:
        try:
            found = type(evaluated(service, argument, source, target)).__name__
        except exc.AccessDenied:
            found = "deny"
        found = found.removesuffix("Resolution").lower()
        assert found == expected, (service, argument, source, target)


TARGETS = [*TAGS, "dom0", "@adminvm", "@default", "gone", "@dispvm", "@dispvm:work"]


@pytest.mark.parametrize("argument", ["", "config", "private", "work+private+20261123-061500"])
def test_the_plain_reading_decides_as_the_real_parser(real: None, argument: str) -> None:
    """Every call of every qube: it stands for the engine where calls go all the way."""
    exc = importlib.import_module("qrexec.exc")
    lines = policy.read(OF_4_2) * is_4_2() + policy.read(FILE)
    services = sorted({line.service.removeprefix("sparsebak.") for line in lines} | {"Other"})
    for service, source, target in itertools.product(services, TAGS, TARGETS):
        try:
            found = type(evaluated(service, argument, source, target)).__name__
        except exc.AccessDenied:
            found = "deny"
        plain = policy.decide(lines, TAGS, f"sparsebak.{service}", argument, source, target)
        assert plain == found.removesuffix("Resolution").lower(), (service, source, target)


def evaluated(service: str, argument: str, source: str, target: str) -> Any:
    """What the real parser makes of a call."""
    parser = importlib.import_module("qrexec.policy.parser")
    request = parser.Request(
        f"sparsebak.{service}", f"+{argument}", source, target, system_info=system_info()
    )
    return parser.StringPolicy(policy={"__main__": text()}).evaluate(request)


def is_4_2() -> bool:
    """Whether the real engine is that of Qubes OS 4.2, which cannot ask about a redirected call."""
    return not hasattr(importlib.import_module("qrexec.policy.parser"), "is_dom0")


def text() -> str:
    """The rules that are in force where that engine is."""
    return OF_4_2.read_text() * is_4_2() + FILE.read_text()


def system_info() -> dict[str, Any]:
    """The qubes of TAGS as qubesd describes them."""
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
    return {"domains": domains}


RESTORES = [
    ("work+private+20261123-061500", "work", "work"),
    ("work+private+20261123-061500+older", "work", "work"),
    ("dom0+config+20261123-061500", "@adminvm", "@adminvm"),
    ("gone+settings+20261123-061500", "@default", "@default"),
    ("gone+settings+20261123-061500", "gone", "@default"),
]


@pytest.mark.parametrize(("argument", "target", "requested"), RESTORES)
def test_what_the_real_prompt_shows_and_dom0_is_told(
    real: None, argument: str, target: str, requested: str
) -> None:
    """The prompt: source, service, argument. The service: the target as it was requested."""
    parser = importlib.import_module("qrexec.policy.parser")
    agent = Path(parser.__file__).parent.parent / "tools/qrexec_policy_agent.py"
    (shown,) = [
        node
        for node in ast.parse(agent.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "escape_and_format_rpc_text"
    ]
    glib = SimpleNamespace(markup_escape_text=saxutils.escape)  # all that the function asks of GTK
    names: dict[str, Any] = {"GLib": glib}
    exec(compile(ast.Module([shown], []), str(agent), "exec"), names)
    shows = names["escape_and_format_rpc_text"]("sparsebak.Restore", f"+{argument}")
    assert shows == f"sparsebak.<b>Restore</b>+{argument}"
    asked = evaluated("Restore", argument, "keeper", target)
    others = {"work", "vault"} if is_4_2() else set()
    assert asked.default_target == "dom0" and set(asked.targets_for_ask) == {"dom0"} | others
    allowed = asked.handle_user_response(True, "dom0")
    told = asyncio.run(allowed.execute()).splitlines()
    assert "target=dom0" in told and f"requested_target={requested}" in told


def test_an_administrators_rules_come_first(real: None, tmp_path: Path) -> None:
    parser, exc = (
        importlib.import_module("qrexec.policy.parser"),
        importlib.import_module("qrexec.exc"),
    )
    for file in [FILE, *[OF_4_2] * is_4_2()]:
        shutil.copy(file, tmp_path)
    (tmp_path / "30-user.policy").write_text("sparsebak.Extract * @anyvm @anyvm deny\n")
    loaded = parser.FilePolicy(policy_path=tmp_path)
    for service, refused in (("Extract", True), ("Snapshot", False)):
        request = parser.Request(
            f"sparsebak.{service}", "+private", "keeper", "work", system_info=system_info()
        )
        if refused:
            with pytest.raises(exc.AccessDenied):
                loaded.evaluate(request)
        else:
            loaded.evaluate(request)


def test_by_the_real_linter(real: None) -> None:
    environment = {**os.environ, "PYTHONPATH": REAL}
    command = [sys.executable, "-m", "qrexec.tools.qubes_policy_lint", str(FILE), str(OF_4_2)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
