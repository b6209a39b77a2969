# SPDX-License-Identifier: GPL-2.0-or-later
"""From a qube as it is to the settings of a backup, step by step: what is safe by itself, and what
only when named.

The safe steps give a qube no more than a new one has: a look, a size, the network of its settings
when it was just made. All else (devices, services, tags, which policies go by, other features and
properties, and of a qube that exists its template, firewall and network) is a group that must be
asked for by name.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from dom0_agent.admin.settings.devices import assign, assigned
from dom0_agent.admin.settings.document import (
    TRANSIENT,
    TRANSIENT_TAGS,
    QubeSettings,
    firewall_rules,
    notes_of,
)

GROUPS = ("network", "firewall", "properties", "features", "services", "tags", "devices")
"""What must be asked for by name."""
_SAFE_PROPERTIES = frozenset(
    {
        "memory",
        "maxmem",
        "vcpus",
        "include_in_backups",
        "qrexec_timeout",
        "shutdown_timeout",
        "virt_mode",
    }
)
_SAFE_FEATURES = frozenset(
    {"menu-items", "menu-favorites", "default-menu-items", "internal", "appmenus-dispvm"}
)
_SERVICE = "service."


@dataclass(frozen=True)
class Step:
    """One thing to change: what it is, in words from and to what, its group (empty: safe),
    and how.
    """

    what: str
    old: str
    new: str
    group: str
    apply: Callable[[], object]


def plan(app: Any, domain: Any, settings: QubeSettings, fresh: bool) -> list[Step]:
    """The steps that lead from ``domain`` to ``settings``. ``fresh``: the qube was just created for
    it.
    """
    steps = [
        *_named(app, domain, settings, "" if fresh else "network"),
        *_properties(domain, settings),
        *_features(domain, settings),
        *_tags(domain, settings),
        *_firewall(domain, settings, "" if fresh else "firewall"),
        *_devices(app, domain, settings),
        *_notes(domain, settings),
    ]
    return [step for step in steps if step.old != step.new]


def _named(app: Any, domain: Any, settings: QubeSettings, network: str) -> Iterator[Step]:
    yield Step(
        "label",
        _text(domain.label),
        settings.label,
        "",
        lambda: setattr(domain, "label", settings.label),
    )
    if settings.template is not None:
        template, old = settings.template, _text(getattr(domain, "template", None))
        group = "properties" if network else ""
        yield Step("template", old, template, group, lambda: setattr(domain, "template", template))
    netvm = settings.netvm if settings.netvm is None or settings.netvm in app.domains else None
    old = _text(getattr(domain, "netvm", None))
    yield Step("netvm", old, _text(netvm), network, lambda: setattr(domain, "netvm", netvm))


def _properties(domain: Any, settings: QubeSettings) -> Iterator[Step]:
    for name, value in settings.properties.items():
        old = ""
        with suppress(AttributeError):
            old = _text(getattr(domain, name))
        group = "" if name in _SAFE_PROPERTIES else "properties"
        yield Step(
            f"property {name}",
            old,
            _text(value),
            group,
            partial(setattr, domain, name, value),
        )


def _features(domain: Any, settings: QubeSettings) -> Iterator[Step]:
    for name, value in settings.features.items():
        if name in TRANSIENT:
            continue
        group = (
            ""
            if name in _SAFE_FEATURES
            else "services"
            if name.startswith(_SERVICE)
            else "features"
        )
        old = str(domain.features.get(name) or "") if name in domain.features else "-"
        yield Step(
            f"feature {name}",
            old,
            value,
            group,
            partial(domain.features.__setitem__, name, value),
        )


def _tags(domain: Any, settings: QubeSettings) -> Iterator[Step]:
    present = {str(tag) for tag in domain.tags}
    for tag in settings.tags:
        if not tag.startswith("created-by-") and tag not in TRANSIENT_TAGS:
            yield Step(
                f"tag {tag}",
                tag if tag in present else "-",
                tag,
                "tags",
                partial(domain.tags.add, tag),
            )


def _firewall(domain: Any, settings: QubeSettings, group: str) -> Iterator[Step]:
    if settings.firewall:
        old, rules = firewall_rules(domain), unexpired(settings.firewall, time.time())
        yield Step(
            "firewall",
            "; ".join(old),
            "; ".join(rules),
            group,
            lambda: _set_firewall(domain, rules),
        )


def unexpired(rules: list[str], now: float) -> list[str]:
    """Without the rules whose time is over: qubesd drops them."""
    # A rule's comment comes last, and may hold anything.
    words = ((rule, rule.partition(" comment=")[0].split(" ")) for rule in rules)
    return [rule for rule, options in words if not any(_over(option, now) for option in options)]


def _over(word: str, now: float) -> bool:
    key, _, value = word.partition("=")
    return key == "expire" and value.isascii() and value.isdigit() and int(value) <= now


def _set_firewall(domain: Any, rules: list[str]) -> None:
    domain.qubesd_call(
        None, "admin.vm.firewall.Set", None, "".join(f"{rule}\n" for rule in rules).encode("ascii")
    )


def _devices(app: Any, domain: Any, settings: QubeSettings) -> Iterator[Step]:
    name = str(domain.name)
    for kind, lines in settings.devices.items():
        present: list[str] = []
        with suppress(Exception):
            present = assigned(app, name, kind)
        for line in lines:
            yield Step(
                f"{kind} device {line.partition(' ')[0]}",
                line if line in present else "-",
                line,
                "devices",
                partial(assign, app, name, kind, line),
            )


def _notes(domain: Any, settings: QubeSettings) -> Iterator[Step]:
    if settings.notes:
        yield Step(
            "notes", notes_of(domain), settings.notes, "", lambda: domain.set_notes(settings.notes)
        )


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
