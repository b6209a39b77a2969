# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in dom0, in lines of code without blank lines, comments and docstrings: ``make audit``.

Three numbers: all of it; what a call from a backup VM can reach, which is what ``dom0_agent/rpc``
imports, directly or through others, in functions too; and what handles bytes that a backup VM
chose. Below the second, what is reached on one machine, and without Restore, before which dom0's
user is asked. Then what the second is made of, and the table by room. Statements are counted beside
lines: they do not depend on how lines are wrapped.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from tools.audited import ELSEWHERE, MACHINES, PARTS, ROOMS, UNTRUSTED

ROOT = Path(__file__).resolve().parent.parent
OURS = ("common", "wire", "dom0_agent")
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


@cache
def size(path: Path) -> tuple[int, int]:
    """Lines of code of a module, and its statements."""
    text = path.read_text()
    docstrings: set[int] = set()
    statements = 0
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        elif isinstance(node, ast.stmt):
            statements += 1
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings), statements


def _never_run(tree: ast.Module) -> set[ast.AST]:
    """What stands below ``if TYPE_CHECKING``."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                found |= set(ast.walk(statement))
    return found


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names of all that a module imports when it runs, wherever in it: ``a.b`` for ``import
    a.b``, ``a`` and ``a.b`` for ``from a import b``.
    """
    tree = ast.parse(path.read_text())
    skipped = _never_run(tree)
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.split(".")[0] for name in imports(path)}


def modules() -> list[Path]:
    """All modules that are installed in dom0."""
    found = {path for package in OURS for path in (ROOT / package).rglob("*.py")}
    return sorted(found - {ROOT / name for name in ELSEWHERE})


@cache
def _files(name: str) -> frozenset[Path]:
    """The files of ours that importing a dotted name runs, packages above it too."""
    parts = name.split(".")
    if parts[0] not in OURS:
        return frozenset()
    found: set[Path] = set()
    for count in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:count])
        found |= {one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()}
    return frozenset(found)


def closure(roots: Iterable[Path], stop: tuple[str, ...] = ()) -> set[Path]:
    """All modules of ours that modules import, directly or through others, themselves included.
    None in whose path one of ``stop`` stands.
    """
    waiting, seen = list(roots), set[Path]()
    while waiting:
        path = waiting.pop()
        where = str(path.relative_to(ROOT))
        if path not in seen and not any(part in where for part in stop):
            seen.add(path)
            waiting += [file for name in imports(path) for file in _files(name)]
    return seen


def reachable(stop: tuple[str, ...] = (), restore: bool = True) -> set[Path]:
    """What a call can reach; without ``restore`` every call but Restore."""
    stop = stop if restore else (*stop, "services/restore")
    return closure((ROOT / "dom0_agent/rpc").rglob("*.py"), stop)


def part(title: str) -> set[Path]:
    """Those modules within reach that belong to one of PARTS."""
    return {
        path
        for path in reachable()
        if any(name in str(path.relative_to(ROOT)) for name in PARTS[title])
    }


def names_untrusted(path: Path) -> bool:
    """Whether a module has a name that says that its value is not validated."""
    words = (
        getattr(node, field, None)
        for node in ast.walk(ast.parse(path.read_text()))
        for field in ("id", "arg", "attr")
    )
    return any(isinstance(word, str) and word.startswith("untrusted_") for word in words)


def measure(paths: Iterable[Path]) -> tuple[int, int]:
    """Lines of code of modules, and their statements."""
    sizes = [size(path) for path in paths]
    return sum(lines for lines, _ in sizes), sum(statements for _, statements in sizes)


def numbers() -> dict[str, set[Path]]:
    """The modules behind each number that a reviewer is given, by its title."""
    chosen = {ROOT / name for name in UNTRUSTED}
    return {
        "all of dom0": set(modules()),
        "what a call can reach": reachable(),
        "of that, without Restore": reachable(restore=False),
        **{f"of that, {machine}": reachable(stop) for machine, stop in MACHINES.items()},
        **{
            f"of that, {machine}, without Restore": reachable(stop, restore=False)
            for machine, stop in MACHINES.items()
        },
        "what handles bytes that a backup VM chose": chosen,
        "of that, in a call": chosen & reachable(),
        "of that, in the administrator's commands": chosen - reachable(),
    }


def main() -> None:
    every, reached = modules(), reachable()
    for name, paths in numbers().items():
        print("{:51}{:6,} lines, {:6,} statements".format(f"{name}:", *measure(paths)))
    print("\nwhat a call can reach is made of:")
    for title in PARTS:
        lines, statements = measure(part(title))
        print(f"  {lines:5,} lines, {statements:5,} statements: {title}")
    for room, title in ROOMS.items():
        members = [path for path in every if str(path.parent.relative_to(ROOT)) == room]
        lines = {path: size(path)[0] for path in members}
        within = sum(lines[path] for path in members if path in reached)
        print(f"\n{room}: {sum(lines.values())} lines, {within} within reach of a call ({title})")
        for path, count in sorted(lines.items(), key=lambda item: -item[1]):
            if count:
                marks = ("" if path in reached else ", out of reach") + (
                    ", bytes of a backup VM" if str(path.relative_to(ROOT)) in UNTRUSTED else ""
                )
                print(f"  {count:5} {path.stem}{marks}")
    libraries = set().union(*(imported(path) for path in every)) - set(OURS)
    print(f"\nBeside the standard library: {_others(libraries)}; a call: {_others(_of(reached))}.")


def _of(paths: Iterable[Path]) -> set[str]:
    return set().union(*(imported(path) for path in paths)) - set(OURS)


def _others(libraries: set[str]) -> str:
    return ", ".join(sorted(libraries - set(sys.stdlib_module_names)))


if __name__ == "__main__":
    main()
