# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of rules in ``/etc/qubes/policy.d``: what ``setup`` checks there, and the one more that
Qubes OS 4.2 needs.

A prompt of 4.2 fails where a rule sends the call to dom0 (``ask target=@adminvm``; core-qrexec,
``policy/parser.py``), as those for Restore do. So 4.2 gets rules for it that come first.
"""

import re
from contextlib import suppress
from pathlib import Path

from common.durable import replace
from common.existing import exists

FOLDER = Path("/etc/qubes/policy.d")
RELEASE = Path("/etc/qubes-release")
"""Says which Qubes OS this is: ``Qubes release 4.2.4 (R4.2)``."""
RULES = "80-sparsebak.policy"
OF_4_2 = "79-sparsebak-4.2.policy"
_OLD = "30-sparsebak.policy"
"""As it was named once: it came before an administrator's own rules in 30-user.policy."""
_SHIPPED = Path(__file__).resolve().parents[2] / "policy" / OF_4_2


def is_4_2() -> bool:
    """Whether this is Qubes OS 4.2."""
    with suppress(OSError):
        return re.search(r"\(R4\.2\)", RELEASE.read_text("utf-8", "replace")) is not None
    return False


def out_of_date() -> bool:
    """Whether rules for Qubes OS 4.2 have to be put there, or taken away after an upgrade."""
    place = FOLDER / OF_4_2
    if not is_4_2():
        return exists(place)
    return not exists(place) or place.read_bytes() != _SHIPPED.read_bytes()


def bring_up_to_date() -> None:
    """Put them there, or take them away. Raises OSError."""
    place = FOLDER / OF_4_2
    if is_4_2():
        replace(place, _SHIPPED.read_bytes())
        place.chmod(0o664)  # as Qubes' own: members of group qubes may edit them
    else:
        place.unlink()


def problems() -> list[str]:
    """What is wrong with the rules that are there, in words."""
    found, rules, old = [], FOLDER / RULES, FOLDER / _OLD
    if not exists(rules):
        found.append(
            f"{rules} is missing, so that every call is refused; install sparsebak-dom0 again"
        )
    if exists(old):
        found.append(
            f"{old} is of an older sparsebak, and decides before your own rules do: remove"
            " it; changes that you made in it belong into 30-user.policy"
        )
    return found
