# SPDX-License-Identifier: GPL-2.0-or-later
"""The root that both machines begin with: Debian, made once and kept under ``build/system``.

Debian's name and the packages are in the folder's name, so that a change of either makes another.
SPARSEBAK_SUITE names another Debian: ``SPARSEBAK_SUITE=trixie make test-system``.
"""

import hashlib
import os
import subprocess
from pathlib import Path

from tools.roots import made, reaching

ROOT = Path(__file__).parent.parent.parent
BUILD = ROOT / "build" / "system"
SUITE = os.environ.get("SPARSEBAK_SUITE", "bookworm")
PACKAGES = (
    "systemd-sysv dbus-user-session libpam-systemd sudo libnotify-bin python3-jeepney rpm"
    " btrfs-progs zstd python3-cryptography python3-zstandard python3-construct python3-numpy"
    " python3-xxhash python3-rich python3-aiohttp fuse3 fdisk cryptsetup-bin"
)
"""An init, a desktop's bus, what dom0 has besides, what our packages need, and what they use."""
USER = "user"
SETUP = f"""
useradd --uid 1000 --create-home --shell /bin/bash {USER}
groupadd --system qubes
usermod --append --groups qubes {USER}
echo '{USER} ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/qubes
mkdir -p /var/lib/systemd/linger
touch /var/lib/systemd/linger/{USER}
systemctl mask systemd-resolved systemd-networkd systemd-timesyncd console-getty
rm -f /etc/machine-id
apt-get clean
"""
"""The user as Qubes has it in dom0 and in qubes, with a session that is always there."""


def base() -> Path:
    """The root, made if it is not there yet: about forty seconds."""
    named = hashlib.sha256(f"{SUITE} {PACKAGES} {SETUP}".encode()).hexdigest()[:8]
    root = BUILD / f"{SUITE}-{named}"
    if root.exists():
        return root
    BUILD.mkdir(parents=True, exist_ok=True)
    new = root.with_suffix(".making")
    subprocess.run(["rm", "-rf", new], check=True)
    with open(BUILD / "root.log", "w") as log:
        made(SUITE, new, "ca-certificates", log.fileno())
        reaching(new, log.fileno())
        install = "DEBIAN_FRONTEND=noninteractive apt-get -qy -o APT::Install-Recommends=false"
        for command in (f"{install} install {PACKAGES}", SETUP):
            subprocess.run(
                ["chroot", new, "sh", "-euc", command], check=True, stdout=log, stderr=log
            )
    new.rename(root)
    return root
