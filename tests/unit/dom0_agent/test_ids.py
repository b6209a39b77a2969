from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dom0_agent.ids import CommittedIds, KnownIds
from wire.sealing import ZERO_ID
from wire.tree import PAGE_IDS, Tree

TREE = Tree(b"t" * 32)
one_id = st.integers(0, 3).map(lambda n: bytes([n]) * 32)
step = st.tuples(
    st.booleans(),
    st.integers(0, 2 * PAGE_IDS + 5),
    st.dictionaries(st.integers(0, 2 * PAGE_IDS + 4), one_id),
)


def plain_root(model: list[bytes]) -> bytes:
    pages = [
        TREE.page(b"".join(model[at : at + PAGE_IDS])) for at in range(0, len(model), PAGE_IDS)
    ]
    return TREE.root(len(model), 1, pages)


@given(st.lists(step, max_size=4))
def test_roots_and_ids_follow_a_plain_model(
    tmp_path_factory: object, steps: list[tuple[bool, int, dict[int, bytes]]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("ids")  # type: ignore[attr-defined]
    model: list[bytes] = []
    for full, chunks, changes in steps:
        entries = sorted(
            (number, chunk_id) for number, chunk_id in changes.items() if number < chunks
        )
        model = ([] if full else model[:chunks]) + [ZERO_ID] * (
            chunks - (0 if full else min(len(model), chunks))
        )
        for number, chunk_id in entries:
            model[number] = chunk_id
        ids = CommittedIds(folder / "ids")
        pages = list(ids.digests(entries, full, chunks, TREE))
        assert TREE.root(chunks, 1, pages) == plain_root(model)
        ids.apply(entries, full, chunks, pages)
        ids.close()
        for _ in range(2):  # once more, as after a crash
            ids = CommittedIds(folder / "ids")
            again = list(ids.digests(entries, full, chunks, TREE))
            assert again == pages
            ids.apply(entries, full, chunks, again)
            ids.close()
        ids = CommittedIds(folder / "ids")
        known = KnownIds(ids.page)
        assert ids.count == chunks and [known.of(number) for number in range(chunks)] == model
        ids.close()


def test_a_lost_page_file_is_made_anew(tmp_path: Path) -> None:
    ids = CommittedIds(tmp_path / "ids")
    entries = [(number, b"x" * 32) for number in range(PAGE_IDS + 7)]
    pages = list(ids.digests(entries, True, PAGE_IDS + 7, TREE))
    ids.apply(entries, True, PAGE_IDS + 7, pages)
    (tmp_path / "ids.pages").unlink()
    assert list(ids.digests([], False, PAGE_IDS + 7, TREE)) == pages
    ids.close()
