# SPDX-License-Identifier: GPL-2.0-or-later
"""``sparsebak doctor``: look at the whole chain and say what to do."""

import argparse
from typing import TYPE_CHECKING, Any

from backup_vm.cli.context import Context
from backup_vm.errors import Exit
from common.existing import exists

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backup_vm.jobs.doctor import Finding

_MARKS = {"ok": "ok  ", "warn": "note", "bad": "BAD "}


def add_to(commands: Any) -> None:
    """Declare the command."""
    doctor = commands.add_parser(
        "doctor",
        help="check settings, mount, archive, keys, policy, agent and timer; say what to do",
        description=(
            "Looks at the whole chain from this machine to dom0, and says what to do about what it"
            " finds."
        ),
    )
    doctor.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command. Exit code 1 when something is bad."""
    context = Context(options)
    findings = list(_look(context))
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.state]} {finding.what}")
        if finding.state != "ok" and finding.remedy:
            lines.append(f"       {finding.remedy}")
    data = [
        {
            "state": finding.state,
            "what": finding.what,
            "remedy": finding.remedy,
            "work": finding.work,
            "topic": finding.topic,
        }
        for finding in findings
    ]
    context.result({"findings": data}, "\n".join(lines))
    return Exit.FAILED if any(finding.state == "bad" for finding in findings) else Exit.OK


def _look(context: Context) -> "Iterator[Finding]":
    from backup_vm.errors import SparsebakError
    from backup_vm.jobs import doctor

    file = context.settings_file()
    known = file is not None and exists(file)
    yield doctor.Finding(
        doctor.GOOD,
        f"settings: {file}" if known else "no settings file; options and environment are used",
    )
    try:
        with context.open() as archive:
            yield from doctor.of_archive(archive)
            if context.has_agent():
                agent = context.agent(archive)
                yield from doctor.about("agent", doctor.of_agent(agent, archive))
                agent.close()
            else:
                yield doctor.Finding(
                    doctor.BAD,
                    "no agent was named, and there is no qrexec here",
                    "use --agent local:AGENT.TOML",
                )
    except SparsebakError as error:
        yield doctor.Finding(doctor.BAD, str(error), error.hint)
    yield from doctor.about("timer", doctor.of_timer())
