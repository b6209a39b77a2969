# SPDX-License-Identifier: GPL-2.0-or-later
"""Unpacks today's borg, borg 2 and restic for ``make bench-compare``: from Debian's unstable suite,
under ``build/peers``, beside what the machine has and without touching it.

Debian's packages are taken by apt with folders of its own and an empty list of what is installed,
so that it brings the libraries, too. Each program in ``build/peers/bin`` runs by the loader and the
libraries unpacked there. On other systems, and where that fails, what is installed is measured. To
have newer ones, remove ``build/peers``.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).resolve().parent.parent / "build" / "peers"
SUITE = "sid"
PACKAGES = ("borgbackup", "borgbackup2", "restic")
FOLDERS = ("lists/partial", "cache/archives/partial", "parts")
SOURCES = Path("/etc/apt")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
PYTHON = """#!/bin/sh
root='{root}'
PYTHONHOME=$root/usr PYTHONPATH={path}$root/usr/lib/python3/dist-packages exec \\
    "$root"/{loader} --library-path "$root"/{libraries} "$root"/{python} "$root"/usr/bin/{name} "$@"
"""
"""A Python program of another release, run by its own loader."""


def main() -> int:
    if wyng := os.environ.get("WYNG"):
        _for_wyng(wyng)
    if not (BUILD / "bin").exists():
        try:
            _unpack()
        except (OSError, subprocess.CalledProcessError, ValueError) as error:
            print(f"bench-compare: peers as installed here, not today's: {error}", file=sys.stderr)
    return 0


def _for_wyng(program: str) -> None:
    """What Wyng needs that sparsebak does not: gawk, and two packages in the tests' environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "zstd", "pycryptodomex"]
    subprocess.run(pip, check=True)
    if not shutil.which("gawk"):
        print(f"bench-compare: {program} needs gawk: apt-get install gawk", file=sys.stderr)


def _unpack() -> None:
    """Everything into a folder that is renamed when it is whole."""
    new = BUILD.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    for folder in FOLDERS:
        (new / folder).mkdir(parents=True)
    (new / "installed").touch()
    (new / "parts" / "peers.sources").write_text(_sources())
    config = new / "apt.conf"
    config.write_text(
        f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{new}/parts";\n'
        f'Dir::State::Lists "{new}/lists";\nDir::State::status "{new}/installed";\n'
        f'Dir::Cache "{new}/cache";\nAcquire::Check-Valid-Until "false";\n'
        'APT::Sandbox::User "root";\nAPT::Install-Recommends "false";\nDebug::NoLocking "true";\n'
    )
    for command in (["update"], ["--yes", "--download-only", "install", *PACKAGES]):
        subprocess.run(
            ["apt-get", "-q", *command],
            env={**os.environ, "APT_CONFIG": str(config)},
            check=True,
            capture_output=True,
        )
    for package in sorted((new / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, new / "root"], check=True)
    for folder in ("cache", "lists"):
        shutil.rmtree(new / folder)
    _programs(new)
    new.rename(BUILD)


def _sources() -> str:
    """The machine's own source of Debian's packages, of the other suite. ValueError when there is
    none.
    """
    release = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    for path in sorted((SOURCES / "sources.list.d").glob("*.sources")):
        for stanza in path.read_text().split("\n\n"):
            lines = [line for line in stanza.splitlines() if line and not line.startswith("#")]
            suites = next((line for line in lines if line.startswith("Suites:")), "")
            if release in suites.split()[1:]:
                lines[lines.index(suites)] = f"Suites: {SUITE}"
                return "\n".join(lines) + "\n"
    raise ValueError(f"no source of {release or 'Debian'} in {SOURCES}/sources.list.d")


def _programs(new: Path) -> None:
    """Programs that run what is unpacked, from its folder's later place."""
    (new / "bin").mkdir()
    (new / "bin" / "restic").symlink_to("../root/usr/bin/restic")
    versions = (new / "root/usr/bin").glob("python3.*")
    python = next(path for path in versions if path.name.partition(".")[2].isdigit())
    for name in ("borg", "borg2"):
        text = PYTHON.format(
            root=BUILD / "root",
            path="$root/usr/lib/borgbackup2:" if name == "borg2" else "",
            loader=f"{LIBRARIES}/ld-linux-x86-64.so.2",
            libraries=LIBRARIES,
            python=python.relative_to(new / "root"),
            name=name,
        )
        (new / "bin" / name).write_text(text)
        (new / "bin" / name).chmod(0o755)


if __name__ == "__main__":
    sys.exit(main())
