# SPDX-License-Identifier: GPL-2.0-or-later
"""What files an archive has, by which the catalog is known to be made for them."""

from dataclasses import dataclass

from backup_vm.archive import naming, partial
from backup_vm.archive.storage import Storage


@dataclass(frozen=True)
class Listing:
    """Names and sizes of packs; of sessions, unfinished ones and (with no size, they grow) partial
    ones.
    """

    packs: dict[str, int]
    files: dict[str, int]

    @classmethod
    def of(cls, storage: Storage) -> "Listing":
        """As the store has them now."""
        volumes = storage.sizes("volumes")
        files = {
            n: s for n, s in volumes.items() if naming.is_session(n) or naming.is_unfinished(n)
        }
        partials = (
            storage.workspace.names("volumes", partial.SUFFIX) if storage.elsewhere else volumes
        )
        files |= dict.fromkeys(filter(naming.is_partial, partials), 0)
        return cls({n: s for n, s in storage.sizes("packs").items() if naming.is_pack(n)}, files)
