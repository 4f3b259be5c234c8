"""A model under a composite, converted once for many calls."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from zennit.canonizers import Canonizer, CompositeCanonizer, MergeBatchNorm
from zennit.core import Composite

from relprop.capture.call import Call, neutral_modes
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.errors import InputError
from relprop.explainer import Explainer
from relprop.integrations.zennit import rules
from relprop.integrations.zennit.convert import to_composite, usual_modules
from relprop.integrations.zennit.hook import RuleHook
from relprop.integrations.zennit.lookup import Lookup
from relprop.integrations.zennit.reading import own_rule
from relprop.integrations.zennit.relu import ReLUMode
from relprop.methods import PropagationMethod

__all__ = ["Session", "canonised"]

_RESIDUAL = ("ResNetBottleneckCanonizer", "ResNetBasicBlockCanonizer", "ResNetCanonizer")

Start = Callable[[Tensor], Tensor]

_OF_RELU = (rules.ReLUDeconvNet, rules.ReLUGuidedBackprop, rules.ReLUBetaSmooth)


class Session:
    """Attributions of one model under one composite.

    Args:
        model: the model.
        composite: one of Zennit's, or None.  One that is registered with the model already is
            left to its hooks.

    Raises:
        InputError: the composite cannot be converted; the message names the rule or the layer.
    """

    def __init__(self, model: nn.Module, composite: Composite | None) -> None:
        self.explainer: Explainer | None = None
        self.relu: ReLUMode | None = None
        if composite is not None:
            _check_kinds(model, composite)
        if composite is None or composite.handles:
            self.model = model
            return
        self.model = canonised(model, composite)
        hooks = _hooks(composite, self.model)
        if hooks and all(isinstance(hook, _OF_RELU) for hook in hooks.values()):
            self.relu = ReLUMode(_common(hooks, self.model, type(composite).__name__))
        elif hooks:
            converted = to_composite(composite, self.model)
            method = PropagationMethod(type(composite).__name__, "output", converted)
            self.explainer = Explainer(self.model, method)

    def set_active(self, active: bool) -> None:
        """Whether graphs that are still held have the composite's gradients, or plain ones."""
        if self.relu is not None:
            self.relu.active = active

    def attribute(
        self, input: Tensor, start: Start, create_graph: bool, retain_graph: bool | None
    ) -> tuple[Tensor, Tensor]:
        """Output and attribution.

        Args:
            input: the model's only input.
            start: from the output to its relevance.
            create_graph, retain_graph: as autograd's.
        """
        if self.explainer is None:
            return self._gradient(input, start, create_graph, retain_graph)
        if create_graph:
            raise InputError(
                "create_graph: relprop's plans give relevance without a graph; use Zennit's own "
                "Gradient with relprop.integrations.zennit.hooked(composite), whose rules have one"
            )
        return self._relevance(self.explainer, input, start)

    def _gradient(
        self, input: Tensor, start: Start, create_graph: bool, retain_graph: bool | None
    ) -> tuple[Tensor, Tensor]:
        x = input.view_as(input) if input.requires_grad else input.detach().requires_grad_()
        with torch.enable_grad(), self.relu or nullcontext():
            output = self.model(x)
        (gradient,) = torch.autograd.grad(
            output, x, start(output), retain_graph=retain_graph, create_graph=create_graph
        )
        return output, gradient

    def _relevance(
        self, explainer: Explainer, input: Tensor, start: Start
    ) -> tuple[Tensor, Tensor]:
        """As `Explainer.explain`, with a start that needs the whole output and no target."""
        call = Call.of((input.detach(),), None, 0)
        with neutral_modes():
            explainer._check_inputs(call)
            graph, plan, engine, _ = explainer._prepare(call)
            assert isinstance(plan, Plan) and engine is not None
            (name,) = graph.inputs
            passed = run.forward(plan, engine, explainer.model, {name: call.leaves[0]})
            begun = start(passed.output)
            if not isinstance(begun, Tensor) or begun.shape != passed.output.shape:
                shape = getattr(begun, "shape", None)
                came = type(begun).__name__ if shape is None else list(shape)
                raise InputError(
                    f"attr_output: {came}; expected a tensor of the shape of the output, "
                    f"{list(passed.output.shape)}, or a function that makes one of it"
                )
            seeds = begun.detach().to(passed.output).unsqueeze(0)
            found = run.relevance(plan, engine, passed, seeds, [name])
        relevance = found[name][0] if name in found else torch.zeros_like(input)
        return passed.output, relevance.contiguous()


def _check_kinds(model: Any, composite: Any) -> None:
    if not isinstance(composite, Composite):
        raise InputError(
            f"composite: {composite!r}; expected an instance of zennit.core.Composite, such as "
            "EpsilonPlus()"
        )
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {type(model).__name__}; with a composite expected an nn.Module")


def _hooks(composite: Composite, model: nn.Module) -> dict[Any, RuleHook]:
    """The rules of the model's modules by name, and of the usual classes, for functions.

    A composite with rules for classes is one of relevance, whether or not the model has modules of
    these classes: what it computes by functions counts as well.
    """
    lookup, label = Lookup(composite, model), type(composite).__name__
    asked: list[tuple[Any, nn.Module, Any]] = [
        (name, module, lookup.hook(name, module, first=True))
        for name, module in model.named_modules()
    ]
    asked += [(type(m), m, lookup.hook(None, m, first=False)) for m in usual_modules()]
    return {
        key: own_rule(hook, f"{label}, {key!r} ({type(module).__name__})")
        for key, module, hook in asked
        if hook is not None
    }


def _common(hooks: dict[Any, RuleHook], model: nn.Module, label: str) -> RuleHook:
    """The one rule of all ReLU modules.

    Raises:
        InputError: they have several, or not all have one, or a module of another class has one.
    """
    rule = next(iter(hooks.values()))
    for name, module in model.named_modules():
        hook = hooks.get(name)
        if isinstance(module, nn.ReLU) != (hook is not None):
            raise InputError(
                f"{label}, '{name}' ({type(module).__name__}): a rule that changes the gradient of "
                "ReLU converts where all nn.ReLU have it, and no other module; use Zennit's own "
                "attributor with relprop.integrations.zennit.hooked(composite)"
            )
    if len({(type(hook), tuple(hook.parameters.items())) for hook in hooks.values()}) > 1:
        raise InputError(f"{label}: the rules of the model's nn.ReLU differ; expected one for all")
    return rule


def canonised(model: nn.Module, composite: Composite) -> nn.Module:
    """The model as a composite's canonizers leave it; the model itself is not changed.

    Merging batch norms and spelling out residual sums is what relprop does by itself, from the
    operations: those canonizers are skipped.  For any other the model is copied, and the canonizer
    applied to the copy.

    Args:
        model: the model.
        composite: one of Zennit's.

    Returns:
        The model itself, or a copy of it with the values that it has now.
    """
    needed = list(_needed(composite.canonizers))
    if not needed:
        return model
    copied = copy.deepcopy(model)
    for canonizer in needed:
        canonizer.apply(copied)
    return copied


def _needed(canonizers: Iterable[Canonizer]) -> Iterable[Canonizer]:
    for canonizer in canonizers:
        if isinstance(canonizer, MergeBatchNorm) or _is_residual(canonizer):
            continue
        if type(canonizer) is CompositeCanonizer:
            yield from _needed(canonizer.canonizers)
        else:
            yield canonizer


def _is_residual(canonizer: Canonizer) -> bool:
    kind = type(canonizer)
    return kind.__module__ == "zennit.torchvision" and kind.__name__ in _RESIDUAL
