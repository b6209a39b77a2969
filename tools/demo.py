# SPDX-License-Identifier: GPL-2.0-or-later
"""Shows sparsebak at work on a disk image: ``make demo``. On Btrfs by a loop mount when root, on
plain files otherwise.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

BIN = Path(sys.executable).parent
MIB = 1 << 20


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    print(f"  $ {' '.join([Path(words[0]).name, *words[1:]])}", flush=True)
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    took = time.monotonic() - start
    for line in (done.stdout + done.stderr).splitlines():
        print(f"    {line}")
    if done.returncode:
        sys.exit(f"demo: {words[0]} failed with exit code {done.returncode}")
    print(f"    ({took:.2f} s)", flush=True)


def digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def write_some(image: Path, places: int, size: int, seed: int) -> None:
    rng = random.Random(seed)
    with open(image, "r+b") as file:
        length = os.fstat(file.fileno()).st_size
        for _ in range(places):
            file.seek(rng.randrange(0, length - size) // 4096 * 4096)
            file.write(rng.randbytes(size // 2) + b"sparsebak " * (size // 20))


def main(mib: int = 200) -> None:
    """``mib``: how much to write into the image."""
    work = Path(tempfile.mkdtemp(prefix="sparsebak-demo-"))
    pool, mounted = work / "pool", False
    pool.mkdir()
    try:
        mounted = mount_btrfs(work / "btrfs.img", pool)
        demo(work, pool, "reflink" if mounted else "file", mib)
    finally:
        if mounted:
            subprocess.run(["umount", pool], check=False)
        shutil.rmtree(work, ignore_errors=True)


def mount_btrfs(image: Path, pool: Path) -> bool:
    if os.geteuid() != 0:
        return False
    with suppress(OSError, subprocess.CalledProcessError):
        with open(image, "wb") as file:
            file.truncate(2 << 30)
        subprocess.run(["mkfs.btrfs", "-q", image], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", image, pool], check=True, capture_output=True)
        return True
    return False


def demo(work: Path, pool: Path, driver: str, mib: int) -> None:
    image, archive, config = pool / "work.img", work / "laptop.sparsebak", work / "agent.toml"
    passphrase, restored = work / "passphrase", work / "restored.img"
    passphrase.write_text("correct horse battery staple\n")
    config.write_text(
        f'state_dir = "{work}/dom0"\n'
        f'[[pool]]\nname = "demo"\ndriver = "{driver}"\npath = "{pool}"\n'
        '[[volume]]\nqube = "work"\nvolume = "private"\npool = "demo"\nvid = "work.img"\n'
    )
    os.environ |= {"SPARSEBAK_AGENT": f"local:{config}", "SPARSEBAK_ARCHIVE": str(archive)}
    agent, sparsebak = [BIN / "sparsebak-agent", "--config", config], [BIN / "sparsebak", "-v"]

    size = 5 * mib
    say(f"A sparse disk image of {size} MiB with {mib} MiB in it, on the source '{driver}'")
    with open(image, "wb") as file:
        file.truncate(size * MIB)
    write_some(image, 2 * mib, MIB // 2, 1)

    say("dom0 makes the archive's key, the backup VM the archive")
    run(
        *agent, "archive", "add", "laptop", "--caller", "backup-vm", "--passphrase-file", passphrase
    )
    run(*sparsebak, "init", archive, "--label", "laptop")

    say("First backup: only what is allocated is read; chunks leave dom0 sealed")
    first = digest(image)
    run(*sparsebak, "backup")

    say(f"{mib // 10} MiB change; the second backup finds them in the storage's own metadata")
    write_some(image, mib // 5, MIB // 2, 2)
    second = digest(image)
    run(*sparsebak, "backup")
    run(*sparsebak, "list", "work/private")

    say("Prove the second session authentic and remove the first; the second stays complete")
    run(*sparsebak, "verify")
    run(*sparsebak, "prune", "work", "--keep-last", "1", "--min-age", "0d")

    say("An accident, and the way back")
    write_some(image, mib, MIB // 2, 3)
    run(*sparsebak, "restore", "--yes", "work/private")
    same = digest(image) == second != first
    print(
        "    restored volume against the image at the second backup:"
        f" {'identical' if same else 'DIFFERENT'}"
    )

    say("Emergency: a raw image from the archive and the passphrase alone, without dom0")
    run(*sparsebak, "assemble", "work/private", "--passphrase-file", passphrase, "-o", restored)
    same = same and digest(restored) == second
    print(
        "    assembled image against the image at the second backup:"
        f" {'identical' if same else 'DIFFERENT'}"
    )
    run(*sparsebak, "status")
    if not same:
        sys.exit("demo: what came back is not what was backed up")
    say("Every bit came back.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
