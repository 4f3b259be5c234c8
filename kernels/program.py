"""From a rule's table of terms to what the kernels run: accumulators, quotient, adjoint.

`compile_rule` reads `rule.groups` and applies the identities of README.md: the box's three terms
become two non-negative ones, gated pairs (Gamma) become z and A = |W||a|, terms of the input's
negative part vanish where the input is known to be non-negative.  No rule is named here but for
the two ways of conserving relevance (AlphaBeta, Joint).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relprop.errors import InputError
from relprop.rules import AlphaBeta, Joint, LinearRule
from relprop.rules.terms import Modifier, Term

__all__ = ["Product", "Program", "compile_rule"]

IDENTITY = Modifier("identity")
ABSOLUTE = Modifier("absolute")
ZERO = Modifier("zero")


@dataclass(frozen=True)
class Product:
    """One product of a kernel: which accumulator, which left operand, which atoms.

    Attributes:
        accumulator: 0 or 1.
        left: index of the left operand (of z's products always 0; of the adjoint's, which s).
        factor: atom of the left operand.
        weight: index into `Program.weights`.
    """

    accumulator: int
    left: int
    factor: str
    weight: int


@dataclass(frozen=True)
class Program:
    """A rule in the form the kernels take.

    Attributes:
        weights: the modified weights that occur, at most two.
        products: the products of the contraction.
        bias: the bias part of each accumulator.
        mode: the quotient: "one", "two", "conserve", "joint" or "gamma".
        scales: lambda of each quotient.
        factors: the input atoms that multiply the adjoint's accumulators.
        adjoint: the products of the adjoint; their left operand is s.
        epsilon: the stabilizer.
        gamma: run-time parameter of the atoms and of mode "gamma".
        box: (low, high) of the input, or None.
        channels: the input features that the box bounds; None for all of them.
        output: where the layer's own output comes from: the "first" or "second" accumulator or the
            "sum" of both, bias added; None if a contraction of its own has to give it.
        completion: products into accumulator 1 that `output` needs and the rule does not.
    """

    weights: tuple[Modifier, ...]
    products: tuple[Product, ...]
    bias: tuple[Modifier, ...]
    mode: str
    scales: tuple[float, float]
    factors: tuple[str, ...]
    adjoint: tuple[Product, ...]
    epsilon: float
    gamma: float = 0.0
    box: tuple[Any, Any] | None = None
    channels: tuple[int, int] | None = None
    output: str | None = None
    completion: tuple[Product, ...] = ()

    @property
    def own_input(self) -> bool:
        """Whether the denominators depend on the input's values."""
        return any(product.factor != "one" for product in self.products)

    @property
    def numbers(self) -> tuple[float, float, float]:
        """What a quotient takes: the stabilizer and two scales."""
        first, second = self.scales
        return float(self.epsilon), float(first), float(second)

    @property
    def parts(self) -> int:
        """Number of quotients."""
        return 1 if self.mode == "one" else 2

    @property
    def saved(self) -> int:
        """Number of z tensors that the contraction writes."""
        return len(self.bias)


def compile_rule(rule: LinearRule, nonnegative: bool = False) -> Program:
    """The kernels' form of a rule.

    Args:
        rule: any linear rule.
        nonnegative: whether the layer's input is known to be >= 0 everywhere.

    Raises:
        InputError: the rule's table holds a pattern that no kernel evaluates, or a `Joint` does
            not say which channels are pixels.
    """
    groups = rule.groups
    gates = [group.gate for group in groups]
    if gates == ["positive", "negative"]:
        return _gated(rule, nonnegative)
    if len(groups) > 2 or any(gates):
        raise _unsupported(rule, f"{len(groups)} groups gated {gates}")
    folded = [_fold(rule, group.terms, nonnegative) for group in groups]
    weights = list(dict.fromkeys(weight for group in folded for _, weight in group))
    factors = list(dict.fromkeys(factor for group in folded for factor, _ in group))
    if len(weights) > 2 or len(factors) > 4:
        raise _unsupported(rule, f"{len(weights)} modified weights, {len(factors)} inputs")
    products = [
        Product(index, 0, factor, weights.index(weight))
        for index, group in enumerate(folded)
        for factor, weight in group
    ]
    gammas = {w.value for w in (*weights, *(g.bias for g in groups)) if w.value is not None}
    if len(gammas) > 1:
        raise _unsupported(rule, f"parameters {sorted(gammas)}")
    completion, output = _completion(folded, weights)
    channels = rule.channels if isinstance(rule, Joint) else None
    if isinstance(rule, Joint) and channels is None:
        raise InputError(
            f"{rule}: a rule for a concatenated input needs to know where the pixels are; "
            "give it channels=(start, stop) on the layer's input features"
        )
    return Program(
        weights=tuple(weights),
        products=tuple(products),
        bias=tuple(group.bias for group in groups),
        mode=_mode(rule),
        scales=(groups[0].scale, groups[-1].scale),
        factors=tuple(factors),
        adjoint=_transpose(products, factors),
        epsilon=rule.epsilon,
        gamma=gammas.pop() if gammas else 0.0,
        box=_box(rule),
        channels=channels,
        output=output,
        completion=completion,
    )


def _mode(rule: LinearRule) -> str:
    if len(rule.groups) == 1:
        return "one"
    if isinstance(rule, Joint):
        return "joint"
    return "conserve" if isinstance(rule, AlphaBeta) and rule.conserve else "two"


def _transpose(products: list[Product], factors: list[str]) -> tuple[Product, ...]:
    """Each term once more, its accumulator chosen by its input factor and its operand by group."""
    back = [Product(factors.index(p.factor), p.accumulator, "identity", p.weight) for p in products]
    return tuple(sorted(back, key=lambda p: (p.accumulator, p.left)))


def _gated(rule: LinearRule, nonnegative: bool) -> Program:
    """Gamma: D = (1 + gamma/2) z + (gamma/2) sgn(z) A, with A = |W||a| + |b|."""
    up, down = rule.groups
    gamma = up.terms[0].weight.value
    expected = {
        Term(Modifier(f), Modifier(g, gamma))
        for f, g in [("positive", "plus_positive"), ("negative", "plus_negative")]
    }
    if set(up.terms) != expected or up.scale != 1 or down.scale != 1:
        raise _unsupported(rule, f"gated terms {up.terms}")
    magnitude = "identity" if nonnegative else "absolute"
    factors = ("identity",) if nonnegative else ("identity", "absolute")
    products = [Product(0, 0, "identity", 0), Product(1, 0, magnitude, 1)]
    return Program(
        weights=(IDENTITY, ABSOLUTE),
        products=tuple(products),
        bias=(ZERO, ZERO) if rule.zero_params == "bias" else (IDENTITY, ABSOLUTE),
        mode="gamma",
        scales=(1 + gamma / 2, gamma / 2),
        factors=factors,
        adjoint=_transpose(products, list(factors)),
        epsilon=rule.epsilon,
        gamma=gamma,
        output="first",
    )


_OPPOSITE = {"positive": Modifier("negative"), "negative": Modifier("positive")}


def _completion(
    folded: list[list[tuple[str, Modifier]]], weights: list[Modifier]
) -> tuple[tuple[Product, ...], str | None]:
    """How W.a follows from the groups' sums, and the products to add; may extend `weights`."""
    terms = {(factor, weight.kind) for group in folded for factor, weight in group}
    if terms == {("identity", "identity")}:
        return (), "first"
    same = [{("identity", "positive")}, {("positive", "positive"), ("negative", "negative")}]
    both = [
        {("identity", "positive"), ("identity", "negative")},
        {(f, g) for f in ("positive", "negative") for g in ("positive", "negative")},
    ]
    if len(folded) == 2:
        return (), "sum" if terms in both else None
    if terms in same:
        opposite = [(factor, _OPPOSITE[weight.kind]) for factor, weight in folded[0]]
        weights.extend(weight for _, weight in opposite if weight not in weights)
        return tuple(Product(1, 0, f, weights.index(w)) for f, w in opposite), "sum"
    if {factor for factor, _ in terms} == {"above_low", "below_high"}:
        return tuple(Product(1, 0, "whole", index) for index in range(len(weights))), "second"
    return (), None


def _fold(
    rule: LinearRule, terms: tuple[Term, ...], nonnegative: bool
) -> list[tuple[str, Modifier]]:
    """(input atom, weight) pairs of a group, the box's three terms merged into two."""
    if not any(term.input.kind == "constant" for term in terms):
        if nonnegative and all(term.input.part is None for term in terms):
            terms = tuple(_known_sign(term) for term in terms if term.input.kind != "negative")
        return [(_atom(rule, term.input), term.weight) for term in terms]
    by_weight: dict[str, list[Modifier]] = {"positive": [], "negative": []}
    for term in terms:
        kinds = ["positive", "negative"] if term.weight == IDENTITY else [term.weight.kind]
        for kind in kinds:
            by_weight.setdefault(kind, []).append(term.input)
    if len(by_weight) > 2:
        raise _unsupported(rule, f"weights {sorted(by_weight)} in a box")
    return [(_boxed(rule, kind, inputs), Modifier(kind)) for kind, inputs in by_weight.items()]


def _known_sign(term: Term) -> Term:
    kind = term.input.kind
    return Term(IDENTITY, term.weight) if kind in ("positive", "absolute") else term


def _atom(rule: LinearRule, modifier: Modifier) -> str:
    if modifier.part is None:
        return modifier.kind
    if modifier.part == "state" and modifier.kind in ("positive", "negative"):
        return f"state_{modifier.kind}"
    raise _unsupported(rule, f"input {modifier}")


def _boxed(rule: LinearRule, weight: str, inputs: list[Modifier]) -> str:
    """The one atom equal to the sum of these inputs of one modified weight."""
    kinds = sorted((modifier.kind, modifier.part or "") for modifier in inputs)
    name = "above_low" if weight == "positive" else "below_high"
    if kinds == [("constant", ""), ("identity", "")]:
        return name
    if kinds == [("constant", "pixel"), ("identity", "pixel"), (weight, "state")]:
        return f"{name}_or_{weight}"
    raise _unsupported(rule, f"boxed inputs {kinds}")


def _box(rule: LinearRule) -> tuple[Any, Any] | None:
    bounds = {
        term.weight.kind: term.input.value
        for group in rule.groups
        for term in group.terms
        if term.input.kind == "constant"
    }
    return (bounds["positive"], bounds["negative"]) if bounds else None


def _unsupported(rule: LinearRule, what: str) -> InputError:
    return InputError(
        f"{type(rule).__name__}: no kernel evaluates {what}; the kernels take one or two groups "
        "over at most two modified weights. Use backend='aten' for this rule"
    )
