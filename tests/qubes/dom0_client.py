# SPDX-License-Identifier: GPL-2.0-or-later
"""A stand-in for dom0's qrexec-client: ``dom0_client.py SETTINGS.json -d QUBE [-e] [-t] [-T] [-w N]
USER:QUBESRPC SERVICE dom0``.

In a qube whose number of a process SETTINGS has, a service is a program in one of its ``folders``,
or the command of qubes.VMExec and qubes.VMExecGUI; in the backup VM only the latter, of sparsebak.
127 is a missing service; what a service writes to stderr does not come back. What is called is
noted.
"""

import getopt
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.qubes.qrexec_client import relay  # noqa: E402
from tests.system.guest.qrexec import from_vmexec  # noqa: E402


def main(settings_path: str, *words: str) -> int:
    settings = json.loads(Path(settings_path).read_text())
    options, (command,) = getopt.getopt(words, "d:etTw:")
    qube, (user, _, call) = dict(options)["-d"], command.partition(":QUBESRPC ")
    service, _, argument = call.removesuffix(" dom0").partition("+")
    with open(settings["log"], "a") as log:
        log.write(f"dom0 {qube} {user} {service} {argument}\n")
    found = find(settings, service, argument)
    if found is None:
        return 127
    process = settings["qubes"].get(qube)
    if process is None:
        program, *rest = found
        assert program == "sparsebak"
        found = [settings["sparsebak"], *rest]
    else:
        found = ["nsenter", f"--target={process}", "--mount", "--pid", *found]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SPARSEBAK": settings["program"]}
    return relay(found, environment, "/")


def find(settings: dict[str, list[str]], service: str, argument: str) -> list[str] | None:
    if service in ("qubes.VMExec", "qubes.VMExecGUI"):
        return [from_vmexec(part) for part in argument.split("+")]
    places = [Path(folder, service) for folder in settings["folders"]]
    return next(([str(path), argument] for path in places if path.exists()), None)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    os._exit(code)
