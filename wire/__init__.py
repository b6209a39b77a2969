"""What crosses between dom0 and the backup VM: names, frames, sealing, records. No input or output
of its own.
"""

VERSION = "0.1.0"
"""Of the project; what Enroll tells, for both sides to compare."""

FORMAT = 1
"""Version of every format in this package; a reader refuses any other."""

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
"""The same for the id of an archive."""
