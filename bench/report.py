# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a run, in Markdown."""

import datetime
import statistics
from collections.abc import Sequence

from bench.limits import HASHES, verifying
from bench.measure import Measured

Results = dict[str, dict[str, list[Measured]]]
LimitRuns = dict[str, list[Measured]]


def wall(runs: Sequence[Measured]) -> float:
    """Median seconds; not a number where there is none."""
    return statistics.median(one.wall for one in runs) if runs else float("nan")


def _cell(runs: Sequence[Measured]) -> str:
    if not runs:
        return "-"
    cpu, memory = statistics.median(one.cpu for one in runs), max(one.together for one in runs)
    return f"{wall(runs):.2f} ({cpu:.1f}, {memory:.0f})"


def report(
    machine: str,
    versions: Sequence[str],
    limit: LimitRuns,
    results: Results,
    sizes: dict[str, tuple[float, int]],
) -> str:
    """What everything took, and how that compares with the limits and with what is aimed at."""
    names = list(results)
    steps = list(results[names[0]])
    rounds = len(limit["zstd -3 -T2"])
    lines = [
        f"# {datetime.date.today()}: {machine}",
        "",
        "Image of 8 GiB with 3 GiB in it on Btrfs, archive on the work folder's file system.",
        f"Median wall seconds of {rounds} rounds, in which the tools take turns step by step;",
        "archives that are read as a whole are in the page cache.",
        "In brackets: processor seconds of all processes, and MiB that they had at once at most.",
        "sparsebak is sealed; a resident agent forks a process for each call, with sparsebak-files",
        "each call starts a program. borg and wyng are not encrypted, the others are.",
        "borg2-map is given what changed: the time to find it is not in its figures.",
        f"Versions: {', '.join(versions)}.",
        "",
        "| limit | wall s | cpu s |",
        "|---|---|---|",
        *(
            f"| {name} | {wall(runs):.2f} | {statistics.median(one.cpu for one in runs):.2f} |"
            for name, runs in limit.items()
        ),
        "",
        "| work | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(
            f"| {step} | " + " | ".join(_cell(results[name].get(step, [])) for name in names) + " |"
            for step in steps
        ),
        "",
        "After all steps: "
        + "; ".join(
            f"{name} {size:,.0f} MiB in {count} files" for name, (size, count) in sizes.items()
        ),
        "",
    ]
    return "\n".join(lines + _aims(limit, results, sizes)) + "\n"


def _aims(limit: LimitRuns, results: Results, sizes: dict[str, tuple[float, int]]) -> list[str]:
    """What is aimed at, what was reached, and how many times longer the others took."""
    if not results.get("sparsebak"):
        return []
    ours = {step: wall(runs) for step, runs in results["sparsebak"].items()}
    rows = _reached(ours, limit, results["sparsebak"])
    if "borg" in sizes:
        rows.append(("size", "1.02x of borg's", f"{sizes['sparsebak'][0] / sizes['borg'][0]:.3f}x"))
    peers = [name for name in results if not name.startswith("sparsebak")]
    lines = [
        "How that compares: what is aimed at, and how many times longer each of the others takes.",
        "",
        _row("work", "aim", "sparsebak", *peers),
        "|---|---|---|" + "---|" * len(peers),
    ]
    for step, aim, reached in rows:
        theirs = (results[name].get(step, []) for name in peers)
        times = (
            f"{wall(runs) / ours[step]:.1f}x" if runs and step in ours else "-" for runs in theirs
        )
        lines.append(_row(step, aim, reached, *times))
    for what, of in (
        ("processor seconds of a full backup", _spent),
        ("MiB of all processes at once", _at_once),
    ):
        here = of(results["sparsebak"])
        times = (f"{of(results[name]) / here:.1f}x" for name in peers)
        lines.append(_row(what, "less than each", f"{here:.1f}", *times))
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _reached(
    ours: dict[str, float], limit: LimitRuns, runs_of: dict[str, list[Measured]]
) -> list[tuple[str, str, str]]:
    """Work, aim, and what was reached. ``ours``: median seconds by step, of ``runs_of``."""
    zstd, copy = wall(limit["zstd -3 -T2"]), wall(limit["plain copy"]) + wall(limit["zstd -d"])
    bare = min(wall(limit[verifying(name)]) for name in HASHES)
    keyed = max(one.memory for one in runs_of["assemble"])
    most = max(one.memory for step, runs in runs_of.items() if step != "assemble" for one in runs)
    agent = max((one.agent for runs in runs_of.values() for one in runs), default=0)
    return [
        ("full", "1.4x of zstd -3 -T2", f"{ours['full'] / zstd:.2f}x"),
        ("100 MiB", "1 s", f"{ours['100 MiB']:.2f} s"),
        ("2 MiB", "0.35 s", f"{ours['2 MiB']:.2f} s"),
        ("nothing", "0.15 s", f"{ours['nothing']:.2f} s"),
        ("monitor", "0.15 s", f"{ours['monitor']:.2f} s"),
        ("assemble", "2x of plain copy and zstd -d", f"{ours['assemble'] / copy:.2f}x"),
        ("restore", "2x of plain copy and zstd -d", f"{ours['restore'] / copy:.2f}x"),
        ("restore 100 MiB", "2 s", f"{ours['restore 100 MiB'] / ours['restore']:.2f}x of all"),
        ("verify", "1.5x of reading, decompressing and hashing", f"{ours['verify'] / bare:.2f}x"),
        ("prune", "0.2 s", f"{ours['prune']:.2f} s"),
        ("memory, manager", "120 MB", f"{most:.0f} MiB"),
        ("the same, with the passphrase", "120 MB", f"{keyed:.0f} MiB"),
        ("memory, agent", "80 MB", f"{agent:.0f} MiB"),
    ]


def _spent(steps: dict[str, list[Measured]]) -> float:
    return statistics.median(one.cpu for one in steps["full"])


def _at_once(steps: dict[str, list[Measured]]) -> float:
    return max(one.together for runs in steps.values() for one in runs)
