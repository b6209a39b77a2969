"""``make bench``: every step of every tool and the machine's limits on the same data, in one run; kept in bench/results/."""

import argparse
import datetime
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import workload
from bench.measure import Measured, run
from bench.tools import installed, size_of

STEPS = ("full", "100 MiB", "2 MiB", "nothing", "monitor", "assemble", "restore", "verify", "prune")


@contextmanager
def pool_on_btrfs(work: Path) -> Iterator[Path]:
    """A Btrfs of its own in a file, for the image; everything else lies on the file system of the work folder."""
    if os.geteuid() != 0:
        sys.exit("bench: needs root to mount a Btrfs by loop")
    image, pool = work / "btrfs.img", work / "pool"
    with open(image, "wb") as file:
        file.truncate(14 << 30)
    subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
    pool.mkdir()
    subprocess.run(["mount", "-o", "loop", image, pool], check=True)
    try:
        subvolume = pool / "volumes"  # Wyng wants a subvolume; to the others it is a folder
        subprocess.run(["btrfs", "-q", "subvolume", "create", subvolume], check=True)
        yield subvolume
    finally:
        subprocess.run(["umount", pool], check=False)


def limits(image: Path, work: Path) -> dict[str, Measured]:
    """What the machine itself needs for the same data, warm: packed without its holes first."""
    packed, target = work / "packed", work / "copied"
    with open(image, "rb") as source, open(packed, "wb") as out:
        at = 0
        size = os.fstat(source.fileno()).st_size
        while at < size:
            try:
                data = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(source.fileno(), data, os.SEEK_HOLE)
            os.lseek(source.fileno(), data, os.SEEK_SET)
            left = at - data
            while left:
                block = source.read(min(left, 1 << 20))
                out.write(block)
                left -= len(block)
            source.seek(at)
    hashing = "import hashlib,sys;hashlib.file_digest(open(sys.argv[1],'rb'),'blake2b')"
    found = {
        "zstd -3 -T2": run(["zstd", "-q", "-f", "-3", "-T2", packed, "-o", work / "packed.zst"]),
        "BLAKE2b, one thread": run([sys.executable, "-c", hashing, packed]),
        "plain copy": run(["cp", packed, target]),
        "zstd -d": run(["zstd", "-q", "-f", "-d", work / "packed.zst", "-o", target]),
    }
    for path in (packed, target, work / "packed.zst"):
        path.unlink()
    return found


def steps(tool: object, image: Path, work: Path, results: dict[str, list[Measured]]) -> None:
    """One round of all steps with one tool."""

    def note(step: str, measured: Measured | None) -> None:
        if measured is not None:
            results.setdefault(step, []).append(measured)

    t: object = tool
    backup: Callable[[], Measured] = t.backup  # type: ignore[attr-defined]
    note("full", backup())
    for step, total, places in (("100 MiB", 100 << 20, 2000), ("2 MiB", 2 << 20, 40)):
        workload.change(image, total, places, len(results))
        note(step, backup())
    note("nothing", backup())
    note("monitor", t.monitor())  # type: ignore[attr-defined]
    wanted = _digest(image)
    target = work / "assembled"
    note("assemble", t.assemble(target))  # type: ignore[attr-defined]
    got = target if target.is_file() else next(path for path in target.rglob("image"))
    if _digest(got) != wanted:
        sys.exit(f"bench: what {type(tool).__name__} gave back is not what it was given")
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    note("verify", t.verify())  # type: ignore[attr-defined]
    note("prune", t.prune())  # type: ignore[attr-defined]
    note("restore", t.restore())  # type: ignore[attr-defined]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


Results = dict[str, dict[str, list[Measured]]]


def machine() -> str:
    """One line on what this was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown processor")
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"


def report(limit: dict[str, Measured], results: Results, sizes: dict[str, tuple[float, int]]) -> str:
    """The table, in Markdown."""
    names = list(results)
    zstd = limit["zstd -3 -T2"].wall
    lines = [
        f"# {datetime.date.today()}: {machine()}",
        "",
        "Image of 8 GiB with 3 GiB in it on Btrfs, archive on the work folder's file system. sparsebak sealed, every call a",
        "process of its own, forked by a resident agent (sparsebak-files: started anew). Median wall seconds; in brackets",
        "processor seconds and MiB of memory of the largest process that is not the agent's.",
        "",
        "| limit | wall s | cpu s |",
        "|---|---|---|",
        *(f"| {name} | {m.wall:.2f} | {m.cpu:.2f} |" for name, m in limit.items()),
        "",
        "| work | " + " | ".join(names) + " | sparsebak / zstd -3 -T2 |",
        "|---|" + "---|" * (len(names) + 1),
    ]
    for step in STEPS:
        ours = statistics.median(one.wall for one in results[names[0]].get(step, [Measured(0, 0, 0)]))
        cells = " | ".join(_cell(results[name].get(step, [])) for name in names)
        lines.append(f"| {step} | {cells} | {ours / zstd:.2f} |")
    stored = (f"{name} {size:,.0f} MiB in {count} files" for name, (size, count) in sizes.items())
    lines += ["", "After all steps: " + "; ".join(stored)]
    return "\n".join(lines) + "\n"


def _cell(runs: list[Measured]) -> str:
    if not runs:
        return "-"
    wall, cpu = statistics.median(one.wall for one in runs), statistics.median(one.cpu for one in runs)
    return f"{wall:.2f} ({cpu:.1f}, {max(one.memory for one in runs):.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of every tool; medians are shown")
    parser.add_argument("--only", action="append", help="only this tool; may be given again")
    parser.add_argument("--content", type=int, default=workload.CONTENT >> 20, help="MiB in the image")
    parser.add_argument("--work", type=Path, help="folder to work in (default: the temporary one)")
    parser.add_argument("--no-write", action="store_true", help="do not keep the result in bench/results/")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="sparsebak-bench-", dir=options.work))
    try:
        with pool_on_btrfs(work) as pool:
            original = pool / "original"
            subprocess.run([sys.executable, "-m", "bench.workload", original, str(options.content)], check=True)
            limit = limits(original, work)
            results: Results = {}
            sizes: dict[str, tuple[float, int]] = {}
            for number in range(options.rounds):
                for kind in installed():
                    if options.only and kind.name not in options.only:
                        continue
                    folder = work / f"{kind.name}-{number}"
                    folder.mkdir()
                    subprocess.run(["cp", "--reflink=always", original, pool / "image"], check=True)
                    subprocess.run(["sync"], check=True)
                    try:
                        tool = kind(pool, folder)
                        steps(tool, pool / "image", work, results.setdefault(kind.name, {}))
                        sizes[kind.name] = size_of(tool)
                        getattr(tool, "close", lambda: None)()
                    except RuntimeError as error:  # of a peer: the others are measured all the same
                        print(f"{kind.name}: left out: {' '.join(str(error).split())[-300:]}", flush=True)
                        results.pop(kind.name, None)
                    else:
                        print(f"{kind.name}: round {number + 1} done", flush=True)
                    shutil.rmtree(folder)
                    shutil.rmtree(pool / ".sparsebak", ignore_errors=True)
            text = report(limit, results, sizes)
            print(text)
            if not options.no_write:
                folder = Path(__file__).parent / "results"
                folder.mkdir(exist_ok=True)
                (folder / f"{datetime.date.today()}.md").write_text(text)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
