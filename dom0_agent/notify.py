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
    command = ["notify-send", "--app-name=sparsebak", f"--urgency={urgency}", title, text]
    for bus in sorted(RUN.glob("*/bus")):
        try:
            user = pwd.getpwuid(int(bus.parent.name))
        except (KeyError, ValueError):
            continue
        # As that user, by the kernel's calls and no more: runuser and sudo begin a session of PAM,
        # which sets dom0's limits for Qubes' users (memlock), and units may raise none.
        other = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        try:
            done = subprocess.run(
                command,
                check=False,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                timeout=10,
                env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}"},
                **(other if os.getuid() == 0 else {}),  # type: ignore[call-overload]
            )
            shown = shown or done.returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            continue
    return shown
