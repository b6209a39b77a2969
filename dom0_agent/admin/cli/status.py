# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak-agent status``: for each volume and archive the last session, what changed since, and
what snapshots hold.
"""

import argparse
import base64
import hashlib
import json
import time
from typing import Any

from common.text import printable, session_name
from dom0_agent.admin.catalog import ask
from dom0_agent.admin.cli import mib
from dom0_agent.admin.held import held
from dom0_agent.admin.leftovers import orphans
from dom0_agent.config import Config, Volume, load
from dom0_agent.keyring import Keyring
from dom0_agent.sources import Source, Sources
from dom0_agent.tracking.state import State, VolumeState, changed_since, known_volumes
from wire.status import Refused


def add_to(commands: Any) -> None:
    """Declare the command."""
    status = commands.add_parser(
        "status",
        help="show snapshots, and how far each archive is behind",
        description=(
            "Shows for each volume how old its snapshot is and how much space it holds, and for"
            " each archive the last session and how much has changed since."
        ),
    )
    status.add_argument(
        "--head",
        action="store_true",
        help="print a short fingerprint of each archive's newest state, to write down",
    )
    status.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    config = load(options.config)
    labels = {archive.id.hex(): archive.label for archive in Keyring(config.state_dir).readable()}
    if options.head:
        return _heads(config, labels)
    catalog, sources = ask(config), Sources(config.state_dir)
    volumes = list(catalog.volumes())
    with sources.together(volumes):
        found = [_volume(config, volume, sources.open(volume), labels) for volume in volumes]
    left = [(one.name, len(one.state.snapshots())) for one in orphans(config.state_dir, catalog)]
    if options.json:
        print(
            json.dumps(
                {
                    "volumes": found,
                    "orphans": [
                        dict(zip(("volume", "snapshots"), one, strict=True)) for one in left
                    ],
                }
            )
        )
        return 0
    for volume in found:
        print(
            f"{volume['qube']}/{volume['volume']}:"
            f" {printable(volume['error'] or mib(volume['size']))}{_snapshots(volume)}"
        )
        for archive in volume["archives"]:
            last = f"last session {archive['session']}" if archive["session"] else "no session yet"
            pending = ", a session pending" if archive["pending"] else ""
            print(
                f"    {archive['label']}: {last}, changed since: {mib(archive['changed'])}{pending}"
            )
    for name, snapshots in left:
        print(f"{name}: not backed up any more{_held(snapshots)}; to drop what is kept of it:")
        print(f"    sparsebak-agent forget {name}")
    return 0


def _held(snapshots: int) -> str:
    return f", {snapshots} snapshot{'s' if snapshots > 1 else ''}" if snapshots else ""


def _heads(config: Config, labels: dict[str, str]) -> int:
    """Of what dom0 knows as newest: who takes the archive over elsewhere sees whether it is all
    there and no older.
    """
    for archive_id, label in labels.items():
        digest, count, newest = hashlib.blake2b(digest_size=10), 0, 0
        for identity, name in known_volumes(config.state_dir):
            progress = VolumeState(config.state_dir, identity, name).load().follows.get(archive_id)
            if progress is not None and progress.committed is not None:
                digest.update(f"{identity}/{name}\0{progress.committed.digest}\0".encode())
                count, newest = count + 1, max(newest, progress.committed.time)
        letters = base64.b32encode(digest.digest()).decode()
        groups = "-".join(letters[at : at + 4] for at in range(0, len(letters), 4))
        print(
            f"{label}: {groups}  {count} volumes, newest session"
            f" {session_name(newest) if count else 'none'}"
        )
    return 0


def _snapshots(volume: dict[str, Any]) -> str:
    if not volume["snapshots"]:
        return ", not followed" if not volume["error"] else ""
    age = f", {_age(volume['age'])} old" if volume["age"] is not None else ""
    number = "snapshot" if volume["snapshots"] == 1 else f"{volume['snapshots']} snapshots"
    return f", {number}{age} holding {mib(volume['held'])}"


def _age(seconds: int) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s"
    return f"{seconds} seconds"


def _volume(
    config: Config, volume: Volume, source: Source, labels: dict[str, str]
) -> dict[str, Any]:
    store = VolumeState.of(config.state_dir, volume)
    error, size, snapshots, space = None, 0, 0, 0
    try:
        size = source.live_size()
        snapshots, space = len(source.snapshots()), held(source)
    except Refused as refused:
        error = str(refused)
    try:
        state = store.load()
    except Refused as refused:
        error, state = error or str(refused), State()
    archives = [
        {
            "label": labels.get(archive_id, archive_id),
            "session": session_name(progress.committed.time) if progress.committed else None,
            "changed": changed_since(store, progress, size),
            "pending": progress.pending is not None,
        }
        for archive_id, progress in state.follows.items()
    ]
    age = max(0, int(time.time()) - state.base_time) if state.base is not None else None
    names = {"qube": volume.qube, "volume": volume.volume, "size": size, "error": error}
    return {**names, "snapshots": snapshots, "age": age, "held": space, "archives": archives}
