"""Files found by what they define, so that they can be moved and renamed."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path


def defined_in(root: Path, files: Iterable[Path]) -> dict[str, list[str]]:
    """For each function, class and method `Class.name`: the files that define it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in files:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in _names(node):
                found[name].append(str(path.relative_to(root)))
    return found


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if not isinstance(node, ast.ClassDef):
        return []
    methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef)]
    return [node.name, *(f"{node.name}.{name}" for name in methods)]


def homes(definitions: Mapping[str, list[str]], wanted: Iterable[str]) -> list[str]:
    """The file of each wanted definition.

    Raises:
        LookupError: some are defined nowhere, or in several files; all are named.
    """
    wanted = list(wanted)
    wrong = {name: files for name in wanted if len(files := definitions.get(name, [])) != 1}
    if wrong:
        lines = [f"  {name}: in {', '.join(files) or 'no file'}" for name, files in wrong.items()]
        raise LookupError(
            "each is to be defined in one file; name another definition of that file instead:\n"
            + "\n".join(lines)
        )
    return [definitions[name][0] for name in wanted]
