# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files as JSON with a checksum: what was written, whole, or ValueError."""

import hashlib
import json
from typing import Any


def dump(fields: dict[str, Any]) -> bytes:
    """The file's contents."""
    return json.dumps({"check": checksum(fields), **fields}, indent=1).encode()


def load(raw: bytes) -> dict[str, Any]:
    """Undo dump; raise ValueError for anything else."""
    try:
        fields = json.loads(raw)
    except RecursionError:
        raise ValueError("it is no object") from None
    if not isinstance(fields, dict) or fields.pop("check", None) != checksum(fields):
        raise ValueError("its check does not fit")
    return fields


def checksum(fields: dict[str, Any]) -> str:
    """A checksum of what a file says, whatever way it is laid out there: 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()
