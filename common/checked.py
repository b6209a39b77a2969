# SPDX-License-Identifier: GPL-2.0-or-later
"""Small files as JSON with a checksum: what was written, whole, or ValueError."""

import hashlib
import json
from typing import Any


def dump(fields: dict[str, Any]) -> bytes:
    """The file's contents."""
    return json.dumps({"check": _check(fields), **fields}, indent=1).encode()


def load(raw: bytes) -> dict[str, Any]:
    """Undo dump; raise ValueError for anything else."""
    try:
        fields = json.loads(raw)
    except RecursionError:
        raise ValueError("it is no object") from None
    if not isinstance(fields, dict) or fields.pop("check", None) != _check(fields):
        raise ValueError("its check does not fit")
    return fields


def _check(fields: dict[str, Any]) -> str:
    """Of what it says, whatever way it is laid out in the file."""
    return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=16).hexdigest()
