# SPDX-License-Identifier: GPL-2.0-or-later
"""Starts a service: ``python3 -I dom0_agent/rpc SERVICE``, from the tree or from the package's own
directory.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from dom0_agent.rpc.dispatch import main

    sys.exit(main(sys.argv[1:]))
