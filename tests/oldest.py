# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests are run again with the oldest libraries, see tools/oldest.py: those that a library's
release can make fail. As a plugin of pytest, ``-p tests.oldest``, it leaves out the others.

Of tests/unit these are the files that name a library, or a module that does, as their imports tell;
elsewhere, where everything reaches everything, the first test of each file.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from tools.audit import imports

ROOT = Path(__file__).parent.parent
LIST = ROOT / "tests/oldest.txt"
PACKAGES = ("common", "wire", "dom0_agent", "backup_vm")


@cache
def libraries() -> frozenset[str]:
    """Names of the libraries, which are also those of their packages."""
    return frozenset(re.findall(r"^(\w+)==", LIST.read_text(), re.MULTILINE))


def names_a_library(path: Path) -> bool:
    return any(name.split(".")[0] in libraries() for name in imports(path))


@cache
def users() -> frozenset[str]:
    """Modules of sparsebak that call a library themselves."""
    return frozenset(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if names_a_library(path)
    )


def concerned(path: Path) -> bool:
    """Whether a file of unit tests is run again."""
    return names_a_library(path) or bool(imports(path) & users())


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    unit = collection_path.is_relative_to(ROOT / "tests/unit") and collection_path.is_file()
    return True if unit and not concerned(collection_path) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left, seen = list[pytest.Item](), list[pytest.Item](), set[Path]()
    for item in items:
        unit = item.path.is_relative_to(ROOT / "tests/unit")
        (kept if unit or item.path not in seen else left).append(item)
        seen.add(item.path)
    config.hook.pytest_deselected(items=left)
    items[:] = kept
