# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that belong to a qube for good, as lines of qubesd's own, in the words of either API.

Qubes OS 4.3: ``BACKEND+PORT:ID device_id='..' mode='required' _OPTION='VALUE' ..``, by ``Assigned``
and ``Assign``. 4.2: ``BACKEND+PORT OPTION=VALUE .. persistent=yes``, by ``List`` and ``Attach``;
what is only attached just now is listed there, too, and not for good (``persistent=no``).
"""

from typing import Any

from wire.status import Code, Refused

_FOR_GOOD = "persistent=yes"
_NEWER = " mode='"


def assigned(app: Any, qube: str, kind: str) -> list[str]:
    """The lines of a class of devices, sorted."""
    newer, lines = _listed(app, qube, kind)
    return sorted(line for line in lines if line and (newer or _FOR_GOOD in line.split(" ")))


def assign(app: Any, qube: str, kind: str, line: str) -> None:
    """Give a qube a device for good, by a line of this release's or of 4.2; Refused for one of a
    newer release.
    """
    identity, _, options = line.partition(" ")
    if _listed(app, qube, kind)[0]:
        if _FOR_GOOD in options.split(" "):
            options = _renewed(kind, identity, options)
        app.qubesd_call(qube, f"admin.vm.device.{kind}.Assign", identity, options.encode())
    elif _NEWER in line:
        raise Refused(
            Code.BAD_REQUEST,
            f"it was assigned on a newer Qubes OS; use: qvm-{kind} attach --persistent",
        )
    else:
        app.qubesd_call(qube, f"admin.vm.device.{kind}.Attach", identity, options.encode())


def unknown(error: Exception) -> bool:
    """Whether qubesd's answer to a call is that of a version which has no such call: none
    at all.
    """
    # The names that Qubes OS 4.3 and older ones have for it.
    return type(error).__name__ in (
        "QubesDaemonNoResponseError",
        "QubesDaemonAccessError",
    )


def _listed(app: Any, qube: str, kind: str) -> tuple[bool, list[str]]:
    """Whether it is 4.3's API, and the lines."""
    newer = True
    try:
        raw = app.qubesd_call(qube, f"admin.vm.device.{kind}.Assigned")
    except Exception as error:
        if not unknown(error):
            raise
        newer, raw = False, app.qubesd_call(qube, f"admin.vm.device.{kind}.List")
    return newer, raw.decode("utf-8", "replace").split("\n")


def _renewed(kind: str, identity: str, options: str) -> str:
    """The options of a line of 4.2 in the words of 4.3, whose own upgrade makes such devices
    required, whatever is at that port (core-admin, ``qubes/vm/__init__.py``).
    """
    backend, _, port = identity.partition("+")
    words = {"device_id": "*", "port_id": port, "devclass": kind, "backend_domain": backend}
    words["mode"] = "required"
    for word in options.split(" "):
        key, _, value = word.partition("=")
        if key and word != _FOR_GOOD:
            words[f"_{key}"] = value
    return " ".join(f"{key}='{_escaped(value)}'" for key, value in words.items())


def _escaped(value: str) -> str:
    return value.replace("'", r"\'")
