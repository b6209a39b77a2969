# SPDX-License-Identifier: GPL-2.0-or-later
"""What a store may answer about versions and locks; and of versions which are read, and which are
removed, against a model.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backup_vm.archive.storage import bucket, objects
from backup_vm.archive.storage.bucket import Bucket, Version
from backup_vm.archive.storage.objects import Overloaded, Place, Silent, Unreachable
from backup_vm.archive.storage.past import PastStore, parse_moment
from backup_vm.archive.storage.vault import Vault
from backup_vm.errors import ForbiddenError, SparsebakError
from tests.patience import AT_ONCE
from tests.remote.stores import Answer, http_store, raw_store, refusal, silent

URL = "s3://bucket/an archive"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def page(*entries: str, more: str = "") -> Answer:
    return 200, f"<ListVersionsResult>{''.join(entries)}{more}</ListVersionsResult>".encode()


def entry(name: str = "packs/x", size: str = "5", at: str = "2026-11-27T08:00:00.000Z") -> str:
    return (
        f"<Version><Key>an archive/{name}</Key><VersionId>v</VersionId><IsLatest>true</IsLatest>"
        f"<LastModified>{at}</LastModified><ETag>&quot;e&quot;</ETag><Size>{size}</Size></Version>"
    )


MORE = (
    "<IsTruncated>true</IsTruncated><NextKeyMarker>k</NextKeyMarker>"
    "<NextVersionIdMarker>i</NextVersionIdMarker>"
)
BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><ListVersionsResult>&a;</ListVersionsResult>'
ANSWERS: dict[str, tuple[Answer, type[Exception], str]] = {
    "a bomb": ((200, BOMB), SparsebakError, "declares something"),
    "no XML": ((200, b"\0\xff<"), SparsebakError, "what is no XML"),
    "nothing": ((200, b""), SparsebakError, "what is no XML"),
    "a number that is none": (page(entry(size="many")), SparsebakError, "cannot be"),
    "a size that none has": (page(entry(size="-1")), SparsebakError, "cannot be"),
    "a size beyond all": (page(entry(size="9" * 30)), SparsebakError, "cannot be"),
    "a time that is none": (page(entry(at="noon")), SparsebakError, "cannot be"),
    "pages without end": (page(entry(), more=MORE), SparsebakError, "without end"),
    "refused": (refusal(403, "AccessDenied"), ForbiddenError, "AccessDenied"),
    "busy": (refusal(503, "SlowDown"), Overloaded, "SlowDown"),
    "a wrong clock": (refusal(403, "RequestTimeTooSkewed"), SparsebakError, "clock is too far off"),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_whatever_the_store_answers_s3(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, kind, words = ANSWERS[what]
    with http_store(lambda _: answer) as (port, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(kind, match=words):
            list(Bucket(URL).versions())


def test_an_answer_that_is_too_long_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_LONGEST", 1000)
    with http_store(lambda _: (200, bytes(2000))) as (port, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(SparsebakError, match="more than can be"):
            Bucket(URL).locks()


def test_names_of_others_are_none_of_ours_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = entry("packs/%0A%2B+b").replace("<Size>5", "<Size>7")
    coded = "<EncodingType>url</EncodingType>"
    other = entry().replace("an archive/", "another/")
    plain, encoded = entry(), odd.replace("an archive", "an+archive")
    with http_store(lambda count: page(coded, plain, encoded, other)) as (port, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        found = [one.name for one in Bucket(URL).versions()]
    assert found == ["packs/x", "packs/\n+ b"]
    assert asked == ["GET /bucket?encoding-type=url&prefix=an%20archive%2F&versions="]


def test_the_next_page_is_asked_for_by_the_name_as_it_is_s3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a store that writes a space as ``+``: a name that begins so comes after all of ours."""
    more = (
        "<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        "<NextKeyMarker>an+archive/packs/x%2B</NextKeyMarker>"
    )
    pages = [page(entry(), more=more), page(entry("volumes/y"))]
    with http_store(lambda count: pages[count]) as (port, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert [one.name for one in Bucket(URL).versions()] == ["packs/x", "volumes/y"]
    assert "key-marker=an%20archive%2Fpacks%2Fx%2B&" in asked[1]


def test_pages_of_nothing_without_end_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "_MOST_EMPTY", 20)
    with http_store(lambda count: page(more=MORE.replace(">k<", f">k{count}<"))) as (port, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        with pytest.raises(SparsebakError, match="without end"):
            list(Bucket(URL).versions())
    assert len(asked) == 21


@pytest.mark.parametrize("date", [253402300799.0, 300000000000.0])
def test_a_clock_of_the_store_beyond_all_dates_s3(
    monkeypatch: pytest.MonkeyPatch, date: float
) -> None:
    """The end of the year 9999, after which no date can be reckoned; and what is no date at all."""
    monkeypatch.setattr("email.utils.formatdate", _shown(date))
    with http_store(lambda _: (200, b"<a/>"), date) as (port, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        asked = Bucket(URL)
        assert abs(asked.now() - time.time()) < 60
        assert asked.retain("packs/x", int(asked.now()) + 366 * 86400) > time.time()


def _shown(date: float) -> Callable[..., str]:
    year = 9999 if date < 253402300800 else 11476
    return lambda *_, **__: f"Fri, 31 Dec {year} 23:59:59 GMT"


def test_a_store_that_is_not_there_or_silent_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(Unreachable, match="refused"):
        Bucket(URL).locks()
    monkeypatch.setattr(objects, "SILENCE", 0.3)
    monkeypatch.setattr(bucket, "_PATIENCE", 1.0)
    with raw_store(silent) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        with pytest.raises((Silent, Unreachable)):
            Bucket(URL).locks()
        assert time.monotonic() - begun < AT_ONCE


def test_a_store_that_is_silent_is_given_up_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was waited for an answer counts, not the pauses between alone."""
    monkeypatch.setattr(bucket, "_PATIENCE", 0.3)
    monkeypatch.setattr(objects, "PATIENCE", 0.8)
    monkeypatch.setattr(objects, "DELAYS", (0.01,) * 200)
    with raw_store(silent) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        begun = time.monotonic()
        with pytest.raises(SparsebakError, match="does not answer"):
            Place(URL).ask(Bucket(URL).locks)
        assert time.monotonic() - begun < AT_ONCE


def test_a_connection_that_was_closed_meanwhile_is_opened_again_s3(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<a/>"

    def one_each(one) -> None:  # type: ignore[no-untyped-def]
        one.recv(1 << 16)
        one.sendall(answer)
        one.close()

    with raw_store(one_each) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        asked = Bucket(URL)
        for _ in range(4):
            assert not asked.locks()


NAMES = ("archive.toml", "packs/aa/x.pack", "locks/writer-1")
HISTORIES = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.booleans()), max_size=25
)
"""What was done one after another: to which name, how many seconds after the one before, and
whether it was deleted.
"""


def listed(history: list[tuple[str, int, bool]]) -> list[Version]:
    """As a store lists its versions, those of one name together, the newest first."""
    now, found = 1000.0, list[Version]()
    for number, (name, later, marker) in enumerate(history):
        now += later
        found = [one._replace(latest=one.latest and one.name != name) for one in found]
        size = 0 if marker else number + 1
        found.insert(0, Version(name, f"v{number}", now, size, f"e{number}", True, marker))
    return sorted(found, key=lambda one: one.name)


@given(history=HISTORIES, moment=st.integers(995, 1080))
def test_the_versions_of_a_moment(history: list[tuple[str, int, bool]], moment: int) -> None:
    model, now = dict[str, int](), 1000
    for number, (name, later, marker) in enumerate(history):
        now += later
        if now > moment:
            break
        model.pop(name, None)
        if not marker:
            model[name] = number + 1
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "tests")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patched.setattr(Bucket, "versions", lambda _: iter(listed(history)))
        patched.setattr(PastStore, "_stored", lambda _, version: int(version.time))
        store = PastStore(URL, moment)
        there = {name: entry.size for name, entry in store.list()}
    assert there == model
    assert {name: store._which(name)["version"] for name in there} == {
        name: f"v{size - 1}" for name, size in model.items()
    }


@given(
    history=HISTORIES,
    retention=st.integers(1, 20),
    now=st.integers(1000, 1100),
    locked=st.sets(st.integers(0, 25), max_size=5),
)
def test_the_versions_that_are_removed_for_good(
    history: list[tuple[str, int, bool]], retention: int, now: int, locked: set[int]
) -> None:
    """What is not the newest, and was replaced longer ago than the retention; a marker beneath
    which nothing is left, too. What is there is never touched, and what is locked stays out of
    sight.
    """
    every, gone = listed(history), list[str]()
    kept = {f"v{number}" for number in locked}

    def remove(_: Bucket, name: str, version: str) -> None:
        if version in kept:
            raise ForbiddenError(f"{name} is locked")
        gone.append(version)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Bucket, "versions", lambda _: iter(every))
        patched.setattr(Bucket, "now", lambda _: float(now))
        patched.setattr(Bucket, "remove", remove)
        patched.setattr(Bucket, "retained", lambda *_: 5000)
        patched.setenv("AWS_ACCESS_KEY_ID", "tests")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        vault = Vault(URL, Place(URL), {}, retention)
        left = vault.remove_due(lambda name: not name.startswith("locks/"))
    due, waiting = set[str](), list[tuple[int, int]]()
    for name in NAMES[:2]:
        mine = [one for one in every if one.name == name]
        for newer, one in zip(mine, mine[1:], strict=False):
            if newer.time < now - retention:
                due.add(one.id)
                if one.id in kept:
                    waiting.append((one.size, 5000))
            elif not one.marker:
                waiting.append((one.size, int(newer.time) + retention))
        if mine and mine[0].marker and (due - kept).issuperset(one.id for one in mine[1:]):
            due.add(mine[0].id)
            if mine[0].id in kept:
                waiting.append((0, 5000))
            else:  # the last of its name
                assert {one.id for one in mine} <= set(gone[: gone.index(mine[0].id) + 1])
    assert set(gone) == due - kept and len(gone) == len(due - kept)
    assert left.waiting == sum(size for size, _ in waiting)
    assert left.until == max((at for _, at in waiting), default=0)
    assert left.removed == sum(one.size for one in every if one.id in due - kept)


def _spellings() -> Iterator[tuple[str, float]]:
    yield from dict.fromkeys(
        ("2026-11-20T08:30", "2026-11-20 08:30:00Z", "2026-11-20T10:30+02:00", "20261120-083000"),
        1795163400.0,
    ).items()
    yield "2026-11-20", 1795132800.0


@pytest.mark.parametrize(("text", "moment"), list(_spellings()))
def test_moments(text: str, moment: float) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "99999999999999999999"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="is not a moment"):
        parse_moment(text)
