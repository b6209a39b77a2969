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


def test_every_module_of_the_archive_has_its_subject() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.partition("| subject | modules |")[2].partition("\n\n")[0]
    named = re.findall(r"`(\w+)`", table)
    modules = {path.stem for path in (ROOT / "backup_vm/archive").glob("*.py")} - {"__init__"}
    assert len(named) == len(set(named)) and set(named) == modules


def test_every_module_on_the_ways_through_the_code_is_there() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    ways = page.partition("## Reading the code")[2].split("```")[1]
    rooms = {path.name: path for side in ("backup_vm", "dom0_agent") for path in side_rooms(side)}
    named = re.findall(r"\b(\w+)/([\w/]*)", ways)
    assert len(named) > 40
    for room, rest in named:
        folder = ROOT / "wire" if room == "wire" else rooms[room]
        place = folder / rest
        assert place.is_dir() or place.with_suffix(".py").is_file(), f"{room}/{rest}"


def side_rooms(side: str) -> Iterator[Path]:
    """The folders right in a package."""
    yield from (path for path in (ROOT / side).iterdir() if path.is_dir())


def test_every_target_unit_and_tool_that_docs_name_exists() -> None:
    """Our own commands are tried by tests/run/test_written_commands.py."""
    rules = re.findall(r"^([a-z0-9 -]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = {word for rule in rules for word in rule.split()}
    units = {path.name for path in (ROOT / "systemd").rglob("*") if path.is_file()}
    found = 0
    for page, text in pages():
        typed = re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)
        assert set(typed) <= targets, page.name
        named = re.findall(r"\bsparsebak[\w@-]*\.(?:timer|service|socket)\b", text)
        assert set(named) <= units, page.name
        tools = [ROOT.joinpath(*one.split(".")) for one in re.findall(r"python -m ([\w.]+)", text)]
        for tool in tools:
            assert tool.with_suffix(".py").is_file() or (tool / "__main__.py").is_file(), page.name
        found += len(typed) + len(named) + len(tools)
    assert found > 60


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
    assert len(words) == 16
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
