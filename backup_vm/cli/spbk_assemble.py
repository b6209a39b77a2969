# SPDX-License-Identifier: GPL-2.0-or-later
"""``spbk-assemble``: the original sparsebak's way to make an image of a volume's folder, on
archives of today.

``spbk-assemble [-c] PATH``, where PATH is a volume's folder in an archive, ``ARCHIVE/volumes/ID``,
or ``ARCHIVE/QUBE/VOLUME``, or an archive with one volume. With ``-c`` everything is checked and
nothing is written.
"""

import argparse
import sys
from pathlib import Path

from backup_vm import cli, failures
from backup_vm.cli.options import key_option, path, session_option
from backup_vm.errors import Exit
from backup_vm.terminal import output
from common.existing import is_dir, is_file
from common.memory import keep_out_of_cores
from common.parser import PLAIN
from common.text import printable


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="spbk-assemble", description="Makes a raw image of a volume in an archive.", **PLAIN
    )
    top.add_argument("-c", "--check", action="store_true", help="only check that it could be made")
    top.add_argument(
        "path",
        type=path,
        metavar="PATH",
        help="ARCHIVE/volumes/ID, ARCHIVE/QUBE/VOLUME, or an archive",
    )
    top.add_argument(
        "-o", "--output", type=path, metavar="IMAGE", help="default: QUBE-VOLUME.img in this folder"
    )
    session_option(top)
    key_option(top)
    return top


def main(argv: list[str] | None = None) -> int:
    """Run it: what it does is done by assemble and verify."""
    if argv is None:
        keep_out_of_cores()
        output.prepare()
    options = parser().parse_args(argv)
    try:
        return _run(options)
    except OSError as error:  # of looking for the archive; what the commands meet they tell
        output.complain(f"spbk-assemble: {printable(failures.text(error))}")
        return Exit.FAILED


def _run(options: argparse.Namespace) -> int:
    folder = options.path.absolute()
    archive = next(
        (one for one in (folder, *folder.parents) if is_file(one / "archive.toml")), None
    )
    if archive is None:
        output.complain(
            f"spbk-assemble: there is no archive at or above {printable(str(options.path))}"
        )
        return Exit.NO_ARCHIVE
    within = folder.relative_to(archive).parts
    volume = within[1] if within[:1] == ("volumes",) and len(within) == 2 else "/".join(within)
    if not volume:
        known = (
            [folder.name for folder in (archive / "volumes").iterdir()]
            if is_dir(archive / "volumes")
            else []
        )
        if len(known) != 1:
            output.complain(
                f"spbk-assemble: {printable(str(archive))} has {len(known)} volumes; name one of"
                " them: ARCHIVE/QUBE/VOLUME"
            )
            return Exit.USAGE
        volume = known[0]
    words = [f"--session={options.session}"]
    if options.passphrase_file:
        words.append(f"--passphrase-file={options.passphrase_file}")
    place = ["--archive", str(archive), "-v"]
    if options.check:
        return cli.main([*place, "verify", *words, "--", volume])
    target = options.output or Path(volume.replace("/", "-") + ".img")
    where = "./-" if str(target) == "-" else str(target)
    return cli.main([*place, "assemble", *words, f"--output={where}", "--", volume])


if __name__ == "__main__":
    sys.exit(main())
