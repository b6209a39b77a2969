# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak init``: make an archive whose key was created in dom0."""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import given, retention_option
from backup_vm.errors import AgentError
from common.existing import exists
from wire import CHUNK_SIZES, FORMAT
from wire.chunks import SUITES
from wire.messages import MODE_OPEN
from wire.names import BadName, parse_name

if TYPE_CHECKING:
    from backup_vm.archive.parameters import Parameters


def add_to(commands: Any) -> None:
    """Declare the command."""
    init = commands.add_parser(
        "init",
        help="make an archive whose key was created in dom0",
        description=(
            "Makes an archive in an empty folder or at a URL. Its key is created in dom0 first, by:"
            " sparsebak-agent archive add LABEL --caller QUBE"
        ),
    )
    init.add_argument(
        "directory",
        type=given,
        metavar="DIR",
        help="an empty folder, or a URL: s3://BUCKET/PATH, sftp://USER@HOST/PATH, gs://, az://",
    )
    init.add_argument("--label", required=True, metavar="LABEL", help="the label given in dom0")
    init.add_argument(
        "--repair",
        action="store_true",
        help="write a lost or damaged archive.toml again, from what dom0 knows",
    )
    init.add_argument(
        "--default",
        action="store_true",
        help="write it into the settings file, as the archive of all commands",
    )
    retention_option(
        init, "in an S3-compatible store: what was stored cannot be removed by any key for TIME"
    )
    init.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive.opening import create_archive

    context = Context(options, makes_settings=options.default)
    place = context.location(options.directory)
    parameters = _as_dom0_made_it(context)
    if options.default:  # before the archive is made, which nothing undoes
        _settings_to_make(context, place)
    if options.repair:
        parameters = _repair(place, parameters)
    elif not create_archive(place, parameters):
        context.say(
            f"{place} cannot create a file under a condition: of runs that begin there at one"
            " moment the one that is older by the store's clock waits for the others to withdraw."
        )
    _advise(context, parameters)
    if options.default:
        context.say(f"{_make_default(context, place)} names it now.")
    _tell(context, place, parameters)
    return 0


def _as_dom0_made_it(context: Context) -> "Parameters":
    """What dom0 tells of the archive of that label; raise UsageError or AgentError."""
    from backup_vm.archive.parameters import Parameters
    from backup_vm.errors import UsageError

    try:
        label = parse_name(context.options.label, "label")
    except BadName as error:
        raise UsageError(str(error)) from None
    entry, slots, _ = context.agent().enroll(label)
    if (
        entry.format != FORMAT
        or entry.chunk_size not in CHUNK_SIZES
        or entry.suite not in SUITES
        or len(slots) != entry.slots
    ):
        raise AgentError(
            "the agent's archive is of a kind this version does not know",
            "use the same version on both sides",
        )
    return Parameters(
        archive=entry.archive,
        label=label,
        suite=entry.suite,
        chunk_size=entry.chunk_size,
        created=entry.created,
        slots=tuple(slots),
        master=entry.key if entry.mode == MODE_OPEN else None,
        retention=context.options.retention or 0,
    )


def _tell(context: Context, place: str, parameters: "Parameters") -> None:
    from backup_vm.quantities import days_text

    retention, chunks = parameters.retention, parameters.chunk_size >> 10
    data = {"archive": place, "id": parameters.archive.hex(), "mode": parameters.mode}
    lines = [f"Archive {parameters.label} in {place}, {parameters.mode}, chunks of {chunks} KiB."]
    if retention:
        lines.append(f"Nobody can remove what is stored there for {days_text(retention)}.")
    context.done({**data, "retention": retention}, *lines)


def _repair(place: str, parameters: "Parameters") -> "Parameters":
    """Write archive.toml again; returns what it says now. A retention that it has is kept, and can
    only be made longer.
    """
    from backup_vm.archive import holding
    from backup_vm.archive.parameters import load
    from backup_vm.archive.storage import open_storage
    from backup_vm.errors import SparsebakError

    storage, before = open_storage(place), 0
    _check_same_archive(storage, parameters.archive)
    with suppress(SparsebakError):  # it is lost or damaged, which is what this is for
        before = load(storage).retention
    parameters = parameters._replace(retention=max(parameters.retention, before))
    if parameters.retention:
        holding.require(storage, parameters.retention)
    parameters.save(storage)
    return parameters


def _advise(context: Context, parameters: "Parameters") -> None:
    """Say so while the archive is empty when its chunks are small for what dom0 lists."""
    from backup_vm.jobs.doctor import of_chunk_size

    with suppress(AgentError):  # whoever has no volumes yet, or may not see them, has an archive
        size = sum(volume.size for volume in context.agent().list())
        for finding in of_chunk_size(parameters, size):
            context.warn(f"{finding.what} ({finding.remedy})")


def _make_default(context: Context, place: str) -> Path:
    """Name the archive in the settings file, and the disk it is on as one that must be
    mounted.
    """
    from backup_vm.archive.storage import is_remote
    from backup_vm.terminal.output import whole_file

    file, place = _settings_to_make(context, place)
    lines = [f"archive = {_quoted(place)}"]
    mount = next(
        folder
        for folder in (Path(place), *Path(place).parents)
        if is_remote(place) or folder.is_mount()
    )
    # where these are the nearest mount, the archive is on no disk of its own
    if not is_remote(place) and str(mount) not in ("/", "/home", "/rw", "/tmp"):  # noqa: S108
        lines.append(f"require_mount = {_quoted(str(mount))}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as out:
        out.write(("\n".join(lines) + "\n").encode())
    return file


def _settings_to_make(context: Context, place: str) -> tuple[Path, str]:
    """The settings file that --default writes, and the archive's place as it stands there; raise
    SparsebakError.
    """
    from backup_vm.archive.storage import is_remote
    from backup_vm.errors import SparsebakError, UsageError

    file = context.settings_file()
    if file is None:
        raise UsageError("there is no home folder for the settings", "name a file with --config")
    place = place if is_remote(place) else str(Path(place).resolve())
    if not place.isprintable():
        raise UsageError(f"{place}: settings cannot hold this name", "leave --default out")
    if exists(file):
        raise SparsebakError(f"{file} exists already", f"write into it: archive = {_quoted(place)}")
    return file, place


def _quoted(text: str) -> str:
    """A printable text as settings have it: JSON writes letters beyond the first plane of Unicode
    as pairs of escapes, which TOML forbids.
    """
    return json.dumps(text, ensure_ascii=False)


def _check_same_archive(storage: Any, archive: bytes) -> None:
    """The packs there are must belong to the archive that dom0 tells of: one that is sound says so,
    for this is for an archive of which anything may be damaged.
    """
    from backup_vm.archive.naming import packs_in
    from backup_vm.archive.packs import SUFFIX, read_index
    from backup_vm.errors import DamagedError, NoArchiveError

    packs, problem = packs_in(storage.names("packs", SUFFIX)), None
    if not packs:
        raise NoArchiveError(
            f"{storage.describe()} has no packs to repair an archive from", "leave --repair out"
        )
    for name in packs:
        try:
            read_index(storage, name, archive)
        except DamagedError as error:
            problem = problem or error
        else:
            return
    if problem is not None:
        raise problem
