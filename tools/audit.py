"""What runs in dom0: lines of code by module, without blank lines, comments and docstrings: ``make
audit``.
"""

import ast
import io
import tokenize
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = {"common", "wire", "dom0_agent"}
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
GROUPS = {
    "wire": "what crosses between the two sides",
    "dom0_agent": "rotation, extraction, restore, state",
    "dom0_agent/rpc/services": "one module a service: what a backup VM can reach",
    "dom0_agent/sources": "kinds of storage",
    "dom0_agent/catalog": "which volumes there are",
    "dom0_agent/admin/settings": "settings of qubes and of dom0; only on Qubes OS",
    "dom0_agent/admin/cli": "the administrator's commands; no backup VM can reach them",
}


def lines_of_code(path: Path) -> int:
    text = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docstrings)


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def main() -> None:
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    libraries: dict[str, set[str]] = defaultdict(set)
    for path in sorted(path for package in OURS for path in (ROOT / package).rglob("*.py")):
        group = str(path.parent.relative_to(ROOT))
        sizes[group][path.stem] = lines_of_code(path)
        for library in imported(path) - OURS:
            libraries[library].add(group)
    for group, title in GROUPS.items():
        print(f"\n{group}: {sum(sizes[group].values())} lines ({title})")
        for name, size in sorted(sizes[group].items(), key=lambda item: -item[1]):
            if size:
                print(f"  {size:5} {name}")
    import sys

    print(f"\nIn all {sum(sum(group.values()) for group in sizes.values())} lines.")
    print(
        "Beside the standard library:"
        f" {', '.join(sorted(set(libraries) - set(sys.stdlib_module_names)))}."
    )


if __name__ == "__main__":
    main()
