# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a side with a clock around each stage: ``python -m bench.profiled SIDE FILE ARGUMENT...``;
adds JSON to FILE.

A side is ``agent`` (a resident one, each call by itself), ``monitor`` (a command of dom0's
administrator) or ``vm``.

Seconds are those of all threads together; what one stage spends within another is counted in the
inner one only.
"""

import functools
import importlib
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

STARTED = time.time()
STAGES = {
    "agent": {
        "snapshot, delta": [
            "dom0_agent.tracking.rotation:Rotation.unchanged",
            "dom0_agent.tracking.rotation:Rotation.rotate",
            "dom0_agent.tracking.rotation:Rotation.finish",
        ],
        "read": ["dom0_agent.rpc.extraction:Extraction._read"],
        "hash": ["wire.chunks:ChunkIds.of"],
        "compress, seal": ["wire.chunks:Sealer.seal"],
        "open, expand": ["wire.chunks:Opener.open"],
        "root": ["dom0_agent.rpc.extraction:Extraction._root", "wire.merkle:Tree.page"],
        "pipe": [
            "dom0_agent.rpc.streams:PatientWriter.write",
            "dom0_agent.rpc.streams:PatientReader.read",
        ],
        "write image": [
            "common.image_writer:ImageWriter.write",
            "common.image_writer:ImageWriter.sync",
        ],
        "state": [
            "common.durable:replace",
            "dom0_agent.tracking.pending_log:PendingLog.append",
            "dom0_agent.tracking.pending_log:PendingLog.sync",
        ],
    },
    "vm": {
        "wait for the agent": ["backup_vm.agent.call:read_exactly"],
        "hash": ["wire.chunks:ChunkIds.of"],
        "open, expand": ["wire.chunks:Opener.open"],
        "store": ["backup_vm.archive.packs:NewPack.add"],
        "read packs": ["backup_vm.archive.packs:PackReader.read"],
        "index": [
            f"backup_vm.archive.catalog:ChunkCatalog.{name}"
            for name in ("has", "add_all", "commit", "places", "lacking", "set_meta")
        ],
        "fsync": ["backup_vm.archive.storage.files:LocalNewFile.finish"],
        "partial": ["backup_vm.archive.partial:Partial.append"],
        "write image": [
            "common.image_writer:ImageWriter.write",
            "common.image_writer:ImageWriter.sync",
        ],
        "open archive": ["backup_vm.archive.opening:_recover"],
    },
}
_spent: dict[str, float] = defaultdict(float)
_stack = threading.local()


def _clocked(stage: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def timed(*rest: Any, **named: Any) -> Any:
        outer = getattr(_stack, "inner", None)
        _stack.inner = 0.0
        start = time.perf_counter()
        try:
            return original(*rest, **named)
        finally:
            took = time.perf_counter() - start
            _spent[stage] += took - _stack.inner
            if outer is not None:
                _stack.inner = outer + took
            else:
                _stack.inner = None

    return timed


def _install(side: str) -> None:
    for stage, places in STAGES[side].items():
        for place in places:
            module_name, _, path = place.partition(":")
            target: Any = importlib.import_module(module_name)
            *parents, name = path.split(".")
            for parent in parents:
                target = getattr(target, parent)
            setattr(target, name, _clocked(stage, getattr(target, name)))


def _tell(side: str, file: str, begun: float) -> None:
    with open(file, "a") as out:
        out.write(
            json.dumps({"side": side, "wall": time.time() - begun, "stages": dict(_spent)}) + "\n"
        )


def main(side: str, file: str, *arguments: str) -> int:
    """Run it."""
    _install("vm" if side == "vm" else "agent")
    if side != "agent":
        run = importlib.import_module(
            "backup_vm.cli" if side == "vm" else "dom0_agent.admin.cli"
        ).main
        begun = time.time()
        _spent["start, imports"] = begun - STARTED
        code: int = run(list(arguments))
        _tell("vm" if side == "vm" else "agent", file, begun)
        return code
    from dom0_agent.admin.cli import main as agent
    from dom0_agent.rpc import resident

    original = resident._answer

    def call(*rest: Any) -> int:
        begun = time.time()
        _spent.clear()
        code = original(*rest)
        _tell(side, file, begun)
        return code

    resident._answer = call  # type: ignore[assignment]
    return agent(list(arguments))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
