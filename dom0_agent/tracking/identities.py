# SPDX-License-Identifier: GPL-2.0-or-later
"""Who is who: a qube may be renamed, and another may get its name; its identity it keeps.

All that is kept of a volume goes by the identity of its qube: the folder of its state, its
snapshots, its volume id and deduplication domain, and what its records are restored into. An
identity is the first name that the qube had, or that name with a number where it was another's
before. Nothing that was made with one is ever moved or renamed.

``<state_dir>/identities.json`` says what each is called now, and is all that a rename changes: its
replacement is the commit point. It is written by ``admin.renaming`` alone. A qube that is not in it
has its name for its identity, unless that is another's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common import checked
from common.durable import UNREADABLE, read_small
from common.existing import exists
from wire.names import BadName, new_identity, parse_identity, parse_name
from wire.status import Code, Refused

FORMAT = 1
DOM0 = "dom0"
"""Its name and its identity: it has no other, and no other has it."""


class Known(NamedTuple):
    """What is known of an identity: the qube's present name, and its UUID where qubesd tells it,
    else nothing. ``retired``: the qube is gone and its name has gone to another; ``name`` is one
    made up for what was kept of it.
    """

    name: str
    uuid: str = ""
    retired: bool = False


class Identities(NamedTuple):
    """All that is known, by identity; no two have one name. ``kept``: whether it was written
    down.
    """

    known: Mapping[str, Known] = {}
    kept: bool = False

    def by_name(self, qube: str) -> str | None:
        """The identity that is noted for a name, retired ones included; None where there is
        none.
        """
        return next((one for one, known in self.known.items() if known.name == qube), None)

    def of(self, qube: str) -> str:
        """The identity of the qube of that name that there is, or may be."""
        noted = self.by_name(qube)
        if qube == DOM0 or noted is not None and not self.known[noted].retired:
            return noted or DOM0
        return new_identity(qube, self.known)

    def name(self, identity: str) -> str:
        """What the qube of an identity is called now."""
        return self.known[identity].name if identity in self.known else identity

    def is_retired(self, identity: str) -> bool:
        """Whether its qube is gone for certain, and its name another's."""
        return identity in self.known and self.known[identity].retired

    def to_bytes(self) -> bytes:
        """The file."""
        qubes = {identity: known._asdict() for identity, known in self.known.items()}
        return checked.dump({"format": FORMAT, "qubes": qubes})


def place(state_dir: Path) -> Path:
    """Where it is written."""
    return state_dir / "identities.json"


def written(state_dir: Path) -> Path:
    """An empty file that is there once the other was written: that one is missed from then on."""
    return state_dir / "identities.written"


def load(state_dir: Path) -> Identities:
    """What was written last; nothing where nothing was. Refused when it is damaged or lost."""
    path = place(state_dir)
    try:
        return _from_bytes(read_small(path))
    except FileNotFoundError:
        if not exists(written(state_dir)):
            return Identities()
        problem = "is missing"
    except OSError as error:
        if error.errno not in UNREADABLE:
            raise
        problem = f"cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        problem = f"cannot be used: {error}"
    # To guess would be to let one qube's sessions into another.
    raise Refused(Code.INTERNAL, f"{path} {problem}; run: sparsebak-agent volumes")


def _from_bytes(raw: bytes) -> Identities:
    fields: dict[str, Any] = checked.load(raw)
    if fields["format"] != FORMAT:
        raise ValueError("it is of another version of sparsebak")
    known = {identity: Known(**one) for identity, one in fields["qubes"].items()}
    try:
        for identity, one in known.items():
            parse_identity(identity)
            parse_name(one.name, "qube")
    except BadName as error:
        raise ValueError(str(error)) from None
    if len({one.name for one in known.values()}) != len(known) or DOM0 in known:
        raise ValueError("two qubes have one name in it")
    return Identities(known, kept=True)
