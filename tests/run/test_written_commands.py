# SPDX-License-Identifier: GPL-2.0-or-later
"""Every command line that stands anywhere is one that the product's own parsers take: in docs and
man pages, in units and packages, and in what the code prints as a remedy."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from backup_vm import cli as vm
from backup_vm.cli import spbk_assemble
from dom0_agent.admin import cli as dom0

ROOT = Path(__file__).parent.parent.parent
PROGRAMS = {
    "sparsebak": cache(vm.parser),
    "sparsebak-agent": cache(dom0.parser),
    "spbk-assemble": cache(spbk_assemble.parser),
}
COMMAND = re.compile(
    r"(?<![\w./@-])(?<!:)(?:/usr/bin/)?(sparsebak|sparsebak-agent|spbk-assemble)(?= )([^\n`]*)"
)
ENDS = re.compile(
    r"""[;)&|>"”'’`]|\s\#|,(?:\s|$)|\.(?:\s|$)|:(?:\s|$)|\s(?:then|and|or|in|to|where|when|with)\s|\s{3}|\s\.\.\.|["']$"""
)
ASKS = re.compile(r"(?:[:('‘“`]\s?|^Exec\w+=)$")
"""What stands before something to type; elsewhere the program's name may be part of a sentence."""
NO_COMMANDS = {"sparsebak page", "sparsebak root", "sparsebak domain"}
"""What hashes differ by."""
KNOWN = {*vm.COMMANDS, *dom0.COMMANDS}
VALUES = {"N": "7", "TIME": "2d", "ROOM": "20G", "F": "pw"}


def filled(text: str) -> list[str]:
    """The words of a command line, with something in the place of what a reader is to fill in."""
    text = re.sub(r"\[([^\]]*)\]", r"\1", text)  # what may be left out is there
    words = [word.split("|")[0] for word in shlex.split(text)]
    return [VALUES.get(word, word) for word in words]


def problem(text: str, whole: bool, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What the parser says against a command line. Not ``whole``: a command's name alone may stand
    for it.
    """
    program, *words = filled(text)
    try:
        PROGRAMS[program]().parse_args(words)
    except SystemExit as end:
        said = capsys.readouterr().err.strip()
        named = len(words) < 3 and all(re.fullmatch(r"[a-z][a-z-]*", word) for word in words)
        if end.code and not (named and not whole and "arguments are required" in said):
            return said.splitlines()[-1]
    return None


def found(text: str) -> Iterator[str]:
    """Command lines in a line of text: from the program's name to where the sentence continues."""
    for match in COMMAND.finditer(text):
        rest = match[2]
        if end := ENDS.search(rest):
            rest = rest[: end.start()]
        words = rest.split()
        asked = ASKS.search(text[: match.start()]) and "<" not in match[2]
        if words and (words[0] in KNOWN or asked):
            yield f"{match[1]} {' '.join(words)}"


def in_markdown(path: Path) -> Iterator[tuple[str, bool]]:
    """Lines of code blocks, each whole, and code spans."""
    block = False
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            block = not block
        elif block:
            for part in re.split(r"&&|;|\|", line.partition(" # ")[0].partition("   #")[0]):
                if match := re.match(r"\s*(?:sudo )?((?:sparsebak|spbk-assemble)\S* .*)", part):
                    yield re.sub(r"\s[<>&].*", "", match[1]).strip(), True
        else:
            for span in re.findall(r"`([^`]+)`", line):
                for text in re.split(r"&&|;", span):
                    if re.match(r"(sparsebak|sparsebak-agent|spbk-assemble) ", text.strip()) and (
                        text.strip() not in NO_COMMANDS
                    ):
                        yield text.strip(), False


def in_code(path: Path) -> Iterator[str]:
    """Command lines within the strings of a module; what is put in at run time is a word."""
    tree = ast.parse(path.read_text())
    pieces = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if id(node) in pieces:
            continue
        if isinstance(node, ast.JoinedStr):
            yield from found(
                "".join(
                    part.value if isinstance(part, ast.Constant) else "X" for part in node.values
                )
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for line in node.value.splitlines():
                yield from found(line)


def written() -> Iterator[tuple[str, str, bool]]:
    """Where, the command line, and whether it is one to type as it stands."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md")]:
        for text, whole in in_markdown(path):
            yield str(path.relative_to(ROOT)), text, whole
    for folder in ("backup_vm", "dom0_agent", "wire", "common"):
        for path in (ROOT / folder).rglob("*.py"):
            for text in in_code(path):
                yield str(path.relative_to(ROOT)), text, False
    plain = [*ROOT.glob("systemd/*/*"), *ROOT.glob("policy/*"), *ROOT.glob("docs/*.toml")]
    plain += [path for folder in ("rpm", "debian") for path in (ROOT / folder).rglob("*")]
    for path in [*plain, ROOT / "Makefile", ROOT / "dom0_agent/admin/on-removal"]:
        for line in path.read_text().splitlines() if path.is_file() else ():
            for text in found(line.replace("%%", "%")):
                yield str(path.relative_to(ROOT)), text, line.startswith("Exec")


def test_every_command_line_that_stands_anywhere_is_taken(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = set(written())
    wrong = [
        f"{where}: {text}: {said}"
        for where, text, whole in sorted(lines)
        if (said := problem(text, whole, capsys)) is not None
    ]
    assert not wrong, "\n".join(wrong)
    assert len(lines) > 150, "what finds them finds them no more"
    assert any(where.endswith(".service") and whole for where, _, whole in lines)
