"""What a submission may use of this project: the public headers, and what its lab says. Not the solution next door.

This project has a ring, a block frontend, a client of xenstored. A lab that asks for one is not done by importing it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

OURS: Final = frozenset({"hypervisor", "guest_kernel", "backends", "frontends", "toolstack", "conformance", "labs"})


def forbidden_import(paths: Iterable[Path], allowed: Sequence[str]) -> str:
    """Return a sentence about the first import of this project's code that is not allowed; "" if there is none.

    `allowed` are modules and packages, each with all that is in it. A file that cannot be parsed imports nothing here:
    executing it will say why.
    """
    for path in sorted(paths):
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for line, name in _imports(tree):
            if is_forbidden(name, allowed):
                return f"{path.name}:{line}: {name} is not to be used in this lab: it has what you are to write"
    return ""


def is_forbidden(name: str, allowed: Sequence[str]) -> bool:
    """Whether something of this project's, by its full name, is not to be used."""
    return name.partition(".")[0] in OURS and not any(f"{name}.".startswith(f"{one}.") for one in allowed)


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything that is imported, in order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            # `from a.b import c`: c may be a module in a.b, or a name in the module a.b.
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
