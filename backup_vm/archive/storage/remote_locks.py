"""The files of a writer's lease, in a remote place."""

from backup_vm.archive.lease import FOLDER, LONGEST
from backup_vm.archive.storage.objects import Objects, Place


class RemoteLocks:
    """See Locks in ``lease``."""

    def __init__(self, place: Place, objects: Objects) -> None:
        self._place, self._objects = place, objects

    def list(self) -> dict[str, float]:
        """See Locks."""
        return self._place.ask(lambda: self._objects.times(FOLDER))

    def create(self, name: str, raw: bytes) -> bool | None:
        """See Locks."""
        return self._place.ask(lambda: self._objects.make(f"{FOLDER}/{name}", raw))

    def put(self, name: str, raw: bytes) -> None:
        """See Locks."""
        self._place.ask(lambda: self._objects.put_small(f"{FOLDER}/{name}", raw))

    def renew(self, name: str, raw: bytes) -> None:
        """See Locks."""
        self._place.ask(lambda: self._objects.put_small(f"{FOLDER}/{name}", raw, again=True))

    def read(self, name: str) -> bytes:
        """See Locks."""
        return self._place.ask(lambda: self._objects.get_small(f"{FOLDER}/{name}", LONGEST))

    def remove(self, name: str) -> None:
        """See Locks."""
        self._place.ask(lambda: self._objects.delete(f"{FOLDER}/{name}"))
