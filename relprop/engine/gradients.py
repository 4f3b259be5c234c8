"""Gradient methods: the graph evaluated under autograd, ReLU and gates replaced where asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.engine.binding import token_step
from relprop.engine.facts import Facts, carrying_refs, layer_names, leading_to
from relprop.errors import InputError, PlanningError
from relprop.graph import Graph, Node
from relprop.graph.nodes import located, source_values
from relprop.methods import GradientMethod
from relprop.tables import table

__all__ = ["GradientPlan", "Switch", "attribute", "differentiable_values"]

_NO_ENGINE: Any = None
"""Movements of tokens ask nothing of the run that they are steps of."""

Seed = Callable[[Tensor], Tensor]
"""From the output to the starting relevance `[K, *output]`."""


@dataclass(frozen=True)
class GradientPlan:
    """The operations that a gradient method differentiates.

    Attributes:
        graph: the operations that the explained output depends on.
        output: name of the explained value.
        facts: what is known of the graph's values.
        method: the method.
    """

    graph: Graph
    output: str
    facts: Facts
    method: GradientMethod
    backend: str = "autograd"

    @classmethod
    def make(
        cls,
        graph: Graph,
        output: str,
        method: GradientMethod,
        floating: Iterable[str],
        integer: Iterable[str] = (),
    ) -> GradientPlan:
        """Bind a canonical graph to a gradient method.

        Raises:
            PlanningError: the output does not depend on any input to explain.
        """
        graph, facts = leading_to(output, graph, floating, integer)
        if method.relu != "plain" and not any(
            node.op == "relu" and node.name in facts.carriers for node in graph.nodes.values()
        ):
            warnings.warn(
                f"{method.name}: no ReLU lies between the inputs and the output, so that nothing "
                "is guided: the result is the gradient with gates held fixed; expected a network "
                "of ReLUs. 'gradient' and 'gradient_x_input' serve any other",
                stacklevel=2,
            )
        return cls(graph, output, facts, method)

    def layer_names(self) -> list[str]:
        """Module paths whose output's gradient can be asked for by `layers=`."""
        return layer_names(self.graph, self.facts)

    def __str__(self) -> str:
        rows = [
            (str(number), node.op, node.path, self.method.name, "autograd", ", ".join(node.refs))
            for number, node in enumerate(self.graph.nodes.values())
            if node.name in self.facts.carriers
        ]
        head = ("step", "operation", "module path", "rule", "backend", "inputs")
        return table(head, rows) + "\nlayers: " + ", ".join(self.layer_names())


@dataclass
class Switch:
    """How the ReLUs and gates of a graph of autograd's are differentiated, read in the pass back.

    Attributes:
        relu: of `GradientMethod`; unless it is "plain", gates are constants.
    """

    relu: str = "plain"


class _ReLU(torch.autograd.Function):
    """ReLU whose gradient passes where it is positive, guided: and the output is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, switch: Switch) -> Tensor:
        out = x.relu()
        ctx.save_for_backward(out)
        ctx.switch = switch
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (out,), relu = ctx.saved_tensors, ctx.switch.relu
        passed = gradients[0] if relu == "plain" else gradients[0].clamp(min=0)
        if relu != "deconvnet":
            passed = torch.ops.aten.threshold_backward(passed, out, 0)
        return passed, None


class _Gate(torch.autograd.Function):
    """A factor that is a constant where ReLUs are modified."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, switch: Switch) -> Tensor:
        ctx.switch = switch
        return gate.view_as(gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None]:
        return (gradients[0] if ctx.switch.relu == "plain" else None), None


def attribute(
    plan: GradientPlan,
    model: nn.Module,
    inputs: Mapping[str, Any],
    seed: Seed,
    wanted: Iterable[str],
    shared: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The method's maps of the values `wanted`, `[K, *shape]`.

    Args:
        plan, model, inputs: what is differentiated, and where.
        seed: from the output to the starting relevance.
        wanted: names of values.
        shared: of `differentiable_values`, its switch set to the method's ReLU; kept for further
            methods.

    Returns:
        The output, its starting relevance, and the maps by name.

    Raises:
        InputError: integrated gradients or SmoothGrad over token inputs.
    """
    method, wanted = plan.method, list(wanted)
    if (method.path or method.noise) and any(name in plan.facts.tokens for name in wanted):
        raise InputError(
            f"{method.name}: token inputs have no values to vary; explain the embedded input, or "
            "use 'gradient_x_input'"
        )
    output, start = None, None
    if method.path or method.noise:  # otherwise the one point is the input itself
        with torch.no_grad():
            output = differentiable_values(plan, model, inputs, ())[plan.output].detach()
        start = seed(output)
    total: dict[str, Tensor] = {}
    for varied, weight in _points(plan, inputs, wanted):
        with torch.enable_grad():
            values = shared or differentiable_values(plan, model, varied, wanted)
            reached = values[plan.output].detach()
            starts = seed(reached)
            maps = _gradients(plan, values, starts, wanted, keep=shared is not None)
        output, start = (reached, starts) if output is None else (output, start)
        for name, gradient in maps.items():
            total[name] = total[name] + weight * gradient if name in total else weight * gradient
    assert output is not None and start is not None
    return output, start, {name: _finish(plan, name, g, inputs) for name, g in total.items()}


def _points(
    plan: GradientPlan, inputs: Mapping[str, Any], wanted: list[str]
) -> Iterable[tuple[dict[str, Any], float]]:
    """The inputs at which gradients are taken, and the weight of each."""
    method = plan.method
    floating = [name for name in wanted if name in inputs and inputs[name].is_floating_point()]
    if method.path:
        nodes, weights = np.polynomial.legendre.leggauss(method.samples)
        for node, weight in zip(nodes, weights, strict=True):
            fraction = 0.5 * (1 + float(node))
            moved = {
                name: _baseline(method, inputs[name])
                + fraction * (inputs[name] - _baseline(method, inputs[name]))
                for name in floating
            }
            yield {**inputs, **moved}, 0.5 * float(weight)
    elif method.noise:
        generator = torch.Generator().manual_seed(method.seed)
        for _ in range(method.samples):
            noisy = {name: inputs[name] + _noise(inputs[name], method, generator)
                     for name in floating}  # fmt: skip
            yield {**inputs, **noisy}, 1 / method.samples
    else:
        yield dict(inputs), 1.0


def _noise(x: Tensor, method: GradientMethod, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float32)
    return noise.to(x) * method.noise


def _baseline(method: GradientMethod, x: Tensor) -> Tensor:
    baseline = torch.as_tensor(method.baseline, dtype=x.dtype, device=x.device)
    try:
        return baseline.expand(x.shape)
    except RuntimeError:
        raise InputError(
            f"{method.name}: baseline of shape {tuple(baseline.shape)}; expected a number, or a "
            f"tensor that broadcasts to the input's {tuple(x.shape)}"
        ) from None


def differentiable_values(
    plan: GradientPlan,
    model: nn.Module,
    inputs: Mapping[str, Any],
    wanted: Iterable[str],
    switch: Switch | None = None,
) -> dict[str, Any]:
    """The output and the values `wanted`, in a graph of autograd's that leads to them.

    With a switch all values, and ReLUs and gates that obey it.
    """
    graph, facts = plan.graph, plan.facts
    several = switch is not None
    if switch is None and plan.method.relu != "plain":
        switch = Switch(plan.method.relu)
    values = source_values(graph, model, graph.sources) | dict(inputs)
    values = {name: _ordinary(value) for name, value in values.items()}
    wanted = set(wanted)
    for name in wanted & set(inputs):
        if isinstance(values[name], Tensor) and values[name].is_floating_point():
            values[name] = values[name].detach().clone().requires_grad_()
    moved = [n for node in graph.nodes.values() if node.name in facts.tokens for n in node.refs]
    last = graph.last_reads([plan.output, *wanted, *_embeddings(plan), *facts.tokens, *moved])
    for node in graph.nodes.values():
        with located(node):
            values[node.name] = _value(node, values, switch, facts)
        if node.op == "embedding" and node.name in facts.carriers and torch.is_grad_enabled():
            values[node.name] = values[node.name].detach().requires_grad_()
        for name in () if several else last[node.name]:
            values.pop(name, None)
    return values


def _value(node: Node, values: dict[str, Any], switch: Switch | None, facts: Facts) -> Any:
    if node.op == "relu" and switch is not None:
        return _ReLU.apply(values[node.args[0].name], switch)
    if node.op == "mul" and switch is not None:
        constant = {n: _Gate.apply(values[n], switch) for n in node.refs if n in facts.gates}
        return node.evaluate({**values, **constant})
    return node.evaluate(values)


def _ordinary(value: Any) -> Any:
    """A tensor made under inference mode as one that autograd takes."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _embeddings(plan: GradientPlan) -> dict[str, str]:
    """Embedded values and the token input that each looks up."""
    return {
        node.name: node.args[1].name
        for node in plan.graph.nodes.values()
        if node.op == "embedding" and node.name in plan.facts.carriers
    }


def _gradients(
    plan: GradientPlan,
    values: Mapping[str, Any],
    start: Tensor,
    wanted: list[str],
    keep: bool = False,
) -> dict[str, Tensor]:
    ids = _leading_to_tokens(plan, wanted)
    embedded = {name: own for name, own in _embeddings(plan).items() if own in ids}
    floating = [name for name in wanted if name not in plan.facts.tokens]
    names = [*floating, *embedded]
    output = values[plan.output]
    rows = [
        torch.autograd.grad(
            output,
            [values[name] for name in names],
            row.to(output.dtype),
            retain_graph=keep or number + 1 < len(start),
            allow_unused=True,
        )
        for number, row in enumerate(start)
    ]
    maps: dict[str, Tensor] = {}
    for name, *parts in zip(names, *rows, strict=True):
        found = [torch.zeros_like(values[name]) if g is None else g for g in parts]
        stacked = torch.stack(found).to(start.dtype)
        if name in embedded:
            stacked = _power(plan.method, stacked)
            if plan.method.times_input:
                stacked = stacked * values[name].detach()
            stacked = stacked.sum(-1)
            name = embedded[name]
            stacked = maps[name] + stacked if name in maps else stacked
        maps[name] = stacked
    return _moved_back(plan, values, maps)


def _leading_to_tokens(plan: GradientPlan, wanted: Collection[str]) -> set[str]:
    """The tokens `wanted`, and those made of them."""
    found = plan.facts.tokens.intersection(wanted)
    for node in plan.graph.nodes.values():
        if node.name in plan.facts.tokens and not found.isdisjoint(node.refs):
            found.add(node.name)
    return found


def _moved_back(
    plan: GradientPlan, values: Mapping[str, Any], maps: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The maps, those of tokens that were moved handed back to the tokens they were made of."""
    for node in reversed(list(plan.graph.nodes.values())):
        if node.name not in maps or node.name not in plan.facts.tokens:
            continue
        step = token_step(node, tuple(carrying_refs(node, plan.facts)))
        if step is None:
            raise PlanningError(f"{node.where}: several of its arguments depend on the input")
        saved = step.operation.save(step, values, values[node.name])
        parts = step.operation.relevance(step, saved, maps[node.name], _NO_ENGINE)
        for name, part in zip(step.inputs, parts, strict=True):
            maps[name] = maps[name] + part if name in maps else part
    return maps


def _power(method: GradientMethod, gradient: Tensor) -> Tensor:
    return gradient if method.power == 1 else gradient**method.power


def _finish(plan: GradientPlan, name: str, gradient: Tensor, inputs: Mapping[str, Any]) -> Tensor:
    method = plan.method
    if name in plan.facts.tokens or name not in inputs:
        return gradient.detach()
    gradient = _power(method, gradient.detach())
    if not method.times_input:
        return gradient
    x = inputs[name]
    return gradient * (x - _baseline(method, x) if method.path else x)
