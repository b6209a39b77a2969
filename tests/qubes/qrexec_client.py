# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for qrexec-client-vm and the policy behind it: ``qrexec_client.py SETTINGS.json TARGET
SERVICE[+ARGUMENT]``.

It keeps qrexec's rules: characters outside the allowed ones become ``_``, a target that does not
exist is @default, the policy decides (``ask`` is answered as SETTINGS says, and noted), 126 is a
refusal and 127 a missing service, the service's stdin and stdout are sockets, and what it writes to
stderr does not come back.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from tests.qubes import policy  # noqa: E402

SOURCE = "backup-vm"
"""Who calls, unless the settings have another ``source``."""
OURS = (ROOT / "qubes-rpc", ROOT / "qubes-vm/rpc")
"""Services of dom0 and of the backup VM; in the latter ``sparsebak`` of the settings is run."""


def main(settings_path: str, target: str, call: str) -> int:
    settings = json.loads(Path(settings_path).read_text())
    source = settings.get("source", SOURCE)
    service, _, argument = call.partition("+")
    argument = re.sub(r"[^A-Za-z0-9_.+-]", "_", argument)
    tags = policy.tags_of(settings["qubesd"])
    target = policy.intended(target, tags)
    action = policy.decide(
        policy.read(ROOT / "policy/80-sparsebak.policy"), tags, service, argument, source, target
    )
    with open(settings["log"], "a") as log:
        log.write(f"{action} {target} {call}\n")
    if action == "deny" or (action == "ask" and not settings["yes"]):
        return 126
    file = next((folder / service for folder in OURS if (folder / service).exists()), None)
    return 127 if file is None else run(settings, file, argument, target, source)


def run(settings: dict[str, str], file: Path, argument: str, target: str, source: str) -> int:
    environment = {
        "PATH": os.environ["PATH"],
        "QREXEC_REMOTE_DOMAIN": source,
        "QREXEC_SERVICE_ARGUMENT": argument,
    }
    if target.startswith("@"):
        environment |= {
            "QREXEC_REQUESTED_TARGET_TYPE": "keyword",
            "QREXEC_REQUESTED_TARGET_KEYWORD": target[1:],
        }
    else:
        environment |= {"QREXEC_REQUESTED_TARGET_TYPE": "name", "QREXEC_REQUESTED_TARGET": target}
    environment |= {
        "SPARSEBAK_AGENT_CONFIG": settings["config"],
        "SPARSEBAK_LIB": str(ROOT),
        "SPARSEBAK_PYTHON": settings["python"],
        "SPARSEBAK": settings.get("sparsebak", ""),
    }
    return relay([str(file), *([argument] if argument else [])], environment)


def relay(command: list[str], environment: dict[str, str], folder: str | None = None) -> int:
    """Run a service whose stdin and stdout are sockets, which lead to ours; its exit code."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=environment, cwd=folder
    )
    theirs.close()

    def send() -> None:
        while part := os.read(0, 1 << 16):
            try:
                ours.sendall(part)
            except OSError:
                return
        ours.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    while part := ours.recv(1 << 16):
        os.write(1, part)
    return process.wait()


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    os._exit(code)
