# SPDX-License-Identifier: GPL-2.0-or-later
"""Restored settings: they wait in dom0's dropbox until its administrator applies them; a qube that
is gone is made again from them.
"""

import time
from pathlib import Path
from typing import Any

from common.durable import UNREADABLE
from dom0_agent.admin.settings.document import QubeSettings, firewall_rules, from_bytes
from dom0_agent.admin.settings.plan import Step, plan, unexpired
from dom0_agent.admin.tags import TAG
from dom0_agent.catalog import SETTINGS
from dom0_agent.log import INFO, WARNING, log
from dom0_agent.notify import notify
from dom0_agent.qubesd import asking, connect
from dom0_agent.targets.dropbox import unreadable, waiting
from wire.status import Code, Refused


def create(qube: str, settings: QubeSettings, older: bool = False) -> int:
    """Make a qube that does not exist from its settings. What could not be set is logged; how many
    things.

    It has no network until its firewall is the one of its settings, as qubesd tells it; and none at
    all when the settings are ``older`` than the newest known, which may give a network that was
    taken away since.
    """
    with asking():
        app = connect()
        if settings.template is not None and settings.template not in app.domains:
            raise Refused(
                Code.SOURCE_FAILED,
                f"{qube}: its template {settings.template} is not there; install or restore it"
                " first",
            )
        if settings.klass not in ("AppVM", "TemplateVM", "StandaloneVM", "DispVM"):
            raise Refused(
                Code.SOURCE_FAILED, f"{qube}: a qube of class {settings.klass} cannot be made"
            )
        domain = _offline(app, qube, settings)
        domain.tags.add(TAG)
        log(INFO, f"{qube}: created, {settings.klass} with label {settings.label}")
        steps = [step for step in plan(app, domain, settings, fresh=True) if step.what != "netvm"]
        failures = 0
        for step, error in apply(steps, frozenset()):
            if error is not None:
                failures += 1
                log(WARNING, f"{qube}: {step.what} could not be set: {error}")
        if settings.netvm is not None:
            why_not = (
                "its settings are not the newest known"
                if older
                else _connect(app, domain, settings)
            )
            if why_not:
                text = (
                    f"{qube} stays without network: {why_not}; see: sparsebak-agent settings show"
                    f" {qube}"
                )
                log(WARNING, text)
                notify("Made without network", text, urgent=True)
    return failures


def _offline(app: Any, qube: str, settings: QubeSettings) -> Any:
    """A new qube without network, or none at all: qubesd gives a new one the default network."""
    domain = app.add_new_vm(settings.klass, qube, settings.label, template=settings.template)
    try:
        domain.netvm = None
        if _netvm(app, qube):
            raise Refused(Code.SOURCE_FAILED, f"{qube}: qubesd did not take its network away")
    except BaseException:
        del app.domains[qube]  # a moment old, and empty
        raise
    return domain


def _connect(app: Any, domain: Any, settings: QubeSettings) -> str:
    """Give a new qube its network, if its firewall stands; else why it has none, in words."""
    qube, netvm = str(domain.name), settings.netvm
    if netvm not in app.domains:
        return f"there is no qube {netvm}"
    if not settings.firewall:
        return "no firewall is kept with its settings"
    try:
        if firewall_rules(domain) != unexpired(settings.firewall, time.time()):
            return "its firewall is not that of its settings"
        domain.netvm = netvm
        if _netvm(app, qube) == netvm:
            return ""
        error = "qubesd did not set it"
    except Exception as failed:  # whatever it was, the qube must not be left half connected
        error = str(failed) or type(failed).__name__
    try:
        domain.netvm = None
        return error if not _netvm(app, qube) else f"{error}; CHECK IT, it may have {netvm} anyway"
    except Exception as failed:
        return f"{error}; CHECK IT, it may have {netvm} anyway: {failed}"


def _netvm(app: Any, qube: str) -> str:
    """The network qube as qubesd has it now, past what qubesadmin remembers; empty for none."""
    raw: str = app.qubesd_call(qube, "admin.vm.property.Get", "netvm").decode("ascii")
    return raw.split(" ", 2)[2]


def apply(steps: list[Step], groups: frozenset[str]) -> list[tuple[Step, str | None]]:
    """Do the safe steps and those of the groups named, one by one; each with what went wrong, if
    anything.
    """
    done: list[tuple[Step, str | None]] = []
    for step in steps:
        if step.group and step.group not in groups:
            continue
        try:
            step.apply()
            done.append((step, None))
        except Exception as error:  # whatever qubesd thinks of it; the others follow
            done.append((step, str(error) or type(error).__name__))
    return done


def load(state_dir: Path, qube: str) -> tuple[Any, QubeSettings, bool]:
    """qubesd, the settings that wait for a qube, and whether they are not the newest known."""
    found = waiting(state_dir, qube, SETTINGS)
    if found is None:
        raise Refused(
            Code.NO_VOLUME,
            f"no settings of {qube} were restored; in the backup VM: sparsebak restore"
            f" {qube}/settings",
        )
    path, older = found
    try:
        raw = path.read_bytes()
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        raise unreadable(path, error) from None
    return connect(), from_bytes(raw), older
