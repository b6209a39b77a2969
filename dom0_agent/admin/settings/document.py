# SPDX-License-Identifier: GPL-2.0-or-later
"""A qube's settings as one JSON document, the same bytes as long as nothing changes.

It is read back only after the archive's key has proven it to be what was sealed here. Even then it
may come from a dom0 that was compromised at that time: what is applied, and when, is settled in
``plan``.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from dom0_agent.admin.settings.devices import assigned, unknown
from dom0_agent.qubesd import asking, connect
from dom0_agent.targets.qubesd import TAG as RESTORED
from wire.names import BadName, parse_name
from wire.status import Code, Refused

FORMAT = 1
LIMIT = 8 << 20
"""Bytes of a settings document, at most."""
_NOT_KEPT = frozenset(
    {
        "name",
        "klass",
        "label",
        "template",
        "netvm",
        "qid",
        "xid",
        "uuid",
        "stubdom_xid",
        "stubdom_uuid",
        "start_time",
    }
    | {
        "installed_by_rpm",
        "updateable",
        "is_preload",
        "visible_ip",
        "visible_ip6",
        "visible_gateway",
        "visible_gateway6",
    }
    | {
        "visible_netmask",
        "icon",
        "backup_timestamp",
        "gateway",
        "gateway6",
        "keyboard_layout",
        "dns",
    }
)
"""Properties that have a field of their own, or only say how things are just now."""

TRANSIENT = frozenset(
    {"updates-available", "last-update", "last-updates-check", "boot-mode.active"}
    | {"deferred-netvm-original", "preload-dispvm", "preload-dispvm-completed"}
    | {"preload-dispvm-in-progress", "preload-dispvm-early-gui"}
)
"""Features by which qubesd and the updaters note how things are just now (core-admin, ``qubes/vm``
and ``qubes/ext``).
"""

TRANSIENT_TAGS = frozenset({RESTORED})
"""A tag that a qube has while it is restored: with it qubesd starts none."""

Value = str | int | bool | None


@dataclass(frozen=True)
class QubeSettings:
    """All that makes up a qube besides its volumes. ``devices``: lines of qubesd's own, by class of
    device.
    """

    qube: str
    klass: str
    label: str
    template: str | None
    netvm: str | None
    properties: dict[str, Value] = field(default_factory=dict)
    features: dict[str, str] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    firewall: list[str] = field(default_factory=list)
    devices: dict[str, list[str]] = field(default_factory=dict)
    notes: str = ""

    def to_bytes(self) -> bytes:
        """The document."""
        return (
            json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True).encode()
            + b"\n"
        )


def from_bytes(raw: bytes) -> QubeSettings:
    """Undo to_bytes; Refused for anything else. Types are checked, names are allow-listed."""
    try:
        fields = json.loads(raw)
        if fields.pop("format") != FORMAT:
            raise Refused(Code.BAD_REQUEST, "the settings are of another version of sparsebak")
        settings = QubeSettings(**fields)
        _check(settings)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, BadName) as error:
        raise Refused(Code.BAD_REQUEST, f"the settings are malformed: {error}") from None
    return settings


def _check(settings: QubeSettings) -> None:
    for name in (settings.qube, settings.klass, settings.label, settings.template, settings.netvm):
        if name is not None:
            parse_name(name)
    for names in (settings.properties, settings.features, settings.tags, settings.devices):
        for name in names:
            if not isinstance(name, str) or not name.isprintable() or not name or " " in name:
                raise ValueError(f"name {name!r}")
    if not all(isinstance(value, str | int | None) for value in settings.properties.values()):
        raise TypeError("a property is neither text nor number")
    lines = [settings.notes, *settings.tags, *settings.firewall, *settings.features.values()]
    lines += [line for found in settings.devices.values() for line in found]
    if not all(isinstance(line, str) for line in lines):
        raise TypeError("text was expected")


def collect(qube: str) -> bytes:
    """The settings of a qube as they are now. Refused when qubesd does not tell all of it: what is
    missing would be lost.
    """
    with asking():
        app = connect()
        domain = app.domains[qube]
        settings = QubeSettings(
            qube=qube,
            klass=str(domain.klass),
            label=str(domain.label),
            template=_name(getattr(domain, "template", None)),
            netvm=_name(getattr(domain, "netvm", None)),
            properties=_properties(domain),
            features={
                str(name): str(domain.features[name] or "")
                for name in sorted(domain.features)
                if str(name) not in TRANSIENT
            },
            tags=sorted({str(tag) for tag in domain.tags} - TRANSIENT_TAGS),
            firewall=firewall_rules(domain),
            devices=_devices(app, qube),
            notes=notes_of(domain),
        )
    return settings.to_bytes()


def _name(domain: Any) -> str | None:
    return None if domain is None else str(domain)


def _properties(domain: Any) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name in sorted(domain.property_list()):
        if name in _NOT_KEPT or domain.property_is_default(name):
            continue
        with suppress(AttributeError):  # it has no value
            value = getattr(domain, name)
            found[name] = value if value is None or isinstance(value, bool | int) else str(value)
    return found


def firewall_rules(domain: Any) -> list[str]:
    """The rules of a qube's firewall, as qubesd writes them; without those that are over
    (``expire=``).
    """
    return domain.qubesd_call(None, "admin.vm.firewall.Get").decode("ascii").splitlines()  # type: ignore[no-any-return]


def _devices(app: Any, qube: str) -> dict[str, list[str]]:
    """Devices assigned for good, by class."""
    found: dict[str, list[str]] = {}
    for kind in sorted(app.qubesd_call("dom0", "admin.deviceclass.List").decode("ascii").split()):
        if lines := assigned(app, qube, kind):
            found[kind] = lines
    return found


def notes_of(domain: Any) -> str:
    """The notes on a qube, empty where qubesd knows none."""
    if not hasattr(domain, "get_notes"):  # before 4.3
        return ""
    try:
        return str(domain.get_notes())
    except Exception as error:
        if unknown(error):
            return ""
        raise
