# SPDX-License-Identifier: GPL-2.0-or-later
"""What crosses between dom0 and the backup VM: names, frames, sealing, records. No input or output
of its own.
"""

VERSION = "0.2.0"
"""Of the project: the one place where it is written. Enroll sends it, for both sides to compare."""

FORMAT = 2
"""The format of archives, and of all that crosses; a reader refuses any other. docs/format.md says
how it changes.
"""

DEDUP_DOMAIN_SIZE = 16
"""Bytes of a deduplication domain; all zero for "the whole archive"."""

CHUNK_SIZES = tuple(1 << bits for bits in range(16, 23))
"""The chunk sizes an archive may have, in bytes: the powers of two from 64 KiB to 4 MiB."""

DEFAULT_CHUNK_SIZE = 128 * 1024
"""Bytes; chosen by measurement, see docs/choices.md."""

MAX_VOLUME_SIZE = 1 << 46
"""Bytes (64 TiB). Sizes from the other side above this are refused before anything is allocated for
them.
"""

NO_SESSION = bytes(16)
"""What stands for the id of a session where there is none."""

NO_ARCHIVE = bytes(16)
"""What stands for the id of an archive where there is none."""

CLAIMED_SEQUENCE = (1 << 32) + (1 << 20)
"""Sequence number that an archive may claim for a session that dom0 does not know of, at most: from
there on dom0 counts by one, whatever a caller says.
"""

LAST_SEQUENCE = CLAIMED_SEQUENCE + (1 << 20)
"""Sequence number that a session can have, at most: a million sessions of a volume after the
highest claim. dom0 begins none beyond that. Names sort by sequence: it has ten digits.
"""


def other_format(number: object) -> tuple[str, str]:
    """What to say of something of another format than FORMAT, and what to do about it."""
    if isinstance(number, int) and number < FORMAT:
        return (
            f"format {number}, from before the first release, which this version does not read",
            "get what you need with the version that made it, and make a new archive",
        )
    return (
        f"format {number}, which this version does not know",
        "use the version of sparsebak that made it, or a newer one",
    )
