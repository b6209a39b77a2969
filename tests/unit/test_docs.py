"""What the docs name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEST = re.compile(r"`(?:tests/)?((?:\w+/)*(?:test_\w+|histories)\.py)`")


def test_every_test_that_docs_name_exists() -> None:
    named = {
        (page.name, name)
        for page in (ROOT / "docs").glob("*.md")
        for name in TEST.findall(page.read_text())
    }
    assert len(named) > 20
    assert not [(page, name) for page, name in named if not (ROOT / "tests" / name).is_file()]
