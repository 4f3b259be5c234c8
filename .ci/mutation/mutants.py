"""Mutants of a source file: found, named, chosen, compiled."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from .operators import changes

_SKIPPED_FIELDS = {"annotation", "returns", "decorator_list", "type_params", "targets", "target"}
_SKIPPED_NODES = (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)
_SKIPPED_NAMES = {"__repr__", "__all__", "limits", "where", "Start"}
_MESSAGES = {"_out_of_range", "_advice", "_describe", "refuse"}
"""Functions that only word an error."""
_WIDTH = 72


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        label: of the source file.
        scope: qualified name of the innermost function or class, as in `code.co_qualname`.
        operator: class of the fault.
        change: the code before and after.
        occurrence: which of equal changes by the same operator in the scope, from 1.
        line: where it stands now; not part of the name.
        site: its number among the changes of the file.
    """

    label: str
    scope: str
    operator: str
    change: str
    occurrence: int
    line: int
    site: int

    @property
    def name(self) -> str:
        """Its name, which survives moves of lines and files, and edits of other functions."""
        count = f" ({self.occurrence})" if self.occurrence > 1 else ""
        return f"{self.label}:{self.scope}:{self.operator}: {self.change}{count}"

    @property
    def shown(self) -> str:
        """Its name with the line it stands in now."""
        return f"{self.label}:{self.line}:{self.scope}:{self.operator}: {self.change}"


@dataclass(frozen=True)
class _Site:
    owner: ast.AST
    field: str
    index: int | None
    scope: str
    operator: str
    before: ast.AST
    after: ast.AST

    def put(self) -> None:
        """Make the change in the tree."""
        if self.index is None:
            setattr(self.owner, self.field, self.after)
        else:
            getattr(self.owner, self.field)[self.index] = self.after


def _sites(node: ast.AST, scope: str, parents: list[ast.AST]) -> Iterator[_Site]:
    above = [*parents, node]
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for i, child in enumerate(children):
            if not isinstance(child, ast.AST) or _skipped(child):
                continue
            index = i if isinstance(value, list) else None
            for operator, after in changes(child, above):
                ast.fix_missing_locations(ast.copy_location(after, child))
                yield _Site(node, field, index, scope or "<module>", operator, child, after)
            yield from _sites(child, _inner(scope, child, node), above)


def _skipped(node: ast.AST) -> bool:
    if (
        isinstance(node, _SKIPPED_NODES)
        or getattr(node, "name", None) in _SKIPPED_NAMES | _MESSAGES
    ):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    names = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(n, ast.Name) and n.id in _SKIPPED_NAMES for n in names)


def _inner(scope: str, node: ast.AST, owner: ast.AST) -> str:
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return scope
    local = isinstance(owner, (ast.FunctionDef, ast.AsyncFunctionDef))
    return f"{scope}.{'<locals>.' if local else ''}{node.name}" if scope else node.name


def _text(node: ast.AST) -> str:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return node.name
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH // 2]}…{text[-_WIDTH // 2 :]}"


def mutants_of(label: str, source: str) -> list[Mutant]:
    """Every mutant of a source text, in the order of the text; equal changes are numbered."""
    found: list[Mutant] = []
    seen: Counter[tuple[str, str, str]] = Counter()
    for number, site in enumerate(_sites(ast.parse(source), "", [])):
        before, after = _text(site.before), _text(site.after)
        change = f"{before} → {after}"
        key = site.scope, site.operator, change
        seen[key] += 1
        if before != after:
            line = getattr(site.before, "lineno", 0)
            found.append(Mutant(label, *key, occurrence=seen[key], line=line, site=number))
    return found


def compiled(mutant: Mutant, source: str, filename: Path) -> CodeType:
    """The code of the source with the fault in it."""
    tree = ast.parse(source)
    for number, site in enumerate(_sites(tree, "", [])):
        if number == mutant.site:
            site.put()
            break
    return compile(ast.fix_missing_locations(tree), str(filename), "exec")


def instrumented(label: str, source: str, filename: Path) -> CodeType:
    """The code of the source, in which every function calls `__passed__(label, scope)` first."""
    tree = ast.parse(source)
    _mark(tree, "", label)
    return compile(ast.fix_missing_locations(tree), str(filename), "exec")


def _mark(node: ast.AST, scope: str, label: str) -> None:
    for child in ast.iter_child_nodes(node):
        _mark(child, _inner(scope, child, node), label)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments: list[ast.expr] = [ast.Constant(label), ast.Constant(scope)]
        call = ast.Expr(ast.Call(ast.Name("__passed__", ast.Load()), arguments, []))
        node.body.insert(1 if ast.get_docstring(node) is not None else 0, call)


def chosen(mutants: Sequence[Mutant], count: int) -> list[Mutant]:
    """Some of a file's mutants, the same in every run, every operator in turn.

    The order is that of a hash of the names, so that an edit changes the choice in few places.
    """
    groups: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in sorted(mutants, key=lambda m: _rank(m.name)):
        groups[mutant.operator].append(mutant)
    order = sorted(groups, key=lambda operator: _rank(f"{mutants[0].label}:{operator}"))
    turns = max((len(group) for group in groups.values()), default=0)
    picked = [
        groups[operator][turn]
        for turn in range(turns)
        for operator in order
        if turn < len(groups[operator])
    ]
    return sorted(picked[:count], key=lambda m: m.site)


def _rank(name: str) -> bytes:
    label, _, rest = name.partition(":")
    # what the first names looked like, so that the choice stays the one whose survivors are argued
    return hashlib.sha256(f"relprop/{label}.py:{rest}".encode()).digest()
