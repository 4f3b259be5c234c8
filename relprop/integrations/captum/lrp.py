"""Captum's `LRP`."""

from __future__ import annotations

from functools import partial
from typing import Any

from captum._utils.common import _select_targets
from captum._utils.gradient import compute_gradients
from captum.attr import LRP as CaptumLRP
from torch import nn

from relprop.capture.call import Call, unwrap
from relprop.engine.plan import Plan
from relprop.errors import PlanningError
from relprop.explainer import Explainer
from relprop.integrations.captum.forms import Arguments, like_inputs, target_of, unwrappable
from relprop.integrations.captum.holding import Holding
from relprop.integrations.captum.rules import ModuleRules, composite_of
from relprop.integrations.captum.strict import StrictResult, layer_rules, strict_relevance
from relprop.methods import PropagationMethod
from relprop.rules import Epsilon

__all__ = ["LRP"]


class LRP(Holding, CaptumLRP):  # type: ignore[misc]
    """Layer-wise relevance propagation with Captum's interface and rules.

    Rules are read from the attributes `module.rule` at every call and, unlike in Captum, stay
    there.  Layers without one have Epsilon(1e-9).

    Args:
        model: the module, in eval mode.
        strict: give Captum's own numbers and raise its errors.

    Raises:
        TypeError: a `module.rule` is no rule of Captum's.
        relprop.InputError: the model is no module.
    """

    _kept: tuple[tuple[ModuleRules, int], Explainer] | None = None

    def __init__(self, model: nn.Module, strict: bool = False) -> None:
        unwrap(model)
        CaptumLRP.__init__(self, model)
        self.strict = strict

    @unwrappable
    def attribute(
        self,
        inputs: Any,
        target: Any = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,
        verbose: bool = False,
    ) -> Any:
        """Relevance of the inputs.

        Args:
            inputs: a tensor, or a tuple of tensors, samples on axis 0.
            target: an int or a tensor of one; a list or 1-d tensor, one a sample; a tuple that
                indexes an output of several dimensions, or a list of such; None where the output
                has one value a sample.
            additional_forward_args: further arguments of the model, which get no relevance.
            return_convergence_delta: also return the explained output minus all relevance.
            verbose: print the plan (under strict: the rules).

        Returns:
            Relevance shaped like `inputs`, a tuple for a tuple; with the delta, `[batch]`, if
            asked for.

        Raises:
            relprop.RelpropError: see `relprop.Explainer`.
            TypeError, RuntimeError: Captum's restrictions, under strict.
        """
        if self.gradient_func is not compute_gradients:  # reassigned: Captum's to run
            found = CaptumLRP.attribute(
                self, inputs, target, additional_forward_args, return_convergence_delta, verbose
            )
            return found
        arguments = Arguments(inputs, additional_forward_args)
        if self.strict:
            result = self._strict_result(arguments, target, verbose)
            relevance = like_inputs(arguments, result.inputs)
            delta = self.compute_convergence_delta(result.inputs, result.output)
        else:
            explainer = self._explainer(arguments, verbose)
            maps, delta = explainer.attribute(
                *arguments.batched,
                target=target_of(explainer, arguments, target),
                return_convergence_delta=True,
            )
            relevance = like_inputs(arguments, maps)
        return (relevance, delta) if return_convergence_delta else relevance

    def _explainer(self, arguments: Arguments, verbose: bool) -> Explainer:
        """The explainer for the rules as they are marked now."""
        model = self._holding(unwrap(self.model), arguments)
        composite = composite_of(model)
        key = composite, len(arguments.inputs)
        if self._kept is None or self._kept[0] != key or self._kept[1].model is not model:
            method = PropagationMethod("captum_lrp", "output", composite)
            self._kept = key, Explainer(model, method, inputs=arguments.explained)
        explainer = self._kept[1]
        plan = explainer._prepare(Call.of(arguments.batched, None, 0)).plan
        assert isinstance(plan, Plan)
        _check_folded(plan, composite)
        if verbose:
            print(plan)
        return explainer

    def _strict_result(self, arguments: Arguments, target: Any, verbose: bool) -> StrictResult:
        model = unwrap(self.model)
        if verbose:
            for path, rule in layer_rules(model).items():
                print(f"{path}: {rule if rule is not None else 'passes'}")
        select = partial(_select_targets, target=target)
        return strict_relevance(model, arguments.all, len(arguments.inputs), select)


def _check_folded(plan: Plan, composite: ModuleRules) -> None:
    """A batch norm that is part of its neighbour cannot have a rule of its own."""
    marked = dict(composite.by_path)
    for path, joint in plan.dissolved().items():
        if not isinstance(marked.get(path, Epsilon()), Epsilon):
            raise PlanningError(
                f"'{path}'.rule is {marked[path]!r}, but '{path}' is folded into '{joint}', whose "
                f"rule holds for both; mark '{joint}' instead, or use strict=True"
            )
