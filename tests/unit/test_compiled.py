# SPDX-License-Identifier: GPL-2.0-or-later
"""What is compiled is what is declared: the files of codes are current, and both ways read and
build the same.
"""

import importlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from construct import Struct
from hypothesis import given, settings
from hypothesis import strategies as st

from backup_vm.archive.format import EXPORT_MAGIC, INDEX_MAGIC, PACK_MAGIC, SESSION_MAGIC
from backup_vm.archive.walk import shown
from tests.declared import Declared
from tools import compiled, tables
from wire.declared import bare, declaration
from wire.grants import GRANT_MAGIC
from wire.layout import LAST_TIME, TIME, Codes, Compiled, Structure

COMPILED = {
    one: compiled.codes(one)
    for modules in compiled.MODULES.values()
    for module in modules
    for one in compiled.structures(module)
    if one.compiled
}


@pytest.mark.parametrize("path", compiled.MODULES)
def test_the_codes_are_those_of_the_declarations(path: str) -> None:
    found = importlib.import_module(path.removesuffix(".py").replace("/", ".")).COMPILED
    assert found == compiled.table(path), "run: make pages"


def values_of(codes: Codes) -> st.SearchStrategy[dict[str, Any]]:
    """Values for a structure, some of which no field can have."""
    return st.fixed_dictionaries(
        {name: values(code) for name, code in codes.items() if isinstance(code, str)}
    )


def values(code: str) -> st.SearchStrategy[Any]:
    if code.endswith("t"):
        size = int(code[:-1])
        return st.text(st.characters(max_codepoint=0x90), max_size=size + 1)
    if code.endswith("s"):
        size = int(code[:-1])
        return st.one_of(st.binary(min_size=size, max_size=size), st.binary(max_size=size + 1))
    top = LAST_TIME if code == TIME else (1 << 8 * Compiled({"a": code}).size) - 1
    return st.one_of(st.integers(0, top), st.sampled_from([-1, 0, top, top + 1]))


def outcome(action: Any, *arguments: Any) -> Any:
    try:
        return action(*arguments)
    except ValueError:
        return ValueError


@pytest.mark.parametrize("structure", COMPILED, ids=lambda one: f"{one.__module__}.{one.__name__}")
@settings(max_examples=30)
@given(data=st.data())
def test_both_ways_are_one(structure: type[Structure], data: st.DataObject) -> None:
    codes, fast = COMPILED[structure], structure.coder()
    assert isinstance(fast, Compiled)
    flat = Declared(structure)
    assert fast.size == flat.size
    raw = data.draw(st.binary(min_size=fast.size, max_size=fast.size))
    head = b"".join(code for code in list(codes.values())[:1] if isinstance(code, bytes))
    for one in (raw, head + raw[len(head) :], raw[1:], raw + b"\0"):
        assert outcome(fast.parse, one) == outcome(parse_flat, flat, codes, one)
    found = data.draw(values_of(codes))
    built = outcome(fast.build, found)
    if built is not ValueError:
        assert fast.parse(built) == parse_flat(flat, codes, built)
    if not any(isinstance(bare(field), Struct) for field in declaration(structure).subcons):
        assert outcome(flat.build, found) == built


def parse_flat(coder: Declared, codes: Codes, raw: bytes) -> dict[str, Any]:
    """What construct reads, structures within the structure laid flat, without constants."""
    found = _flat(coder.parse(raw), "")
    return {name: value for name, value in found if isinstance(codes[name], str)}


def _flat(found: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not name.startswith("_"):
            yield f"{prefix}{name}", value


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_tables_of_a_page_are_those_of_the_declarations(path: Path) -> None:
    page = path.read_text()
    assert tables.text(page) == page, "run: make pages"
    assert page.count("<!-- end of bytes -->") == page.count("<!-- bytes of ") >= 10


def test_every_structure_is_on_a_page() -> None:
    """Every one of wire and of the archive, by itself or as it is compiled into others."""
    text = "".join(path.read_text() for path in tables.PAGES)
    modules = (
        "wire.messages",
        "wire.records",
        "wire.restore",
        "wire.slots",
        "wire.grants",
        "wire.reading",
        "backup_vm.archive.format",
    )
    left_out = {"Message", "Record", "ReplyStream", "ChunkFrame"}  # series of others
    left_out |= {"SealedRecord", "OpenedRecord", "Slot", "SentChunk", "PackedChunk", "SessionEntry"}
    for module in modules:
        for one in compiled.structures(module):
            named = f"<!-- bytes of {module}.{one.__name__} " in text
            assert named or one.__name__ in left_out, one


def test_magic_numbers_are_on_the_page() -> None:
    page = tables.PAGES[0].read_text()
    for magic in (PACK_MAGIC, INDEX_MAGIC, SESSION_MAGIC, EXPORT_MAGIC, GRANT_MAGIC):
        assert f"`{shown(magic)}`" in page


def test_a_short_command_does_not_import_construct() -> None:
    agent = ("rpc.dispatch", "rpc.resident", "rpc.extraction", "tracking.rotation")
    manager = ("cli.backup", "jobs.backup", "archive.archive")
    names = [f"dom0_agent.{one}" for one in agent] + [f"backup_vm.{one}" for one in manager]
    code = f"import sys, {', '.join(names)}; sys.exit('construct' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
