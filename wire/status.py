# SPDX-License-Identifier: GPL-2.0-or-later
"""How a call ends: one fixed code, never text about dom0. The text belongs in dom0's own log."""

from enum import IntEnum


class Code(IntEnum):
    """Result of a call, as sent in the final status frame."""

    OK = 0
    BAD_REQUEST = 1
    DENIED = 2
    NO_ARCHIVE = 3
    NO_VOLUME = 4
    NO_SESSION = 5
    BUSY = 6
    INCOMPLETE = 7
    NO_SPACE = 8
    SOURCE_FAILED = 9
    NOT_AUTHENTIC = 10
    WRONG_VOLUME = 11
    DAMAGED = 12
    INTERNAL = 13
    NOT_HALTED = 14
    OLDER = 15
    NOT_AS_ASKED = 16
    NOT_LISTED = 17
    NOT_INSTALLED = 18


STATUS_OLDER = 1
"""Flag of a status: the record is not that of the newest session that dom0 knows of this volume
in this archive.
"""
STATUS_UNKNOWN = 2
"""Flag of a status, with STATUS_OLDER: dom0 knows no session of this volume in this archive at
all.
"""


STATUS_OLD_LIST = 4
"""Note bit of the status of a List: the volumes were listed longer ago than dom0 is used to; its
detail is how many seconds.
"""


class Refused(Exception):
    """The agent refuses a call: ``code`` and ``detail`` (a chunk number, or 0) go to the caller,
    the text to the log.
    """

    def __init__(self, code: Code, text: str, detail: int = 0) -> None:
        super().__init__(text)
        self.code = code
        self.detail = detail
