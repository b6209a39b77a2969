"""``sparsebak-agent import-ini FILE``: a configuration for the original sparsebak's ``sparsebak.ini``.

``[var]`` has vgname, poolname, destvm (``qubes://VM``, ``ssh://USER@HOST`` or ``internal:``), destmountpoint, destdir;
``[volumes]`` lines such as ``vm-work-private = enable``.
"""

import argparse
import configparser
import json
import re
import sys
from pathlib import Path
from typing import Any

from dom0_agent.cli import UserError
from dom0_agent.config import load
from wire.names import BadName, parse_name

_QUBES = Path("/etc/qubes-release")
_OF_A_QUBE = re.compile(r"vm-(.+)-(private|root)")


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "import-ini", help="make a configuration from the original sparsebak's sparsebak.ini"
    )
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument(
        "-o", "--output", type=Path, metavar="AGENT.TOML", help="default: standard output"
    )
    command.add_argument(
        "--catalog", choices=("qubes", "static"), help="default: qubes on Qubes OS, else static"
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    ini = configparser.ConfigParser(interpolation=None)
    ini.optionxform = str  # type: ignore[assignment,method-assign]  # names of volumes are as they are written
    try:
        with open(options.file, encoding="utf-8") as file:
            ini.read_file(file)
        var, volumes = ini["var"], dict(ini["volumes"])
        group, pool = var["vgname"], var["poolname"]
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{options.file} is no sparsebak.ini: {text}; it needs [var] vgname, poolname and [volumes]"
        ) from None
    for name, word in volumes.items():
        if word not in ("enable", "disable"):
            raise UserError(
                f"{options.file}: volume {name} is to be 'enable' or 'disable', not {word!r}"
            )
    on_qubes = options.catalog == "qubes" or (options.catalog is None and _QUBES.exists())
    text = _for_qubes(volumes) if on_qubes else _static(group, pool, volumes)
    _write(text, options.output)
    print("\n".join(_next_steps(var)), file=sys.stderr)
    return 0


def _write(text: str, output: Path | None) -> None:
    if output is None:
        print(text, end="")
        return
    if output.exists():
        raise UserError(f"{output} exists; name another file")
    output.write_text(text)
    load(output)  # what it says must be right; else it is told


def _name_of(volume: str) -> tuple[str, str]:
    """Qube and volume of a logical volume: ``vm-work-private`` is work's private one; any other is one of dom0's."""
    found = _OF_A_QUBE.fullmatch(volume)
    qube, name = (found[1], found[2]) if found else ("dom0", volume)
    try:
        return parse_name(qube, "qube"), parse_name(name, "volume")
    except BadName as error:
        raise UserError(str(error)) from None


def _for_qubes(volumes: dict[str, str]) -> str:
    lines = ['state_dir = "/var/lib/sparsebak"', 'catalog = "qubes"', "", "[qubes]"]
    included = sorted(
        {_name_of(name)[0] for name, word in volumes.items() if word == "enable"} - {"dom0"}
    )
    excluded = sorted(
        {_name_of(name)[0] for name, word in volumes.items() if word == "disable"}
        - {"dom0", *included}
    )
    return "\n".join(
        [*lines, f"include = {json.dumps(included)}", f"exclude = {json.dumps(excluded)}", ""]
    )


def _static(group: str, pool: str, volumes: dict[str, str]) -> str:
    lines = [
        'state_dir = "/var/lib/sparsebak"',
        "",
        "[[pool]]",
        'name = "pool"',
        'driver = "lvm_thin"',
    ]
    lines += [f"volume_group = {json.dumps(group)}", f"thin_pool = {json.dumps(pool)}"]
    for name, word in volumes.items():
        qube, volume = _name_of(name)
        entry = [
            "[[volume]]",
            f'qube = "{qube}"',
            f'volume = "{volume}"',
            'pool = "pool"',
            f"vid = {json.dumps(name)}",
        ]
        lines += ["", *(entry if word == "enable" else (f"# {line}" for line in entry))]
    return "\n".join([*lines, ""])


def _next_steps(var: configparser.SectionProxy) -> list[str]:
    """What the ini said of the destination, as commands of today."""
    kind, _, where = var.get("destvm", "internal:").partition(":")
    mount, folder = var.get("destmountpoint", "").rstrip("/"), var.get("destdir", "").strip("/")
    place = f"{mount}/{folder}/sparsebak.archive".replace("//", "/")
    caller = where.lstrip("/") if kind == "qubes" else "dom0"
    steps = [f"Next, here: sparsebak-agent archive add main --caller {caller}"]
    if kind == "ssh":
        place = f"sftp://{where.lstrip('/')}{place}"
    steps.append(f"Then in {caller}: sparsebak init {place} --label main")
    if mount and kind != "ssh":
        steps.append(f'and in ~/.config/sparsebak/config.toml there: require_mount = "{mount}"')
    return steps
