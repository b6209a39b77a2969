# SPDX-License-Identifier: GPL-2.0-or-later
"""What files an archive has, by which the catalog is known to be made for them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from backup_vm.archive import naming, partial
from backup_vm.archive.storage import Storage

_NONE: Mapping[str, str] = MappingProxyType({})


class Listing:
    """Names and sizes of packs; of sessions, unfinished ones and (with no size, they grow) partial
    ones.

    ``versions``: of each session a text that is another one when it was written again. Two are
    equal that have the same names and sizes.
    """

    def __init__(
        self, packs: dict[str, int], files: dict[str, int], versions: Mapping[str, str] = _NONE
    ) -> None:
        self.packs, self.files, self.versions = packs, files, versions

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Listing) and (self.packs, self.files) == (other.packs, other.files)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def of(cls, storage: Storage) -> "Listing":
        """As the store has them now."""
        volumes = storage.stamps("volumes")
        versions = {n: v for n, (_, v) in volumes.items() if naming.is_session(n)}
        files = {n: s for n, (s, _) in volumes.items() if n in versions or naming.is_unfinished(n)}
        partials = (
            storage.workspace.names("volumes", partial.SUFFIX) if storage.elsewhere else volumes
        )
        files |= dict.fromkeys(filter(naming.is_partial, partials), 0)
        packs = {n: s for n, s in storage.sizes("packs").items() if naming.is_pack(n)}
        return cls(packs, files, versions)

    def seen(self, names: Iterable[str]) -> dict[str, str]:
        """By volume a digest of the versions of those of these files that are sessions: it tells
        that one was replaced by another of its name and size.
        """
        lines: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(filter(naming.is_session, names)):
            lines[naming.volume_of(name)].append(f"{name} {self.versions.get(name, '')}\n")
        return {
            volume: hashlib.blake2b("".join(some).encode(), digest_size=16).hexdigest()
            for volume, some in lines.items()
        }
