# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands share: settings, the archive, the agent, keys, questions, and how results are
printed.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backup_vm.config import load as load_config
from backup_vm.config import settings_file
from backup_vm.errors import (
    AgentError,
    NoArchiveError,
    SparsebakError,
    UsageError,
)
from backup_vm.paths import QREXEC_CLIENT, expanded
from backup_vm.terminal import output
from backup_vm.terminal.text import count_text, journal_prefix
from common.existing import exists
from common.text import printable

if TYPE_CHECKING:
    from backup_vm.agent.client import Agent
    from backup_vm.archive.archive import Archive
    from backup_vm.archive.sessions import Session
    from backup_vm.terminal.progress import Progress
    from backup_vm.unsealing import AnyKeys
    from backup_vm.volumes import Chosen, Contents, Named
    from wire.chunks import Keys
    from wire.messages import VolumeEntry


class Context:
    """One command's surroundings, from options, environment and settings, in this order of
    precedence.
    """

    def __init__(self, options: argparse.Namespace, makes_settings: bool = False) -> None:
        self.options = options
        self.config = load_config(options.config, to_come=makes_settings)
        self.json = bool(options.json)
        self.quiet = options.talk == "quiet"
        """Whether to print nothing but errors and what was asked for."""
        watched = _is_terminal(sys.stdout)
        seen = watched or _is_terminal(sys.stderr)
        self.may_ask = _is_terminal(sys.stdin) and seen and not options.unattended
        """Whether there is somebody to ask, who would see the question."""
        self.talks = not self.quiet and not self.json and (watched or options.talk == "verbose")
        """Whether to say what was done: on a terminal, or with -v."""

    def setting(self, name: str, variable: str = "") -> str | None:
        """What an option says, else a variable of the environment, else the settings."""
        given = (
            getattr(self.options, name)
            or (os.environ.get(variable) if variable else None)
            or self.config.texts.get(name)
        )
        return expanded(str(given)) if given else None

    def settings_file(self) -> Path | None:
        """Where settings are read from; None for a user without a home."""
        return settings_file(self.options.config)

    def location(self, given: str | None = None) -> str:
        """The archive's directory or URL, after checking that what must be mounted is."""
        mount = self.setting("require_mount")
        # A link to a mount point does for one, as everywhere else.
        if mount is not None and not os.path.ismount(os.path.realpath(mount)):
            raise SparsebakError(
                f"{mount} is not mounted", "attach and mount the backup disk, then try again"
            )
        path = expanded(given) if given else self.setting("archive", "SPARSEBAK_ARCHIVE")
        if path is None:
            raise NoArchiveError("no archive was named", "use --archive DIR or SPARSEBAK_ARCHIVE")
        if self.options.as_of is None:
            return path
        if given:
            raise UsageError(
                f"--as-of is for an archive that is read, and {given} is not", "leave it out"
            )
        from backup_vm.archive.storage import as_it_was

        return as_it_was(path, self.options.as_of)

    @contextmanager
    def open(self, writing: bool | None = False) -> Iterator["Archive"]:
        """The archive, locked, see open_in_time; what was mended on the way is reported at
        the end.
        """
        from backup_vm.archive.turn import open_in_time

        with open_in_time(self.location(), writing, self.options, self.warn) as archive:
            try:
                yield archive
            finally:
                for warning in archive.warnings:
                    self.warn(warning)

    def limit_rate(self, archive: "Archive") -> None:
        """Keep to the limit that --limit-rate or the settings name, if they do."""
        from backup_vm.rate import Rate, parse_rate

        limit: int | None = self.options.limit_rate
        if limit is None and "limit_rate" in self.config.texts:
            limit = parse_rate(self.config.texts["limit_rate"])
        if limit is not None:
            archive.storage.rate = Rate(limit)

    def asked(self, name: str) -> bool:
        """Whether an option that is on or off was given, or the settings have it on."""
        return bool(getattr(self.options, name)) or name in self.config.switches

    def require_good_moment(self) -> None:
        """Raise NotNowError on battery or a metered link, where options or settings say to wait."""
        if self.asked("not_on_battery") or self.asked("not_metered"):
            from backup_vm import surroundings

            if self.asked("not_on_battery"):
                surroundings.require_mains()
            if self.asked("not_metered"):
                surroundings.require_unmetered()

    def has_archive(self) -> bool:
        """Whether an archive was named."""
        return self.setting("archive", "SPARSEBAK_ARCHIVE") is not None

    def has_agent(self) -> bool:
        """Whether an agent was named, or is to be expected on this machine."""
        return self.setting("agent", "SPARSEBAK_AGENT") is not None or exists(QREXEC_CLIENT)

    def dom0_asks(self) -> bool:
        """Whether qrexec's policy is between here and the agent: then dom0 asks before anything
        is overwritten.
        """
        return (self.setting("agent", "SPARSEBAK_AGENT") or "qrexec") == "qrexec"

    def agent(self, archive: "Archive | None" = None) -> "Agent":
        """The agent, for an archive."""
        from backup_vm.agent.client import Agent
        from backup_vm.agent.transport import open_transport

        if not self.has_agent():
            raise AgentError(
                "no agent was named", "use --agent local:AGENT.TOML or SPARSEBAK_AGENT"
            )
        kind, colon, where = (self.setting("agent", "SPARSEBAK_AGENT") or "qrexec").partition(":")
        transport = open_transport(
            f"{kind}{colon}{expanded(where)}", self.setting("caller") or "dom0"
        )
        agent = Agent(transport)
        if archive is not None:
            agent.use(archive.parameters.archive, archive.parameters.chunk_size)
        return agent

    def keys(self, archive: "Archive", needed: bool = False) -> "Keys | None":
        """The archive's keys: in open mode, or with --passphrase-file, or where they are ``needed``
        as typed on the terminal; None in a sealed archive without one. Raise WrongKeyError.
        """
        file: Path | None = getattr(self.options, "passphrase_file", None)
        from backup_vm.unsealing import read_passphrase, typed_passphrase

        keys = archive.parameters.keys(None if file is None else read_passphrase(file))
        if keys is None and needed and self.may_ask:
            return archive.parameters.keys(typed_passphrase())
        return keys

    @contextmanager
    def contents(self, writing: bool = False, needs_key: bool = False) -> Iterator["Contents"]:
        """The archive, open, and its volumes, with their names if the key or the agent tells them.

        Raises WrongKeyError where the key is needed, and neither here nor typed.
        """
        from backup_vm.volumes import Contents, needed, stored_volumes

        with self.open(writing) as archive:
            keys = self._any_keys(archive, needs_key)
            if needs_key:
                needed(keys)
            told = {} if keys is not None else self._told_names(archive)
            contents = Contents(archive, keys, stored_volumes(archive, keys, told))
            for lacking in contents.not_there():
                text = f"{lacking}, which the grant is for, is not in the archive, or damaged"
                if not contents.volumes:
                    raise SparsebakError(text, "see: sparsebak list, and sparsebak scrub")
                self.warn(text)
            yield contents

    def _any_keys(self, archive: "Archive", needed: bool) -> "AnyKeys | None":
        """The grant, with --grant, else as ``keys``."""
        file: Path | None = getattr(self.options, "grant", None)
        if file is None:
            return self.keys(archive, needed)
        from backup_vm.unsealing import read_grant

        return read_grant(file, archive.parameters.archive)

    @contextmanager
    def session(self, needs_key: bool = False) -> Iterator["Chosen"]:
        """The session that ``--session`` names, of the one volume that the command line names, in
        an archive that is open to read.
        """
        from backup_vm.volumes import Chosen

        with self.contents(needs_key=needs_key) as contents:
            volume = contents.one(self.options.volume)
            session = contents.find(volume, self.options.session)
            self.warn_spoilt(contents, [(volume, session)])
            yield Chosen(contents, volume, session)

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator["Progress"]:
        """A bar, where somebody watches, for a piece of work of ``total`` bytes; without it whoever
        does the work begins it.
        """
        progress = self.bar(what)
        if total is not None:
            progress.start(total)
        try:
            yield progress
        finally:
            progress.stop()

    def bar(self, what: str) -> "Progress":
        """The bar itself, for what begins and ends it by itself."""
        from backup_vm.terminal.progress import progress_for

        return progress_for(what, self.quiet or self.json, self.options.progress_fd)

    def listed(self, archive: "Archive") -> "tuple[list[VolumeEntry], AgentError | None]":
        """What dom0 lists, or nothing where there is no agent or it could not be asked, and then
        why.
        """
        if self.has_agent():
            try:
                return self.agent(archive).list(), None
            except AgentError as error:
                return [], error
        return [], None

    def _told_names(self, archive: "Archive") -> dict[str, tuple[str, str]]:
        entries, failed = self.listed(archive)
        if failed is not None:
            self.warn(f"cannot get volume names from dom0: {failed}")
        return {entry.volume_id.hex(): (entry.qube, entry.volume) for entry in entries}

    def confirm(self, question: str) -> None:
        """Ask before something is destroyed that cannot be had back, unless --yes was given.

        Raises SparsebakError if the answer is not yes, or if nobody is there to give one.
        """
        self.must_have_word(question)
        if not self.options.yes:
            self._ask(question)

    def must_have_word(self, question: str) -> None:
        """Raise SparsebakError at once where ``confirm`` would have neither --yes nor anybody to
        ask.
        """
        if not self.options.yes and not self.may_ask:
            raise SparsebakError(
                f"there is nobody to ask: {question}", "give --yes to do it without a question"
            )

    def confirm_by_hand(self, question: str) -> None:
        """The same for what was described by rules, which say enough where nobody is there: ask
        only a person.
        """
        if self.may_ask and not self.options.yes:
            self._ask(question)

    def _ask(self, question: str) -> None:
        output.ask(f"{printable(question)} [y/N] ")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise SparsebakError("nothing was changed")

    def warn(self, text: str) -> None:
        """Report something that does not stop the command."""
        output.complain(f"{journal_prefix(4)}sparsebak: {printable(text)}")

    def warn_spoilt(self, contents: "Contents", chosen: "Iterable[tuple[Named, Session]]") -> None:
        """Report, before anything is done with them, which sessions are known not to be whole."""
        for line in contents.spoilt(chosen):
            self.warn(line)

    def warn_unread(self, contents: "Contents", volumes: "Iterable[Named]") -> bool:
        """Report session files of these volumes that cannot be read, where all sessions were asked
        for; whether there are any.
        """
        lines = [line for volume in volumes for line in contents.unread(volume)]
        for line in lines:
            self.warn(line)
        return bool(lines)

    def warn_removed(self, sessions: list[str]) -> None:
        """Report in one line that another machine removed these sessions before they were read."""
        if sessions:
            names = ", ".join(sessions[:3]) + (" ..." if len(sessions) > 3 else "")
            what = count_text(len(sessions), "session")
            self.warn(f"{what} removed by another machine before being read: {names}")

    def say(self, text: str) -> None:
        """Report what was done, to whoever watches."""
        if self.talks:
            output.put(_printable_lines(text))

    def result(self, data: Mapping[str, Any], text: str) -> None:
        """Print what was asked for: as data with --json, else as text, whoever watches."""
        if self.json:
            self._put(data)
        else:
            output.put(_printable_lines(text))

    def done(self, data: Mapping[str, Any], *lines: str) -> None:
        """Report what was done: as data with --json, else in lines to whoever watches; without
        lines where all was said on the way.
        """
        if self.json:
            self._put(data)
            return
        for line in lines:
            self.say(line)

    def _put(self, data: Mapping[str, Any]) -> None:
        import json

        output.put(json.dumps(data))


def _printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _is_terminal(stream: Any) -> bool:
    """Whether a standard stream is one; it can be closed, and is None then."""
    return stream is not None and bool(stream.isatty())
