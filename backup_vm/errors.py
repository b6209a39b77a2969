# SPDX-License-Identifier: GPL-2.0-or-later
"""What can go wrong, by class, each with its exit code. The text is one line; the hint says what to
do.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes; docs/exit-codes.md lists them. Where restic has a code for the same thing, it is
    the same.
    """

    OK = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    DAMAGED = 4
    AGENT = 5
    NO_ARCHIVE = 10
    LOCKED = 11
    WRONG_KEY = 12
    NOT_NOW = 13
    """The machine is on battery or a metered link, and was told to wait for better."""
    TOO_MUCH = 14
    """Rules, or a copy's ``--delete``, would remove more at once than the guard lets go."""
    INTERRUPTED = 130
    READER_GONE = 141
    """Standard output was closed by whoever read it: what a program that does not handle SIGPIPE
    ends with.
    """


class SparsebakError(Exception):
    """An error to be reported in one line, with a hint if there is one."""

    code = Exit.FAILED

    def __init__(self, text: str, hint: str = "") -> None:
        super().__init__(text)
        self.hint = hint

    def line(self) -> str:
        """What is wrong, and in brackets what to do."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class UsageError(SparsebakError):
    """The command line asks for something that cannot be."""

    code = Exit.USAGE


class DamagedError(SparsebakError):
    """Something in the archive is not what was written."""

    code = Exit.DAMAGED


class UnreadableError(DamagedError):
    """Something in the archive cannot be read: perhaps only now."""


class AgentError(SparsebakError):
    """The agent refused, or cannot be reached."""

    code = Exit.AGENT


class NoArchiveError(SparsebakError):
    """There is no archive where one was expected."""

    code = Exit.NO_ARCHIVE


class ForbiddenError(SparsebakError):
    """The place where the archive is does not allow what was tried."""


class NoRoomError(SparsebakError):
    """The place where the archive is has no room for more."""

    def __init__(
        self,
        text: str,
        hint: str = "make room there, or have the quota raised, or prune old sessions, or where"
        " that needs room, too, a newest one (prune QUBE/VOLUME --session latest); what was stored"
        " is kept",
    ) -> None:
        super().__init__(text, hint)


class CannotLockError(SparsebakError):
    """The place where the archive is can keep nothing from being removed."""

    def __init__(self) -> None:
        super().__init__(
            "only an S3-compatible store (s3://) can keep files from being removed for a time",
            "name a bucket with object lock, or leave --retention out",
        )


class LockedError(SparsebakError):
    """Another run holds the archive."""

    code = Exit.LOCKED


class RemovedError(LockedError):
    """A session was removed by another machine while it was read: no damage."""

    def __init__(self, session: str) -> None:
        super().__init__(
            f"session {session} was removed by another machine while it was read",
            "run it again; see: sparsebak list",
        )


class NotNowError(SparsebakError):
    """Nothing was done, because the moment is not one to do it in."""

    code = Exit.NOT_NOW


class WrongKeyError(SparsebakError):
    """No key, or one that does not open the archive."""

    code = Exit.WRONG_KEY
