# SPDX-License-Identifier: GPL-2.0-or-later
"""Many power cuts: ``python -m tests.powercut [ARCHIVE [DOM0 [DRIVER]]] [--cuts N | --all] [--seed
N] [--full]``; see ``make powercut``.

``--full`` has the archive's disk full, and runs what makes room there. ``--without-sync`` has the
commands sync nothing, to see that it is noticed.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.conftest import in_memory
from tests.own_mounts import own_mounts
from tests.powercut.campaign import FILE_SYSTEMS, Campaign, clean, small
from tests.powercut.full import FullDisk, full_operations
from tests.powercut.operations import more_operations


def main() -> int:
    """Run one campaign; the exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.powercut")
    parser.add_argument("archive", nargs="?", default="ext4", choices=FILE_SYSTEMS)
    parser.add_argument("dom0", nargs="?", default="ext4", choices=FILE_SYSTEMS)
    parser.add_argument("driver", nargs="?", default="file", choices=("file", "reflink"))
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--all", action="store_true", help="at every flush, and as often between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--without-sync", action="store_true")
    options = parser.parse_args()
    small()
    own_mounts()
    with tempfile.TemporaryDirectory() as temporary:
        folder = in_memory(Path(temporary) / "powercut")
        campaign = (FullDisk if options.full else Campaign)(
            folder, (options.archive, options.dom0), options.driver, seed=options.seed
        )
        real = os.fsync
        try:
            if options.without_sync:
                os.fsync = lambda fd: None
            campaign.record(full_operations if options.full else more_operations)
            os.fsync = real
            cuts = campaign.cut(None if options.all else options.cuts)
        finally:
            campaign.unmount()
            clean(folder)
    for problem in campaign.problems:
        print(problem)
    print(f"{cuts} power cuts, {len(campaign.problems)} problems")
    return int(bool(campaign.problems))


if __name__ == "__main__":
    sys.exit(main())
