"""Mutation operators: what can go wrong with one node of a syntax tree, class by class."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

Change = tuple[str, ast.AST]
"""Name of the operator and the node to put in place."""

_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def _both_ways(pairs: dict[str, str]) -> dict[str, str]:
    return {**pairs, **{other: name for name, other in pairs.items()}}


_SWAPS = _both_ways({
    "POSITIVE": "NEGATIVE", "SAME_SIGNS": "OPPOSITE_SIGNS", "alpha": "beta", "low": "high",
    "above": "below", "h0": "c0", "up": "down", "plus": "minus", "agreeing": "opposing",
    "first": "second",
}) | {"amax": "amin"}  # fmt: skip
_GEOMETRY = _both_ways({
    "stride": "dilation", "before": "after", "padding": "output_padding",
}) | {"kernel": "stride"}  # fmt: skip
_WORDS = _both_ways({
    "positive": "negative", "pixel": "state", "plus_positive": "plus_negative",
})  # fmt: skip
_EXTREMES = {"min": "max", "max": "min"}

_METHODS = {
    "mul": "factor", "mul_": "factor", "div_": "factor", "square": "factor", "sign": "sign",
    "abs": "sign", "neg": "sign", "add": "term", "add_": "term", "sub": "term", "addcmul_": "term",
    "masked_fill_": "mask", "masked_fill": "mask", "clamp": "mask", "relu": "mask",
    "unsqueeze": "index", "transpose": "index", "permute": "index", "flip": "index",
}  # fmt: skip
"""Methods whose call is dropped, the receiver left, and the class of that mistake."""

_WRAPPERS = {
    "_masked": "mask", "reverse": "index", "unbroadcast": "index", "quotient": "factor",
    "_widened": "stride",
}  # fmt: skip
"""Functions whose call is dropped, the first argument left."""

_FACTORS = {"scale", "alpha", "value", "sign", "gate", "conserve", "rectified"}
_BIASES = {"b", "bias", "kept_bias"}
_AXES = {"dim", "axis", "correction", "start"}
_TERM_LISTS = {"terms", "box_terms"}


_TABLES = (
    _SWAPS, _GEOMETRY, _WORDS, _METHODS, _WRAPPERS, _FACTORS, _BIASES, _AXES, _TERM_LISTS,
)  # fmt: skip


def unknown_names(sources: Iterable[str]) -> list[str]:
    """The names in the tables above that no source text has: nothing is tried for them."""
    seen: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            words = (getattr(node, key, None) for key in ("id", "attr", "arg", "name", "value"))
            seen.update(word for word in words if isinstance(word, str))
    return sorted({name for table in _TABLES for name in table} - seen)


def changes(node: ast.AST, parents: list[ast.AST]) -> Iterator[Change]:
    """Every way to break a node; `parents` are those above it, the nearest last."""
    match node:
        case ast.BinOp():
            yield from _binary(node)
        case ast.BoolOp():
            other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "condition", ast.BoolOp(other, node.values)
            for i in range(len(node.values)):
                yield "dropped condition", _without(node, node.values, i)
        case ast.UnaryOp(op=ast.USub()):
            yield "sign", node.operand
        case ast.UnaryOp(op=ast.Not()):
            yield "condition", node.operand
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
            yield "comparison", ast.Compare(node.left, [_COMPARISONS[type(op)]()], node.comparators)
        case ast.IfExp():
            yield "branch", node.body
            yield "branch", node.orelse
        case ast.Call():
            yield from _call(node)
        case ast.Constant():
            yield from _constant(node, parents)
        case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
            yield from _name(node, parents[-1])
        case ast.Tuple(ctx=ast.Load()) | ast.Set():
            yield from _terms(node, parents)
        case ast.Expr(value=ast.Call(func=func)) if not _dropped(func):
            yield "dropped statement", ast.Pass()
    if _is_test(node, parents[-1]):
        yield "condition", ast.UnaryOp(ast.Not(), node)  # type: ignore[arg-type]


def _binary(node: ast.BinOp) -> Iterator[Change]:
    kind = type(node.op)
    if kind in _ARITHMETIC:
        yield "sign", ast.BinOp(node.left, _ARITHMETIC[kind](), node.right)
        yield "dropped term", node.left
    elif kind is ast.Mult:
        yield "dropped factor", node.left
        yield "dropped factor", node.right
    elif kind in (ast.Div, ast.FloorDiv):
        yield "dropped factor", node.left
    elif kind is ast.BitOr:
        yield "dropped term", node.left


def _without(node: ast.BoolOp, values: list[ast.expr], i: int) -> ast.expr:
    rest = values[:i] + values[i + 1 :]
    return rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)


def _dropped(func: ast.expr) -> bool:
    return isinstance(func, ast.Attribute) and func.attr in _METHODS


def _call(node: ast.Call) -> Iterator[Change]:
    func = node.func
    if isinstance(func, ast.Attribute) and func.attr in _METHODS:
        yield f"dropped {_METHODS[func.attr]}", func.value
    wrapper = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    if wrapper in _WRAPPERS and node.args:
        yield f"dropped {_WRAPPERS[wrapper]}", node.args[0]
    if wrapper in _EXTREMES:
        yield (
            "extreme",
            ast.Call(ast.Name(_EXTREMES[wrapper], ast.Load()), node.args, node.keywords),
        )
    for i, argument in enumerate(node.args):
        name = _last_name(argument)
        if name in _BIASES:
            yield "dropped bias", _with_argument(node, i, ast.Constant(None))
        elif name == "epsilon":
            yield "dropped epsilon", _with_argument(node, i, ast.Constant(0.0))
    for i, keyword in enumerate(node.keywords):
        rest = node.keywords[:i] + node.keywords[i + 1 :]
        if keyword.arg in _EXTREMES:
            turned = ast.keyword(_EXTREMES[keyword.arg], keyword.value)
            yield "extreme", ast.Call(func, node.args, [*rest, turned])
        elif keyword.arg in _FACTORS:
            yield "dropped factor", ast.Call(func, node.args, rest)
        elif keyword.arg in _BIASES:
            yield "dropped bias", ast.Call(func, node.args, rest)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _with_argument(node: ast.Call, i: int, value: ast.expr) -> ast.Call:
    return ast.Call(node.func, [*node.args[:i], value, *node.args[i + 1 :]], node.keywords)


def _constant(node: ast.Constant, parents: list[ast.AST]) -> Iterator[Change]:
    value = node.value
    last = parents[-1]
    if isinstance(last, ast.keyword) and last.arg == "strict":
        return  # a check on lengths that are equal
    if isinstance(value, bool):
        yield "flag", ast.Constant(not value)
    elif isinstance(value, int):
        yield ("index" if _is_index(parents) else "constant"), ast.Constant(value + 1)
    elif isinstance(value, float):
        yield "constant", ast.Constant(1.0 if value == 0 else 2 * value)
    elif isinstance(value, str) and value in _WORDS:
        yield "swap", ast.Constant(_WORDS[value])


def _is_index(parents: list[ast.AST]) -> bool:
    for parent in reversed(parents):
        if isinstance(parent, ast.keyword):
            return parent.arg in _AXES
        if isinstance(parent, (ast.Call, ast.Subscript, ast.Slice)):
            return True
        if isinstance(parent, ast.stmt):
            return False
    return False


def _name(node: ast.Name | ast.Attribute, parent: ast.AST) -> Iterator[Change]:
    if isinstance(parent, ast.Call) and parent.func is node:
        return
    name = node.id if isinstance(node, ast.Name) else node.attr
    for table, operator in ((_SWAPS, "swap"), (_GEOMETRY, "geometry")):
        if name in table:
            other = table[name]
            yield (
                operator,
                (
                    ast.Name(other, ast.Load())
                    if isinstance(node, ast.Name)
                    else ast.Attribute(node.value, other, ast.Load())
                ),
            )


def _terms(node: ast.Tuple | ast.Set, parents: list[ast.AST]) -> Iterator[Change]:
    if len(node.elts) < 2 or not _holds_terms(parents):
        return
    for i in range(len(node.elts)):
        rest = node.elts[:i] + node.elts[i + 1 :]
        yield (
            "dropped term",
            ast.Tuple(rest, ast.Load()) if isinstance(node, ast.Tuple) else ast.Set(rest),
        )


def _holds_terms(parents: list[ast.AST]) -> bool:
    """Whether the tuple lists terms or groups of a rule, or is one of the tables of names."""
    last = parents[-1]
    match last:
        case ast.Assign(targets=[ast.Name(id=name)]) if name.strip("_").isupper():
            return True
    return any(isinstance(p, ast.FunctionDef) and p.name in _TERM_LISTS for p in parents)


def _is_test(node: ast.AST, parent: ast.AST) -> bool:
    """Whether the node is a condition that no other operator turns round."""
    tested = isinstance(parent, (ast.If, ast.IfExp, ast.While)) and parent.test is node
    return tested and not isinstance(node, (ast.Compare, ast.BoolOp, ast.UnaryOp))
