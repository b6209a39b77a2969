"""``sparsebak-agent forget``: stop following a volume, drop its snapshots and what dom0 remembers of it."""

import argparse
import shutil
from typing import Any

from dom0_agent.catalog import open_catalog
from dom0_agent.cli import UserError
from dom0_agent.config import load
from dom0_agent.sources import Sources
from dom0_agent.state import Store
from wire.names import parse_volume_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    forget = commands.add_parser("forget", help="drop a volume's snapshots and state; its next backup is a full one")
    forget.add_argument("volume", metavar="QUBE/VOLUME")
    forget.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    qube, name = parse_volume_name(options.volume)
    store = Store(config.state_dir, qube, name)
    volume = open_catalog(config).find(qube, name)
    if volume is None and not store.directory.is_dir():
        raise UserError(f"nothing is known of {options.volume}")
    with store.locked():
        (store.directory / "state.json").unlink(missing_ok=True)
        if volume is not None:
            source = Sources(config.state_dir).open(volume)
            with source.together():
                for number in source.snapshots():
                    source.drop(number)
        shutil.rmtree(store.directory)
    return 0
