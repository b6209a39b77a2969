# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in dom0, in lines of code without blank lines, comments and docstrings: ``make audit``.

Three numbers, then the table by room: all of it; what a call from a backup VM can reach, which is
what ``dom0_agent/rpc`` imports, directly or through others, in functions too; and what handles
bytes that a backup VM chose. Statements are counted beside lines: they do not depend on how lines
are wrapped.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("common", "wire", "dom0_agent")
ROOMS = {
    "dom0_agent/rpc": "what a call starts",
    "dom0_agent/rpc/services": "one module a service",
    "dom0_agent/tracking": "snapshots, changes, committed sessions",
    "dom0_agent/sources": "kinds of storage; read only",
    "dom0_agent/targets": "new contents",
    "dom0_agent/catalog": "which volumes there are",
    "dom0_agent": "configuration, keys, bitmaps",
    "wire": "what crosses between the two sides",
    "common": "writing files, text",
    "dom0_agent/admin": "the administrator's side; no call gets here",
    "dom0_agent/admin/cli": "the administrator's commands",
    "dom0_agent/admin/settings": "settings of qubes and of dom0, an optional package",
}
UNTRUSTED = (
    "dom0_agent/rpc/dispatch.py",
    "dom0_agent/rpc/resident.py",
    "dom0_agent/rpc/heads.py",
    "dom0_agent/rpc/streams.py",
    "dom0_agent/rpc/receiving.py",
    "dom0_agent/rpc/services/extract.py",
    "dom0_agent/tracking/next_session.py",
    "dom0_agent/tracking/present.py",
    "dom0_agent/tracking/rotation.py",
    "dom0_agent/admin/adoption.py",
    "dom0_agent/admin/cli/keys.py",
    "dom0_agent/admin/granting.py",
    "dom0_agent/admin/opening.py",
    "wire/names.py",
    "wire/layout.py",
    "wire/declared.py",
    "wire/messages.py",
    "wire/stream.py",
    "wire/records.py",
    "wire/chunks.py",
    "wire/merkle.py",
    "wire/open_chunks.py",
    "wire/slots.py",
    "wire/grants.py",
    "wire/reading.py",
)
"""Modules that handle bytes which a backup VM chose, before or while they are proven."""
MACHINES = {
    "Qubes OS, thin pool": (
        "reflink",
        "btrfs",
        "fiemap",
        "extents",
        "zfs",
        "targets/lvm",
        "static",
    ),
    "Qubes OS, Btrfs or XFS": (
        "lvm_thin",
        "thin_",
        "sources/lvm",
        "sources/programs",
        "zfs",
        "targets/lvm",
        "static",
    ),
    "elsewhere, thin pool": (
        "reflink",
        "btrfs",
        "fiemap",
        "extents",
        "zfs",
        "qubesd",
        "kept",
        "dropbox",
    ),
    "elsewhere, Btrfs or XFS": (
        "lvm",
        "thin_",
        "sources/programs",
        "zfs",
        "qubesd",
        "kept",
        "dropbox",
    ),
}
"""Of what can be reached, parts of the names of modules that a kind of machine never loads."""
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


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


def imports(path: Path) -> set[str]:
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
    return found


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports."""
    return {name.split(".")[0] for name in imports(path)}


def modules() -> list[Path]:
    """All modules that are installed in dom0."""
    return sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


def _files(name: str) -> set[Path]:
    """The files of ours that importing a dotted name runs, packages above it too."""
    parts = name.split(".")
    if parts[0] not in OURS:
        return set()
    found = set()
    for count in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:count])
        found |= {one for one in (path.with_suffix(".py"), path / "__init__.py") if one.is_file()}
    return found


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


def reachable(stop: tuple[str, ...] = ()) -> set[Path]:
    """What a call can reach."""
    return closure((ROOT / "dom0_agent/rpc").rglob("*.py"), stop)


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
    machines = {f"of that, {machine}": reachable(stop) for machine, stop in MACHINES.items()}
    return {
        "all of dom0": set(modules()),
        "what a call can reach": reachable(),
        **machines,
        "what handles bytes that a backup VM chose": {ROOT / name for name in UNTRUSTED},
    }


def main() -> None:
    every, reached = modules(), reachable()
    for name, paths in numbers().items():
        print("{:44}{:6,} lines, {:6,} statements".format(f"{name}:", *measure(paths)))
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
