"""Captum's LRP as it is, restrictions included, on the recorded operations of a call.

Captum works on the tensors at module boundaries.  At a layer with a rule the gradient of the output
is divided by the stabilized output, and that of an input multiplied by the input; an activation's
input gets what its output has.  Everything between modules is differentiated as it stands: a sum
hands its whole relevance to both summands, and a factor multiplies it.  That is reproduced here on
the values of a recorded graph, so that the model is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.capture.call import check_modes, neutral_modes
from relprop.capture.record import record
from relprop.capture.untouched import untouched
from relprop.errors import PlanningError
from relprop.graph import CAPTURE_LOCK, Graph, Node
from relprop.graph.nodes import located, source_values
from relprop.integrations import peer
from relprop.integrations.captum.rules import converted, ruled
from relprop.integrations.terms import ScaledWeights
from relprop.operations.arithmetic import modified

__all__ = ["StrictResult", "layer_rules", "strict_relevance"]

Values = dict[str, Any]
Selection = Callable[[Tensor], Tensor]


@dataclass
class StrictResult:
    """Relevance in units of the output.

    Attributes:
        inputs: of each input.
        output: the explained value of each sample.
        entering: of the inputs of each layer with a rule, by path.
        leaving: of its output.
        joining: paths of the layers that several tensors enter.
    """

    inputs: tuple[Tensor, ...]
    output: Tensor
    entering: dict[str, tuple[Tensor, ...]]
    leaving: dict[str, Tensor]
    joining: set[str]


@dataclass
class _Layer:
    """A leaf module at work: Captum's rule, None for an activation, and its operations."""

    path: str
    rule: Any
    nodes: list[Node] = field(default_factory=list)

    def reads(self, values: Values) -> list[str]:
        """Names of the differentiable values that enter, in order."""
        own = {node.name for node in self.nodes}
        names = dict.fromkeys(name for node in self.nodes for name in node.refs if name not in own)
        return [n for n in names if isinstance(values[n], Tensor) and values[n].requires_grad]


def strict_relevance(
    model: nn.Module,
    arguments: tuple[Any, ...],
    explained: int,
    select: Selection,
) -> StrictResult:
    """Captum's relevance for one call.

    Args:
        model: the module, in eval mode.
        arguments: its positional arguments.
        explained: how many of them, the first ones, get relevance.
        select: from the model's output to the explained value of each sample.

    Raises:
        TypeError: a leaf module has no rule and Captum none for its class.
        RuntimeError: a module with a rule is called twice.
        PlanningError: a module is in training mode.
    """
    rules = layer_rules(model)
    check_modes(model)
    with neutral_modes():
        with CAPTURE_LOCK, untouched(model):
            graph = record(model, arguments, {}, 0)
        replay = _Replay(model, graph, rules, arguments, explained)
        return replay.relevance(select)


def layer_rules(model: nn.Module) -> dict[str, Any]:
    """Captum's rule of every leaf module by path, None for an activation.

    Raises:
        TypeError: a leaf module has no rule and Captum none for its class.
    """
    core = peer("captum.attr._core.lrp", "captum")
    found: dict[str, Any] = ruled(model)
    for path, module in model.named_modules():
        if not path or list(module.children()):
            continue
        if type(module) in core.SUPPORTED_NON_LINEAR_LAYERS:
            found[path] = None
        elif path not in found and type(module) in core.SUPPORTED_LAYERS_WITH_RULES:
            found[path] = core.SUPPORTED_LAYERS_WITH_RULES[type(module)]()
        elif path not in found:
            raise TypeError(
                f"Module '{path}' of type {type(module)} has no rule defined and Captum has no "
                "default rule for that type; set its attribute `rule`, or drop strict=True"
            )
    return found


class _Replay:
    """Two evaluations of the recorded operations: as they were, then with modified weights."""

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        rules: dict[str, Any],
        arguments: tuple[Any, ...],
        explained: int,
    ) -> None:
        if len(graph.output_names) != 1:
            raise PlanningError(
                f"the model returns {len(graph.output_names)} tensors; Captum's LRP explains one"
            )
        self.model, self.graph, self.explained = model, graph, explained
        self.output = graph.output_names[0]
        self.given: Values = source_values(graph, model, graph.sources)
        leaves = pytree.tree_leaves((arguments, {}))
        self.given.update(zip(graph.inputs, leaves, strict=True))
        self.layers = self._layers(rules)
        self.actual = dict(self.given)
        for node in graph.nodes.values():
            with located(node):
                self.actual[node.name] = node.evaluate(self.actual)
        self.entering: dict[str, dict[int, Tensor]] = {}
        self.leaving: dict[str, Tensor] = {}
        self.hooked: set[str] = set()
        self.joining: set[str] = set()

    def _layers(self, rules: dict[str, Any]) -> dict[str, _Layer]:
        """The leaf module calls by path, "path@1" for the second call of an activation."""
        layers: dict[str, _Layer] = {}
        for node in self.graph.nodes.values():
            path, _, repeated = node.path.partition("@")
            if path not in rules:
                continue
            if repeated and rules[path] is not None:
                module = self.model.get_submodule(path)
                raise RuntimeError(
                    f"Module {module} ('{path}') is being used more than once in the network, "
                    "which is not supported by Captum's LRP; drop strict=True"
                )
            layer = layers.setdefault(node.path, _Layer(path, rules[path]))
            layer.nodes.append(node)
        return layers

    def relevance(self, select: Selection) -> StrictResult:
        """Differentiate the second evaluation, the gradients changed on their way."""
        with torch.enable_grad():
            values = dict(self.given)
            starts = self.graph.inputs[: self.explained]
            leaves = [values[name].detach().clone().requires_grad_() for name in starts]
            values.update({name: leaf + 0 for name, leaf in zip(starts, leaves, strict=True)})
            for hook in self._evaluate(values):
                hook()
            chosen = select(values[self.output])
            if chosen[0].numel() != 1:
                raise AssertionError(
                    "Target not provided when necessary, cannot take gradient with respect to "
                    "multiple outputs."
                )
            gradients = torch.autograd.grad(torch.unbind(chosen), leaves)
        output = select(self.actual[self.output]).detach()
        ordered = {
            path: tuple(parts[i] for i in sorted(parts)) for path, parts in self.entering.items()
        }
        return StrictResult(
            tuple(_scaled(gradient, output) for gradient in gradients),
            output,
            {path: tuple(_scaled(r, output) for r in parts) for path, parts in ordered.items()},
            {path: _scaled(r, output) for path, r in self.leaving.items()},
            self.joining,
        )

    def _evaluate(self, values: Values) -> list[Callable[[], Any]]:
        """The second evaluation; returns hooks to be set after all others."""
        last: list[Callable[[], Any]] = []
        local: Values = {}
        for node in self.graph.nodes.values():
            layer = self.layers.get(node.path)
            if layer is None:
                values[node.name] = node.evaluate(values)
                continue
            if node is layer.nodes[0]:
                enter = self._enter_activation if layer.rule is None else self._enter
                local = enter(layer, values, last)
            value = node.evaluate({**values, **local})
            if node is layer.nodes[-1] and layer.rule is not None:
                value.register_hook(self._divide(layer, value.detach()))
                value = value.clone()
            values[node.name] = value
        return last

    def _enter(self, layer: _Layer, values: Values, last: Any) -> Values:
        """Give a layer its actual inputs, their gradients multiplied by them; its weights."""
        reads = layer.reads(values)
        if len(reads) > 1:
            self.joining.add(layer.path)
        for position, name in enumerate(reads):
            values[name].data = self.actual[name]
            if name not in self.hooked:
                self.hooked.add(name)
                values[name].register_hook(self._multiply(layer, position, self.actual[name]))
        return self._weights(layer)

    def _enter_activation(self, layer: _Layer, values: Values, last: list[Any]) -> Values:
        """The gradient at an activation's input becomes the one at its output."""
        reads = layer.reads(values)
        arrived: list[Tensor] = []
        output = layer.nodes[-1].name
        for name in reads:
            values[name].register_hook(lambda gradient: arrived[-1] if arrived else gradient)
        if reads:
            last.append(lambda: values[output].register_hook(arrived.append))
        return {name: values[name].clone() for name in reads}

    def _multiply(self, layer: _Layer, position: int, a: Tensor) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            passed = isinstance(layer.rule, _identity())
            relevance = self.leaving[layer.path] if passed else gradient * a
            self.entering.setdefault(layer.path, {})[position] = relevance.detach()
            return relevance

        return hook

    def _divide(self, layer: _Layer, z: Tensor) -> Callable[[Tensor], Tensor]:
        epsilon = layer.rule.STABILITY_FACTOR

        def hook(gradient: Tensor) -> Tensor:
            self.leaving[layer.path] = gradient.detach()
            return gradient / torch.where(z >= 0, z + epsilon, z - epsilon)

        return hook

    def _weights(self, layer: _Layer) -> Values:
        """The layer's weight and bias as its rule modifies them, by the names of their values."""
        module = self.model.get_submodule(layer.path)
        changed = _manipulated(layer.rule, module)
        named = {f"{layer.path}.{key}": value for key, value in changed.items()}
        sources = self.graph.sources.values()
        return {s.name: named[s.path] for s in sources if s.path is not None and s.path in named}


def _identity() -> Any:
    return peer("captum.attr._utils.lrp_rules", "captum").IdentityRule


def _manipulated(rule: Any, module: nn.Module) -> dict[str, Tensor]:
    """Weight and bias under a rule; a rule of the user's own works on copies."""
    tensors = {
        key: value.detach().clone()
        for key in ("weight", "bias")
        if isinstance(value := getattr(module, key, None), Tensor)
    }
    try:
        ours = converted(rule)
    except PlanningError:
        copies = SimpleNamespace(**tensors)
        rule._manipulate_weights(copies, (), None)
        return {key: getattr(copies, key) for key in tensors}
    if isinstance(ours, ScaledWeights):
        (group,) = ours.groups
        for key, modifier in (("weight", group.terms[0].weight), ("bias", group.bias)):
            if key in tensors:
                tensors[key] = modified(modifier, tensors[key])
    return tensors


def _scaled(relevance: Tensor, output: Tensor) -> Tensor:
    """Relevance of a unit of output, in units of the output of each sample."""
    return relevance.detach() * output.reshape(-1, *(1,) * (relevance.ndim - 1))
