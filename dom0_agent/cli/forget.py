"""``sparsebak-agent forget``: stop following a volume, drop its snapshots and what dom0 remembers of it."""

import argparse
import shutil
from typing import Any

from dom0_agent.catalog import open_catalog
from dom0_agent.cli import UserError
from dom0_agent.config import Config, Volume, load
from dom0_agent.sources import Sources
from dom0_agent.state import Store, known_volumes
from wire.names import parse_volume_name


def add_to(commands: Any) -> None:
    """Declare the command."""
    forget = commands.add_parser(
        "forget", help="drop a volume's snapshots and state; its next backup is a full one"
    )
    forget.add_argument("volume", nargs="?", metavar="QUBE/VOLUME")
    forget.add_argument("--all", action="store_true", help="every volume")
    forget.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    if options.all == (options.volume is not None):
        raise UserError("name a volume, or give --all")
    catalog = open_catalog(config)
    known = set(known_volumes(config.state_dir))
    names = known if options.all else {parse_volume_name(options.volume)}
    for qube, name in sorted(names):
        volume = catalog.find(qube, name, restoring=True)
        if volume is None and (qube, name) not in known:
            raise UserError(f"nothing is known of {qube}/{name}")
        _forget(config, qube, name, volume)
    return 0


def _forget(config: Config, qube: str, name: str, volume: Volume | None) -> None:
    store = Store(config.state_dir, qube, name)
    with store.locked():
        (store.directory / "state.json").unlink(missing_ok=True)
        if volume is not None:
            source = Sources(config.state_dir).open(volume)
            with source.together():
                for number in source.snapshots():
                    source.drop(number)
        shutil.rmtree(store.directory)
