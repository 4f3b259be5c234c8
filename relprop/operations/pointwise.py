"""Activations, residual sums, products and gates (math: `Pass`, proportional sums, gate rule)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from relprop.graph import Node, Ref
from relprop.operations.base import Engine, Operation, Step, quotient, register, unbroadcast, wide
from relprop.rules import Norm, Pass, Product, Rule

__all__ = ["Activation", "Clamp", "Multiplication", "NonNegativeActivation", "Sum"]


@register(
    "leaky_relu", "elu", "gelu", "silu", "tanh", "selu", "celu", "mish", "hardswish", "hardshrink",
    "softshrink", "rrelu", "prelu", "_prelu_kernel",
)  # fmt: skip
class Activation(Operation):
    """Pass: an activation hands its relevance on unchanged."""

    kind = "activation"
    carry = "pass"
    keeps_zero = True

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (r,)

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Pass)

    def default_rule(self, epsilon: float) -> Rule:
        return Pass()


@register("log_sigmoid", "threshold", "pointwise")
class ShiftedActivation(Activation):
    """An activation that does not give 0 for 0."""

    keeps_zero = False


@register("relu", "relu6")
class NonNegativeActivation(Activation):
    """An activation whose values are never negative."""

    def forward(self, step: Step, values: Mapping[str, Any], engine: Engine) -> tuple[Any, Any]:
        if step.options.get("rectified"):
            return values[step.inputs[0]], None
        if step.options.get("inplace") and step.name not in engine.known:
            return values[step.inputs[0]].relu_(), None
        return super().forward(step, values, engine)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return True


@register("softplus")
class Softplus(NonNegativeActivation):
    """A ReLU without the corner."""

    keeps_zero = False


@register("sigmoid", "hardsigmoid")
class Sigmoid(NonNegativeActivation):
    """A gate; relevance that reaches it goes through it as through any other activation."""

    keeps_zero = False
    gate = True


@register("hardtanh", "clamp", "clamp_min", "clip")
class Clamp(Activation):
    """Clamping between bounds."""

    keeps_zero = False
    combines_gates = True
    scales_magnitudes = True

    def bounds(self, node: Node) -> tuple[Any, Any]:
        """The least and the largest value, None for none."""
        if node.op == "hardtanh":
            return node.argument(1, "min_val", -1.0), node.argument(2, "max_val", 1.0)
        return node.argument(1, "min", None), node.argument(2, "max", None)

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        low, _ = self.bounds(node)
        return known(node.args[0]) or (isinstance(low, (int, float)) and low >= 0)


@register("clamp_max")
class ClampFromAbove(Activation):
    """min(x, bound)."""

    keeps_zero = False
    combines_gates = True
    scales_magnitudes = True

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        high = node.argument(1, "max", None)
        return known(node.args[0]) and isinstance(high, (int, float)) and high >= 0


class Unchanged(Operation):
    """Base: a change of sign or of number format, which leaves relevance unchanged."""

    kind = "reshape"
    carry = "pass"

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (r,)


@register("_to_copy", "to")
class Conversion(Unchanged):
    """A change of number format."""

    moves = True
    keeps_zero = True

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return known(node.args[0])


@register("neg")
class Negation(Unchanged):
    """-x."""

    keeps_zero = True
    combines_gates = True


class Sum(Operation):
    """Base of sums: relevance in proportion to the summands, denominator st(a + b)."""

    kind = "add"
    carry = "sum"
    several = True
    combines_gates = True
    needs_kernel = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return [values[name] for name in step.inputs], summand_factors(step), out

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        summands, factors, out = saved
        if isinstance(step.rule, Pass):
            return [unbroadcast(r, a.shape) for a in summands]
        assert isinstance(step.rule, Norm) and step.rule.epsilon is not None
        s = quotient(r, out, step.rule.epsilon)
        return [
            unbroadcast(s * (wide(a) * factor if factor != 1 else wide(a)), a.shape)
            for a, factor in zip(summands, factors, strict=True)
        ]

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, (Norm, Pass))

    def default_rule(self, epsilon: float) -> Rule:
        return Norm(epsilon)


@register("add")
class Addition(Sum):
    """a + b."""

    scales_magnitudes = True

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return node.argument(2, "alpha", 1) >= 0 and all(known(x) for x in node.args[:2])


@register("sub", "rsub")
class Difference(Sum):
    """a - b, or b - a."""


def operand_factors(node: Node) -> tuple[float, float]:
    """The factors of both operands of a sum."""
    alpha = node.argument(2, "alpha", 1)
    factors = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}
    return factors[node.op]


def summand_factors(step: Step) -> list[float]:
    """The factor with which each relevance-carrying summand enters the sum."""
    node = step.node
    return [
        factor
        for operand, factor in zip(node.args[:2], operand_factors(node), strict=True)
        if isinstance(operand, Ref) and operand.name in step.inputs
    ]


@register("mul")
class Multiplication(Operation):
    """a * b: a constant factor changes nothing; of a signal and a gate the signal takes all."""

    kind = "mul"
    carry = "product"
    several = True
    combines_gates = True
    scales_magnitudes = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return [values[name].shape for name in step.inputs]

    def relevance(
        self, step: Step, saved: Any, r: Tensor, engine: Engine
    ) -> Sequence[Tensor | None]:
        return [
            None if share == 0 else unbroadcast(r * share if share != 1 else r, shape)
            for share, shape in zip(step.options["shares"], saved, strict=True)
        ]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return all(known(x) for x in node.args[:2])

    def accepts(self, rule: Rule) -> bool:
        return isinstance(rule, Product)


@register("div", "true_divide")
class Division(Multiplication):
    """a / b."""

    combines_gates = False  # one over a gate has no upper bound


@register("where")
class Selection(Operation):
    """where(condition, a, b): relevance goes to the operand that was taken."""

    kind = "reshape"
    carry = "movement"
    several = True
    moves = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        condition, *operands = (values[x.name] if isinstance(x, Ref) else x for x in step.node.args)
        taken = []
        for argument_, operand, side in zip(
            step.node.args[1:], operands, (condition, ~condition), strict=True
        ):
            if isinstance(argument_, Ref) and argument_.name in step.inputs:
                taken.append((side, operand.shape))
        return taken

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return [unbroadcast(r * side, shape) for side, shape in saved]

    def nonnegative(self, node: Node, known: Callable[[Any], bool]) -> bool:
        return all(known(x) for x in node.args[1:])


@register("masked_fill")
class MaskedFill(Operation):
    """masked_fill: filled places lose their relevance."""

    kind = "reshape"
    carry = "movement"
    moves = True

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        mask = step.node.args[1]
        return ~values[mask.name], values[step.inputs[0]].shape

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        kept, shape = saved
        return (unbroadcast(r * kept, shape),)


@register("glu")
class GatedLinearUnit(Operation):
    """glu: the first half is the signal, the second its gate."""

    kind = "mul"
    carry = "gated"

    def save(self, step: Step, values: Mapping[str, Any], out: Tensor) -> Any:
        return step.node.argument(1, "dim", -1) % out.ndim

    def relevance(self, step: Step, saved: Any, r: Tensor, engine: Engine) -> Sequence[Tensor]:
        return (torch.cat([r, torch.zeros_like(r)], saved + 1),)
