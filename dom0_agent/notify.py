# SPDX-License-Identifier: GPL-2.0-or-later
"""A notification on dom0's desktop, for whoever is logged in. No text from a qube is in it but
checked names.
"""

import os
import pwd
import subprocess
from pathlib import Path
from subprocess import DEVNULL

RUN = Path("/run/user")


def notify(title: str, text: str, urgent: bool = False) -> bool:
    """Show it on every session with a message bus; False when there is none. Never fails."""
    shown = False
    urgency = "critical" if urgent else "normal"
    for bus in sorted(RUN.glob("*/bus")):
        try:
            user = pwd.getpwuid(int(bus.parent.name)).pw_name
        except (KeyError, ValueError):
            continue
        command = ["notify-send", "--app-name=sparsebak", f"--urgency={urgency}", title, text]
        if os.getuid() == 0:
            command = [
                "runuser",
                "-u",
                user,
                "--",
                "env",
                f"DBUS_SESSION_BUS_ADDRESS=unix:path={bus}",
                *command,
            ]
        try:
            done = subprocess.run(command, check=False, stdout=DEVNULL, stderr=DEVNULL, timeout=10)
            shown = shown or done.returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            continue
    return shown
