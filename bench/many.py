# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench.many``: runs over many volumes in which nothing, or little, changed; with a
resident agent and without.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

from bench.__main__ import pool_on_btrfs
from bench.measure import run
from bench.tools import BIN, serve

MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.many")
    parser.add_argument("--volumes", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir=options.work))
    with pool_on_btrfs(work) as pool:
        config, names = work / "agent.toml", [f"qube{number}" for number in range(options.volumes)]
        lines = [
            f'state_dir = "{work}/dom0"\n[[pool]]\nname = "p"\ndriver = "reflink"\npath = "{pool}"'
        ]
        for name in names:
            lines.append(
                f'[[volume]]\nqube = "{name}"\nvolume = "private"\npool = "p"\nvid = "{name}.img"'
            )
            with open(pool / f"{name}.img", "wb") as file:
                file.truncate(2 << 30)
                file.write(os.urandom(4 * MIB))
        config.write_text("\n".join(lines) + "\n")
        (work / "pw").write_text("bench\n")
        agent: list[str | Path] = [BIN / "sparsebak-agent", "--config", config]
        run([*agent, "archive", "add", "bench", "--caller", "vm", "--passphrase-file", work / "pw"])
        process = serve(agent, work)
        for kind, where in (
            ("resident", f"unix:{work}/sockets"),
            ("service files", f"local:{config}"),
        ):
            tool: list[str | Path] = [
                BIN / "sparsebak",
                "--agent",
                where,
                "--archive",
                work / "archive",
            ]
            if kind == "resident":
                run([*tool, "init", work / "archive", "--label", "bench"])
                run([*tool, "backup"])
            for what, changed in (("nothing changed", 0), ("64 KiB changed in each", 1)):
                walls = []
                for _ in range(options.rounds):
                    for name in names if changed else ():
                        with open(pool / f"{name}.img", "r+b") as file:
                            file.write(os.urandom(64 << 10))
                            os.fsync(file.fileno())
                    walls.append(run([*tool, "backup"]).wall)
                print(
                    f"{options.volumes} volumes, {kind}, {what}: {statistics.median(walls):.2f} s",
                    flush=True,
                )
        walls = [run([*agent, "monitor"]).wall for _ in range(options.rounds)]
        print(f"{options.volumes} volumes, monitor: {statistics.median(walls):.2f} s")
        process.terminate()
    subprocess.run(["rm", "-rf", work], check=True)


if __name__ == "__main__":
    main()
