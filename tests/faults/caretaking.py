# SPDX-License-Identifier: GPL-2.0-or-later
"""What takes care of an archive, or lends what is in it: parity, upkeep, drills, grants, records, a
reader from another qube, and the page's start. On a file system that fails, as all else.
"""

import os
import re
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import IO, Any

from backup_vm.agent import sealed_reader
from backup_vm.agent.sealed_reader import SealedReader
from backup_vm.agent.transport import Connection
from backup_vm.archive import notes
from backup_vm.archive.image import split
from backup_vm.archive.parity.mending import Parity
from dom0_agent.admin.granting import find, read_records
from dom0_agent.config import load
from tests.faults.harness import VOLUMES, Place, computed
from tests.faults.promises import ARCHIVE, STATE, assembled, backed_up, gone
from tests.faults.scenarios import Scenario, with_a_damaged_chunk, without_catalog
from tests.kit import GRAIN
from wire.chunks import ZERO_ID

_KEYED = ("--passphrase-file", "{passphrase}")
_PARITY = ("scrub", "--parity", "25%")


def done(place: Place, *words: str) -> None:
    """Run a command that must succeed."""
    outcome = place.command(*words)
    assert outcome.code == 0, outcome.text


# --- parity


def with_parity(place: Place) -> None:
    done(place, *_PARITY)


def with_damage_and_parity(place: Place) -> None:
    with_parity(place)
    with_a_damaged_chunk(place)


def covered(place: Place) -> None:
    """Every file is covered by parity, and is as it was then."""

    def look() -> tuple[set[str], set[str], list[str]]:
        with place.site.open() as archive:
            parity = Parity(archive)
            there = {*archive.pack_files(), *archive.session_files()}
            for name in there:
                parity.compare(name)
            return there - parity.names, parity.stale, parity.compare_own()

    assert computed(look) == (set(), set(), []), "not all is covered"


def mended(place: Place) -> None:
    """Nothing is damaged any more, and nothing is another than it was."""
    done(place, "scrub")
    for name in VOLUMES:
        assert len(place.images()[name]) == 3


# --- upkeep


def with_rules(place: Place) -> None:
    (place.root / "upkeep.toml").write_text(
        'sample = "all"\n[prune]\nkeep_last = 1\nmin_age = "0d"\nmax_removed = "100%"\n'
    )
    (place.root / "copies").mkdir()


def kept(place: Place) -> None:
    """It was pruned, scrubbed and copied."""
    gone(place)
    assert place.images("copies/archive") == place.images(), "the copy is not the archive"
    with place.site.open() as archive:
        assert notes.load(archive.storage).scrubbed is not None


_UPKEEP = ("upkeep", "{root}/site", "--rules", "{root}/upkeep.toml", "--copy-to", "{root}/copies")


# --- drill


def drilled(place: Place) -> None:
    """Nobody is told of a drill that failed; where nothing can be written, of none."""
    with place.site.open() as archive:
        assert all(check.sound for check in notes.load(archive.storage).drills.values())


_DRILL = ("drill", "work/private", *_KEYED)


# --- grants and records


def with_records(place: Place) -> None:
    done(place, "records", "work/private", "-o", "{root}/records")


def granted(place: Place) -> None:
    """What the grant is for can be read with it."""
    words = ("assemble", "work/private", "-o", "{root}/granted.img", "--force")
    done(place, *words, "--grant", "{root}/out.grant")
    expected = [*place.images()["work/private"].values()][-1]
    assert (place.root / "granted.img").read_bytes() == expected
    mode = (place.root / "out.grant").stat().st_mode
    assert mode & 0o077 == 0, "others can read it"


def recorded(place: Place) -> None:
    """The record of every session is there."""
    with open(place.root / "out.records", "rb") as file:
        assert len(read_records(file, "it")) == len(place.images()["work/private"])


_GRANT = ("grant", "work", "-o", "{root}/out.grant", "--records", "{root}/records")


# --- serve


class _Caller:
    """The holder's end of a call, as much of a process as a Connection uses."""

    def __init__(self, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin, self.stdout = stdin, stdout

    def wait(self, timeout: float | None = None) -> int:
        return 1

    def kill(self) -> None:
        for stream in (self.stdin, self.stdout):
            with suppress(OSError):
                stream.close()


def _all_chunks(reader: SealedReader, count: int, answers: list[bytes]) -> None:
    """What a reader gets of a whole session."""
    try:
        answers.append(reader.record())
        ids = reader.ids(0, count)
        answers += [
            chunk_id + reader.sealed(number, chunk_id)
            for number, chunk_id in enumerate(ids)
            if chunk_id != ZERO_ID
        ]
    finally:
        reader.close()


def with_answers(place: Place) -> None:
    """Write down which session is to be read, and what a reader is to get."""

    def note() -> None:
        volume = find(load(place.site.config), "work", "tests").volume_id.hex()
        with place.site.open() as archive:
            series = archive.sessions(volume)[volume]
            image = archive.image(series, series[-1])
            clear = series[-1].clear
            words = (volume, clear.session.hex(), clear.chunk_size, image.chunks)
            (place.root / "reading").write_text(" ".join(map(str, words)))
            ids = split(image.ids(0, image.chunks))
            (place.root / "ids").write_bytes(b"".join(i for i in ids if i != ZERO_ID))

    computed(note)


def serve(place: Place) -> int:
    """Serve a session to a reader in this process, which must get it exactly or an error."""
    volume, session, size, count = (place.root / "reading").read_text().split()
    to_serve, to_read = os.pipe(), os.pipe()
    failed: list[BaseException] = []
    answers: list[bytes] = []
    caller = _Caller(open(to_serve[1], "wb"), open(to_read[0], "rb"))

    class Transport:
        def start(self, *words: str) -> Connection:
            return Connection(caller)  # type: ignore[arg-type]

    sealed_reader.QrexecTransport = Transport  # type: ignore[assignment,misc]

    def read() -> None:
        reader = SealedReader("there", bytes.fromhex(volume), bytes.fromhex(session), int(size))
        try:
            _all_chunks(reader, int(count), answers)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    streams, sys.stdin, sys.stdout = (
        (sys.stdin, sys.stdout),
        open(to_serve[0]),
        open(to_read[1], "w"),
    )
    try:
        code = place.called("serve", f"{volume}+{session}")
        sys.stdout.flush()
    finally:
        sys.stdin.close()
        sys.stdout.close()
        sys.stdin, sys.stdout = streams
    thread.join(20)
    assert not thread.is_alive(), "the reader waits for an answer that nobody gives"
    if failed:
        raise failed[0]
    (place.root / "answers").write_bytes(b"".join(answer[:32] for answer in answers[1:]))
    return code


def served(place: Place) -> None:
    """The reader got every chunk of the session, and no other."""
    assert (place.root / "answers").read_bytes() == (place.root / "ids").read_bytes()


# --- an image that is there


def with_an_image(place: Place) -> None:
    """What an image was before, shorter than it is to be."""
    (place.root / "out.img").write_bytes(place.now()["work/private"][: 5 * GRAIN])


_ONTO = ("assemble", "work/private", "--onto", "{root}/out.img", "--yes", *_KEYED)


# --- a catalog made in parts


def back_up_rebuilding(place: Place) -> int:
    """Make the catalog again in parts, as for an archive that is too large for memory."""
    from backup_vm.archive import gathering

    gathering.AT_ONCE = 6
    return place.called("backup")


# --- ui


def with_runtime(place: Place) -> None:
    (place.root / "run").mkdir()


def start_the_page(place: Place) -> int:
    """Start ``ui``, and end it as soon as it would have the browser open the page."""
    from backup_vm.ui import opening

    os.environ["XDG_RUNTIME_DIR"] = str(place.root / "run")

    def opened(self: Any) -> None:
        assert "http-equiv" in self.file.read_text()
        os.kill(os.getpid(), signal.SIGINT)

    opening.Entrance.open = opened  # type: ignore[method-assign]
    code = place.called("ui")
    return 0 if code == 130 else code


def no_way_in(place: Place) -> None:
    """What a disk did not let be removed leads nowhere."""
    for file in (place.root / "run").glob("*/*"):
        for port in re.findall(r"http://127\.0\.0\.1:(\d+)/enter", file.read_text()):
            with socket.socket() as one:
                assert one.connect_ex(("127.0.0.1", int(port))), "a way to the page is left"


CARE = (
    Scenario("scrub --parity", _PARITY, promised=covered),
    Scenario("scrub --parity, nothing new", _PARITY, prepare=with_parity, promised=covered),
    Scenario("scrub --repair", ("scrub", "--repair"), prepare=with_damage_and_parity,
             promised=mended, damaged=True),
    Scenario("scrub --repair, nothing to do", ("scrub", "--repair"), prepare=with_parity,
             promised=mended),
    Scenario("prune, parity", ("prune", "--keep-last", "1", "--min-age", "0d"),
             prepare=with_parity, doomed=("first", "second"), promised=gone),
    Scenario("upkeep", _UPKEEP, prepare=with_rules, doomed=("first", "second"), promised=kept),
    Scenario("upkeep, its copies", _UPKEEP, where="copies*", prepare=with_rules,
             doomed=("first", "second"), promised=kept),
    Scenario("upkeep, its memory", _UPKEEP, where="home*", prepare=with_rules,
             doomed=("first", "second"), promised=kept),
    Scenario("drill", _DRILL, promised=drilled),
    Scenario("agent grant", _GRANT, agent=True, where=STATE, prepare=with_records,
             promised=granted, again=(0, 1)),
    Scenario("agent grant, its files", _GRANT, agent=True, where="*out.grant*",
             prepare=with_records, promised=granted, again=(0, 1)),
    Scenario("agent grant, its records", _GRANT, agent=True, where="records",
             prepare=with_records, promised=granted, again=(0, 1)),
    Scenario("records", ("records", "work/private", "-o", "{root}/out.records"),
             promised=recorded, again=(0, 1)),
    Scenario("records, their file", ("records", "work/private", "-o", "{root}/out.records"),
             where="out.records*", promised=recorded, again=(0, 1)),
    Scenario("assemble --onto", _ONTO, where="out.img*", prepare=with_an_image,
             promised=assembled),
    Scenario("assemble --onto, its source", _ONTO, prepare=with_an_image, promised=assembled),
    Scenario("backup, catalog in parts", action=back_up_rebuilding, where=ARCHIVE,
             prepare=without_catalog, promised=backed_up),
    Scenario("serve", action=serve, where=ARCHIVE, prepare=with_answers, promised=served),
    Scenario("ui", action=start_the_page, where="run*", prepare=with_runtime,
             promised=no_way_in),
)  # fmt: skip
