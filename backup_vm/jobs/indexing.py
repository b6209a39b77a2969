# SPDX-License-Identifier: GPL-2.0-or-later
"""Indexes of the names in a volume's sessions: made of what a reader of files says, and asked for
names through all sessions at once.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial

from backup_vm.archive import name_index
from backup_vm.archive.looking import LOOKS
from backup_vm.archive.name_index import NO_SEGMENT, NameFile, Segment
from backup_vm.archive.names_format import BY_DEFAULT, NamesAbout
from backup_vm.archive.sessions import Session
from backup_vm.errors import DamagedError, SparsebakError
from backup_vm.files.names import (
    About,
    Link,
    Row,
    Sealing,
    Unusable,
    different,
    merged,
    named,
)
from backup_vm.files.names_maker import Made
from backup_vm.files.session import SessionFiles
from backup_vm.unsealing import unseal
from backup_vm.volumes import Contents, Named
from wire.chunks import NotAuthentic

MOST_ROWS = 1_000_000
"""Rows that are kept at once of what fits."""
_CHAIN = 200
"""Segments that a new one builds on, at most: a file of each is open then."""
_SHARE = 4
"""How many times the bytes of a segment that builds on none those that build on it may have."""


@dataclass(frozen=True)
class Query:
    """Which files are asked for: those whose last name ``pattern`` finds between two zeros, whose
    path (without a slash before it) ``fits``, and that are ``kept`` by what is said of them.
    """

    pattern: re.Pattern[bytes]
    fits: Callable[[bytes], bool]
    kept: Callable[[About], bool]


@dataclass(frozen=True)
class Step:
    """What an index says of a session: the rows that are others than in the session asked before,
    or all (``whole``), and how many files could not be read when it was made.
    """

    whole: bool
    rows: dict[bytes, About | None]
    troubles: int

    def after(self, before: dict[bytes, About]) -> dict[bytes, About]:
        """What the session has, from what the one ``before`` had, which becomes it."""
        now = {} if self.whole else before
        for path, about in self.rows.items():
            if about is None:
                now.pop(path, None)
            else:
                now[path] = about
        return now


class Names:
    """The indexes of one volume. ``partition``: which one is asked for, None for the one that is
    read by default. ``warn`` gets a line, once, of each that cannot be used.
    """

    def __init__(
        self,
        contents: Contents,
        volume: Named,
        partition: int | str | None,
        warn: Callable[[str], None],
    ) -> None:
        self._contents, self._volume, self._partition = contents, volume, partition
        self._storage, self._warn = contents.archive.storage, warn
        self._sealings: dict[bytes, Sealing] = {}
        self._unusable: set[bytes] = set()
        self._told: set[str] = set()
        self._made: list[Made] = []
        self.read: set[bytes] = set()
        """Segments that ``whole`` has read to their ends."""
        self._loads = 0
        self._load()

    def _load(self) -> None:
        self._links: dict[bytes, Link] = {}
        """By the id of their segments."""
        self._of_session: dict[bytes, bytes] = {}
        """The last segment of each session that has an index."""
        self._where: dict[bytes, tuple[str, int]] = {}
        """Name of its file, and offset, of each segment."""
        self._loads += 1
        own = self._contents.archive.parameters.archive
        for one in name_index.load_all(self._storage, self._volume.id, own):
            if isinstance(one, DamagedError):
                self._tell(str(one))
            else:
                self._take(one)
        for made in self._made:
            self._add(made)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._warn(f"{text}; it is ignored, to make it again: sparsebak files index")

    def _take(self, one: NameFile) -> None:
        for segment in one.segments:
            read: Callable[[Segment], Iterator[bytes]]
            read = partial(name_index.sealed_blocks, self._storage)
            self._links[segment.head.id] = Link(segment.head, partial(read, segment))
            self._where[segment.head.id] = one.name, segment.at
        self._of_session[one.segments[-1].head.session] = one.id

    def sealing(self, session: Session) -> Sealing:
        """What the segments of a session are sealed with; raise DamagedError."""
        clear = session.clear
        try:
            record, keys = unseal(session.record, self._contents.needed_keys())
        except NotAuthentic as error:
            raise DamagedError(f"{self._storage.describe(session.file)}: {error}") from None
        found = self._sealings.get(record.dedup_domain)
        if found is None:
            found = Sealing.of(clear.archive, clear.volume_id, keys)
            self._sealings[record.dedup_domain] = found
        return found

    def chain(self, session: Session) -> list[Link]:
        """The segments that lead to a session's names, the one that builds on nothing first; none
        where there is no index of it that can be used.
        """
        at = self._of_session.get(session.clear.session, NO_SEGMENT)
        found: list[Link] = []
        seen: set[bytes] = set()
        while at != NO_SEGMENT:
            link = self._links.get(at)
            if link is None or at in self._unusable or at in seen:
                return []
            seen.add(at)
            found.append(link)
            at = link.head.base
        if not found:
            return []
        try:
            about = found[0].about(self.sealing(session))
        except (Unusable, DamagedError) as error:
            self._refuse(found[0], error)
            return []
        return found[::-1] if self._fits(about) else []

    def whole(self, session: Session) -> bool:
        """Whether there is an index of a session that can be used, all of which is read for this:
        damage in a block shows nowhere else before somebody looks for names.
        """
        links = self.chain(session)
        for link in links:
            if link.head.id in self.read:
                continue
            try:
                for _ in link.texts(self.sealing(session)):
                    pass
            except (Unusable, DamagedError) as error:
                self._refuse(link, error)
                return False
            self.read.add(link.head.id)
        return bool(links)

    def _fits(self, about: NamesAbout) -> bool:
        """Whether it is of the partition that is asked for."""
        if self._partition is None:
            return bool(about.flags & BY_DEFAULT)
        return self._partition == (about.logical or about.partition)

    def _refuse(self, link: Link, error: object) -> None:
        """Report what is wrong with a segment, and use it no more; or where another machine has
        moved it meanwhile, load what there is now.
        """
        was = self._where.get(link.head.id)
        if was is not None and self._loads < LOOKS:
            self._storage.refresh()
            self._load()
            if self._where.get(link.head.id) != was:
                return
        self._unusable.add(link.head.id)
        if isinstance(error, Unusable):
            error = f"{self._storage.describe(was[0] if was else '')} is damaged: {error}"
        self._tell(str(error))

    def steps(
        self, sessions: Sequence[Session], query: Query
    ) -> Iterator[tuple[Session, Step | None]]:
        """What the indexes say of each session, in order; None where there is none. Raises
        SparsebakError where more fits than can be kept.
        """
        reached = NO_SEGMENT
        for session in sessions:
            loads, step = 0, None
            while step is None and loads != self._loads:
                loads = self._loads
                links = self.chain(session)
                ids = [link.head.id for link in links]
                first = ids.index(reached) + 1 if reached in ids else 0
                step = self._step(session, links, first, query) if links else None
            reached = ids[-1] if step is not None else NO_SEGMENT
            yield session, step

    def _step(self, session: Session, links: list[Link], first: int, query: Query) -> Step | None:
        sealing, rows, troubles = self.sealing(session), dict[bytes, About | None](), 0
        for link in links[first:]:
            try:
                troubles = link.about(sealing).troubles
                for text in link.texts(sealing):
                    _lay_over(rows, text, query, whole=not first)
                    if first and len(rows) > MOST_ROWS:  # what fits in all of them may be little
                        return self._step(session, links, 0, query)
                    must_be_few(rows)
            except (Unusable, DamagedError) as error:
                self._refuse(link, error)
                return None
        return Step(not first, rows, troubles)

    # Making

    def make(
        self,
        session: Session,
        files: SessionFiles,
        before: Session | None,
        trouble: Callable[[bytes, str], None],
    ) -> Made:
        """The segment that leads to a session's names, from those of the session ``before`` where
        that has an index. It is not stored; ``add`` lets others build on it.

        Raises FileSystemError, and DamagedError where the archive is damaged.
        """
        links = self.chain(before) if before is not None else []
        # another deduplication domain has other keys
        if not _worth(links) or before is None or self.sealing(before) != self.sealing(session):
            links = []
        try:
            return self._make(session, files, links, trouble)
        except Unusable as error:
            self._warn(f"the index of names of {before.name if before else ''}: {error}")
            return self._make(session, files, [], trouble)

    def _make(
        self,
        session: Session,
        files: SessionFiles,
        links: list[Link],
        trouble: Callable[[bytes, str], None],
    ) -> Made:
        sealing, troubles = self.sealing(session), 0

        def told(path: bytes, text: str) -> None:
            nonlocal troubles
            troubles += 1
            trouble(path, text)

        base = links[-1].head.id if links else NO_SEGMENT
        spool = self._storage.workspace.scratch()
        made = Made(sealing, session.clear.session, os.urandom(16), base, spool)
        try:
            walked = (
                Row(found.path[1:], About.of(found))
                for _, found in files.walk(files.find(b"/"), told)
            )
            for row in different(merged(links, sealing), walked):
                made.packer.add(*row)
            if files.damaged:
                raise DamagedError(
                    f"{files.name}: what is damaged has no index of names", "run: sparsebak scrub"
                )
            part = files.part
            made.finish(part.number, part.name, files.by_default, troubles)
        except BaseException:
            made.close()
            raise
        return made

    def add(self, made: Made) -> None:
        """Let later segments build on one that was made."""
        self._made.append(made)
        self.read.add(made.head.id)
        self._add(made)

    def _add(self, made: Made) -> None:
        self._links[made.head.id] = made.link()
        self._of_session[made.head.session] = made.head.id


def _lay_over(rows: dict[bytes, About | None], text: bytes, query: Query, whole: bool) -> None:
    """Lay what fits of a segment's text over ``rows``, which are ``whole``, or what differs: there
    a file that is gone, or fits no more, is None.
    """
    for path, about in named(text, query.pattern):
        if not query.fits(path):
            continue
        if about and query.kept(about):
            rows[path] = about
        elif whole:
            rows.pop(path, None)
        else:
            rows[path] = None


def must_be_few(rows: Sized) -> None:
    """Raise SparsebakError where there are more than can be kept."""
    if len(rows) > MOST_ROWS:
        raise SparsebakError(
            f"more than {MOST_ROWS:,} files fit", "name a folder, or a narrower pattern"
        )


def _worth(links: list[Link]) -> bool:
    """Whether another segment is to build on these: reading all of them must not take much longer
    than reading one that builds on none.
    """
    if not 0 < len(links) <= _CHAIN:
        return False
    return sum(link.head.payload for link in links[1:]) <= _SHARE * links[0].head.payload
