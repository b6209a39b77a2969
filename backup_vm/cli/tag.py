# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak tag``: tags and a note on sessions; sessions can be named by tag, and kept by it."""

import argparse
from typing import Any

from backup_vm.cli.context import Context
from backup_vm.cli.options import key_option, session_option


def add_to(commands: Any) -> None:
    """Declare the command."""
    tag = commands.add_parser(
        "tag",
        help="put tags and a note on a session; they are stored in clear",
        description=(
            "Puts tags and a note on a session, or takes them off. They are stored in clear."
        ),
    )
    tag.add_argument("volume", metavar="QUBE[/VOLUME]", help="a volume, or all of a qube")
    session_option(tag)
    tag.add_argument(
        "--add", action="append", default=[], metavar="TAG", help="put this on; can be repeated"
    )
    tag.add_argument(
        "--remove",
        action="append",
        default=[],
        metavar="TAG",
        help="take this off; can be repeated",
    )
    tag.add_argument("--note", metavar="TEXT", help="a line of text; an empty one removes it")
    key_option(tag)
    tag.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from backup_vm.archive import notes
    from backup_vm.errors import UsageError
    from backup_vm.volumes import Chosen

    context = Context(options)
    added, removed = (
        {notes.parse_tag(tag) for tag in tags} for tags in (options.add, options.remove)
    )
    text = None if options.note is None else notes.parse_note(options.note)
    if not added and not removed and text is None:
        raise UsageError("nothing to do", "give --add, --remove or --note")
    with context.contents() as contents:
        chosen = [
            Chosen(contents, volume, contents.find(volume, options.session))
            for volume in contents.select(options.volume)
        ]

        def change(all_notes: notes.Notes) -> None:
            for one in chosen:
                session = one.session.clear.session
                old = all_notes.of(session)
                all_notes.sessions[session.hex()] = notes.Note(
                    (old.tags | added) - removed, old.text if text is None else text
                )

        after = notes.change(contents.archive.storage, change)
    data, lines = [], []
    for one in chosen:
        note = after.of(one.session.clear.session)
        tags = sorted(note.tags)
        data.append({**one.data(), "tags": tags, "note": note.text})
        said = f"{', '.join(tags) or 'no tags'}{note.text and f'; {note.text}'}"
        lines.append(f"{one.volume.name} {one.session.name}: {said}")
    context.done({"sessions": data}, *lines)
    return 0
