"""``sparsebak-agent status``: for each volume and archive the last session, what changed since, and what snapshots hold."""

import argparse
import json
from typing import Any

from dom0_agent.archives import Archives
from dom0_agent.catalog import open_catalog
from dom0_agent.config import Config, Volume, load
from dom0_agent.rotation import changed_since
from dom0_agent.sources import open_source
from dom0_agent.state import Store
from wire.names import session_name
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    status = commands.add_parser("status", help="show what is followed, and how far behind its archives are")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    labels = {archive.id.hex(): archive.label for archive in Archives(config.state_dir)}
    found = [_volume(config, volume, labels) for volume in open_catalog(config).volumes()]
    if options.json:
        print(json.dumps({"volumes": found}))
        return 0
    for volume in found:
        size = volume["error"] or f"{_mib(volume['size'])}, snapshots {volume['snapshots']} holding {_mib(volume['held'])}"
        print(f"{volume['qube']}/{volume['volume']}: {size}")
        for archive in volume["archives"]:
            last = archive["session"] or "no session yet"
            pending = ", a session pending" if archive["pending"] else ""
            print(f"    {archive['label']}: {last}, changed since: {_mib(archive['changed'])}{pending}")
    return 0


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB"


def _volume(config: Config, volume: Volume, labels: dict[str, str]) -> dict[str, Any]:
    source, store = open_source(volume), Store(config.state_dir, volume.qube, volume.volume)
    error, size = None, 0
    try:
        size = source.live_size()
    except Refused as refused:
        error = str(refused)
    archives = [
        {
            "label": labels.get(key, key),
            "session": session_name(follow.committed.time) if follow.committed else None,
            "changed": changed_since(store, follow, size),
            "pending": follow.pending is not None,
        }
        for key, follow in store.load().follows.items()
    ]
    numbers = source.snapshots()
    names = {"qube": volume.qube, "volume": volume.volume, "size": size, "error": error}
    return {**names, "snapshots": len(numbers), "held": source.held(), "archives": archives}
