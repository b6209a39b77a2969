# SPDX-License-Identifier: GPL-2.0-or-later
"""What the docs name is there, and the README stays on one screen."""

import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TEST = re.compile(r"`(?:tests/)?((?:\w+/)*(?:test_\w+|histories)\.py)`")
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)(#[^)\s]+)?\)")
SOURCE = re.compile(r"`((?:common|wire|backup_vm|dom0_agent|tools|bench|docs|systemd)/[\w./-]+)`")


def pages() -> Iterator[tuple[Path, str]]:
    """Every page of documentation, and its text."""
    for folder in ("", "docs", "bench", "tests"):
        for page in (ROOT / folder).glob("*.md"):
            yield page, page.read_text()


def anchors(page: Path) -> set[str]:
    """What a link into a page may name, as forges make it of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_test_that_docs_name_exists() -> None:
    named = {
        (page.name, name)
        for page in (ROOT / "docs").glob("*.md")
        for name in TEST.findall(page.read_text())
    }
    assert len(named) > 20
    assert not [(page, name) for page, name in named if not (ROOT / "tests" / name).is_file()]


def test_every_file_that_docs_name_exists() -> None:
    named = {(page.name, name) for page, text in pages() for name in SOURCE.findall(text)}
    assert len(named) > 10
    missing = [(page, name) for page, name in named if not (ROOT / name).exists()]
    assert not [one for one in missing if "NAME" not in one[1]]


def test_every_link_between_pages_leads_somewhere() -> None:
    links = [(page, *link) for page, text in pages() for link in LINK.findall(text)]
    assert len(links) > 40
    for page, name, anchor in links:
        target = page.parent / name
        assert target.exists(), (page.name, name)
        assert not anchor or anchor[1:] in anchors(target), (page.name, name, anchor)


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, due = set(), [ROOT / "README.md"]
    while due:
        page = due.pop().resolve()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            due += [page.parent / name for name, _ in LINK.findall(page.read_text())]
    assert not {page.resolve() for page, _ in pages()} - seen


def test_the_readme_is_one_screen_and_gives_the_command_that_ci_runs() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    command = (ROOT / ".ci/run").read_text().splitlines()[-1].removeprefix("exec ")
    assert any(line.split("#")[0].strip() == command for line in lines)


def test_every_word_of_the_glossary_is_linked_from_some_page() -> None:
    words = anchors(ROOT / "docs/glossary.md") - {"glossary"}
    assert len(words) == 14
    used = {anchor[1:] for _, text in pages() for name, anchor in LINK.findall(text) if anchor}
    assert not words - used
    for name in ("README.md", "docs/linux.md", "docs/qubes.md", "docs/everyday.md"):
        assert "glossary.md" in (ROOT / name).read_text(), name


def test_the_public_ci_runs_the_same_command_and_pins_its_actions() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    command = (ROOT / ".ci/run").read_text().splitlines()[-1].removeprefix("exec ")
    assert command in [step.get("run") for step in steps]
    for action in (step["uses"] for step in steps if "uses" in step):
        assert re.fullmatch(r"actions/[\w-]+@v\d+(\.\d+)*", action)
