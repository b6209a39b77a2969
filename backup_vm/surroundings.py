# SPDX-License-Identifier: GPL-2.0-or-later
"""What kind of moment this is for a laptop: whether it runs on battery, and whether its link is
metered.
"""

import subprocess
from pathlib import Path

from backup_vm.errors import NotNowError
from common import programs

_SUPPLIES = Path("/sys/class/power_supply")
_MANAGER = "org.freedesktop.NetworkManager"
_METERED = ("1", "3")
"""NetworkManager's NMMetered: yes, and what it guesses to be yes (a phone's hotspot)."""
_PATIENCE = 5.0


def require_mains(supplies: Path = _SUPPLIES) -> None:
    """Raise NotNowError on battery. A machine that tells of no power supply is on mains."""
    if _on_battery(supplies):
        raise NotNowError("the machine runs on battery", "plug it in; a timer tries again")


def require_unmetered() -> None:
    """Raise NotNowError on a metered link, as NetworkManager tells; where there is none, no link
    is.
    """
    if _metered():
        raise NotNowError(
            "the network link is metered",
            "use another one, or: nmcli connection modify NAME connection.metered no",
        )


def _on_battery(supplies: Path) -> bool:
    """As systemd decides for ConditionACPower= (on_ac_power(3)): a mains supply that is online
    means mains; without one, a battery that discharges means battery.
    """
    discharging = False
    for supply in sorted(supplies.glob("*")):
        kind = _line(supply / "type")
        if kind in ("Mains", "USB", "Wireless"):
            if _line(supply / "online") not in ("", "0"):
                return False
        elif kind == "Battery" and _line(supply / "scope") != "Device":  # not that of a mouse
            discharging |= _line(supply / "status") == "Discharging"
    return discharging


def _line(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # a supply that was unplugged just now
        return ""


def _metered() -> bool:
    path = f"/{_MANAGER.replace('.', '/')}"
    command = ["busctl", "get-property", _MANAGER, path, _MANAGER, "Metered"]
    try:
        done = programs.ask(command, _PATIENCE)
    except (OSError, subprocess.TimeoutExpired, programs.TooMuch):
        return False
    words = done.out.decode(errors="replace").split()
    return done.code == 0 and words[1:] in [[one] for one in _METERED]
