# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent import-ini FILE``: a configuration for the original sparsebak's
``sparsebak.ini``.

``[var]`` has vgname, poolname, destvm (``qubes://VM``, ``ssh://USER@HOST`` or ``internal:``),
destmountpoint, destdir; ``[volumes]`` lines such as ``vm-work-private = enable``.
"""

import argparse
import configparser
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.durable import make_directory, replace
from common.existing import exists
from common.text import printable
from dom0_agent.admin.cli import UserError
from dom0_agent.config import ConfigError, load
from wire.names import BadName, parse_name

LIMIT = 1 << 20
"""Bytes of such a file, at most."""
_QUBES = Path("/etc/qubes-release")
_OF_A_QUBE = re.compile(r"vm-(.+)-(private|root)")


def add_to(commands: Any) -> None:
    """Declare the command."""
    command = commands.add_parser(
        "import-ini",
        help="convert the original sparsebak's sparsebak.ini into an agent.toml",
        description=(
            "Converts the sparsebak.ini of the original sparsebak into an agent.toml, and says what"
            " comes next."
        ),
    )
    command.add_argument("file", type=Path, metavar="FILE", help="the sparsebak.ini")
    command.add_argument(
        "-o",
        "--output",
        type=lambda text: None if text == "-" else Path(text),
        metavar="AGENT.TOML",
        help="the file to write (default, and -: standard output)",
    )
    command.add_argument(
        "--catalog",
        choices=("qubes", "static"),
        help="where volumes come from (default: qubes on Qubes OS, else static)",
    )
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    ini = configparser.ConfigParser(interpolation=None)
    ini.optionxform = str  # type: ignore[assignment,method-assign]  # names of volumes are as they are written
    try:
        with open(options.file, "rb") as file:
            raw = file.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise UserError(f"{options.file} is too long to be a sparsebak.ini")
        ini.read_string(raw.decode("utf-8-sig"), source=str(options.file))
        var, volumes = ini["var"], dict(ini["volumes"])
        group, pool = var["vgname"], var["poolname"]
        if not (isinstance(group, str) and isinstance(pool, str)):
            raise KeyError("vgname and poolname need values")
    except (configparser.Error, KeyError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f"{options.file} is no sparsebak.ini: {text}; it needs [var] vgname, poolname and"
            " [volumes]"
        ) from None
    for name, word in volumes.items():
        if word not in ("enable", "disable"):
            raise UserError(
                f"{options.file}: volume {name} is to be 'enable' or 'disable', not {word!r}"
            )
    on_qubes = options.catalog == "qubes" or (options.catalog is None and exists(_QUBES))
    text = _for_qubes(volumes) if on_qubes else _static(group, pool, volumes)
    _write(text, options.output)
    for step in _next_steps(var):
        print(printable(step), file=sys.stderr)
    return 0


def _write(text: str, output: Path | None) -> None:
    """Write the configuration, which must be one that can be read, and never over another."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / "agent.toml"
        trial.write_text(text, encoding="utf-8")
        try:
            load(trial)
        except ConfigError as error:
            raise UserError(
                f"the file gives no configuration: {str(error).removeprefix(f'{trial}: ')}"
            ) from None
    if output is None:
        print(text, end="")
        return
    if os.path.lexists(output):
        raise UserError(f"{output} exists; name another file")
    make_directory(output.parent)
    replace(output, text.encode())


def _name_of(volume: str) -> tuple[str, str]:
    """Qube and volume of a logical volume: ``vm-work-private`` is work's private one; any other is
    one of dom0's.
    """
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


def _quoted(text: str) -> str:
    """A text as TOML has it: as JSON, except what JSON writes as two escapes."""
    return json.dumps(text, ensure_ascii=False)


def _static(group: str, pool: str, volumes: dict[str, str]) -> str:
    lines = [
        'state_dir = "/var/lib/sparsebak"',
        "",
        "[[pool]]",
        'name = "pool"',
        'driver = "lvm_thin"',
    ]
    lines += [f"volume_group = {_quoted(group)}", f"thin_pool = {_quoted(pool)}"]
    for name, word in volumes.items():
        qube, volume = _name_of(name)
        entry = [
            "[[volume]]",
            f'qube = "{qube}"',
            f'volume = "{volume}"',
            'pool = "pool"',
            f"vid = {_quoted(name)}",
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
