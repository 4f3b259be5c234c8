"""Captum's `LayerLRP`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from captum.attr import LayerAttribution
from captum.attr import LayerLRP as CaptumLayerLRP
from torch import Tensor, nn

from relprop.capture.call import Call, neutral_modes, unwrap
from relprop.engine import run
from relprop.engine.plan import Plan
from relprop.engine.selection import layer_values
from relprop.engine.targets import resolve_target, seed, squeeze_targets, start_sums
from relprop.errors import InputError
from relprop.explainer import Explainer
from relprop.integrations.captum.forms import Arguments, target_of, unwrappable
from relprop.integrations.captum.lrp import LRP
from relprop.integrations.captum.strict import StrictResult

__all__ = ["LayerLRP"]

Layers = nn.Module | Iterable[nn.Module]


class LayerLRP(LRP, CaptumLayerLRP):  # type: ignore[misc]
    """Relevance at hidden layers, with Captum's interface.

    Args:
        model: the module, in eval mode.
        layer: one of its modules, or several in any sequence.  Any module that is called once will
            do, an activation or a block too; under strict only layers with a rule, as in Captum.
        strict: give Captum's own numbers and raise its errors.

    Raises:
        TypeError: a `module.rule` is no rule of Captum's.
    """

    def __init__(self, model: nn.Module, layer: Layers, strict: bool = False) -> None:
        chosen = layer if isinstance(layer, nn.Module) else list(layer)
        LayerAttribution.__init__(self, model, chosen)
        LRP.__init__(self, model, strict)

    @unwrappable
    def attribute(  # type: ignore[override]
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        attribute_to_layer_input: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance at the layers.

        Args:
            inputs, target, additional_forward_args, return_convergence_delta, verbose: see
                `LRP.attribute`.
            attribute_to_layer_input: relevance of what enters a layer, instead of what leaves it.

        Returns:
            A tensor shaped like the layer's output or input, a tuple where several tensors enter or
            leave; for several layers a list of them.  The delta, `[batch]`, likewise.

        Raises:
            relprop.InputError: a layer is none of the model's, is not called exactly once, or was
                folded into another.
        """
        arguments = Arguments(inputs, additional_forward_args)
        chosen = self.layer if isinstance(self.layer, list) else [self.layer]
        if self.strict:
            paths = [_paths(unwrap(self.model), module) for module in chosen]
            result = self._strict_result(arguments, target, verbose)
            output = result.output
            maps = [_strict_map(result, own[0], attribute_to_layer_input) for own in paths]
        else:
            explainer = self._explainer(arguments, verbose)
            paths = [_paths(explainer.model, module) for module in chosen]
            maps, output = _maps(explainer, arguments, target, paths, attribute_to_layer_input)
        deltas = [self.compute_convergence_delta(found, output) for found in maps]
        several = isinstance(self.layer, list)
        relevance, delta = (maps, deltas) if several else (maps[0], deltas[0])
        return (relevance, delta) if return_convergence_delta else relevance


def _paths(model: nn.Module, layer: Any) -> list[str]:
    """The names under which a module is part of the model."""
    found = [p for p, module in model.named_modules(remove_duplicate=False) if module is layer]
    if not found:
        raise InputError(f"layer: {layer!r} is no module of {type(model).__name__}")
    return found


def _strict_map(result: StrictResult, path: str, entering: bool) -> Tensor | tuple[Tensor, ...]:
    if path not in result.leaving:
        raise InputError(
            f"layer: '{path}' has no rule, or no relevance comes to it; under strict=True expected "
            f"one of {', '.join(result.leaving)}"
        )
    if not entering:
        return result.leaving[path]
    parts = result.entering.get(path, ())
    if not parts:
        raise InputError(
            f"layer: what enters '{path}' entered another layer first, where Captum counts it"
        )
    return parts if path in result.joining else parts[0]


def _maps(
    explainer: Explainer, arguments: Arguments, target: Any, paths: list[list[str]], entering: bool
) -> tuple[list[Tensor | tuple[Tensor, ...]], Tensor]:
    """Relevance at the layers, and the explained value of each sample."""
    target = target_of(explainer, arguments, target)
    call = Call.of(arguments.batched, None, 0)
    with neutral_modes():
        explainer._check_inputs(call)
        graph, plan, engine, _ = explainer._prepare(call)
        assert isinstance(plan, Plan) and engine is not None
        calls = [_call(plan, own) for own in paths]
        if entering:
            names = [_entering(plan, path) for path in calls]
        else:
            names = [_leaving(plan, path, explainer.model, call) for path in calls]
        values = dict(zip(graph.inputs, call.leaves, strict=True))
        passed = run.forward(plan, engine, explainer.model, values)
        resolved = resolve_target(target, passed.output.shape, call.batch)
        start = seed(resolved, passed.output, "output")
        wanted = {name for group in names for name in group}
        found = run.relevance(plan, engine, passed, start, wanted)
        for name in wanted - set(found):
            found[name] = start.new_zeros(1, *passed.shapes[name])
        output = squeeze_targets(start_sums(start), resolved)
    maps = [tuple(squeeze_targets(found[n], resolved) for n in group) for group in names]
    return [parts if len(parts) > 1 else parts[0] for parts in maps], output


def _call(plan: Plan, paths: list[str]) -> str:
    """The one call of a module that has these names."""
    calls = [call for call in plan.graph.module_outputs if call.partition("@")[0] in paths]
    if len(calls) > 1:
        raise InputError(
            f"layer: '{paths[0]}' is called {len(calls)} times; ask for one call by "
            f"relprop.Explainer(..., layers={tuple(calls)!r})"
        )
    return calls[0] if calls else paths[0]


def _leaving(plan: Plan, path: str, model: nn.Module, call: Call) -> list[str]:
    return list(layer_values(plan, path, model, call)[path]) if path else [plan.output]


def _entering(plan: Plan, path: str) -> list[str]:
    """The values that a module's operations read from outside of it."""
    inside = {
        name
        for name, step in plan.steps.items()
        if step.node.path == path or step.node.path.startswith(f"{path}.") or not path
    }
    outside = [n for name in plan.steps if name in inside for n in plan.steps[name].inputs]
    found = [name for name in dict.fromkeys(outside) if name not in inside]
    if not found:
        joint = plan.dissolved().get(path)
        raise InputError(
            f"layer: nothing enters '{path}'; "
            + (f"it is folded into '{joint}'" if joint else "it is not part of the plan")
        )
    return found
