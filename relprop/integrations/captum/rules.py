"""Captum's rules as relprop's: read from the attributes `module.rule`.

Captum's rules are one group each, with a stabilizer of 1e-9 and for inputs of any sign:

    EpsilonRule(e)        R_in = a * W^T (R / st(W a + b))
    GammaRule(g)          the same with W + g max(W, 0) for W
    Alpha1_Beta0_Rule     the same with max(W, 0) for W
    IdentityRule          R_in = R

The bias is never modified, only set to 0 by `set_bias_to_zero`.  relprop's `Gamma` and `ZPlus` are
other formulas: they pair signs, and gate by the sign of z.  On inputs >= 0 and without a bias they
agree wherever z > 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from relprop.composites import Composite, LayerInfo
from relprop.composites.selectors import adapted, fits
from relprop.errors import PlanningError
from relprop.integrations import peer
from relprop.integrations.terms import ScaledWeights
from relprop.rules import Epsilon, LinearRule, Norm, Pass, Rule

__all__ = ["EPSILON", "ModuleRules", "composite_of", "converted", "ruled"]

EPSILON = 1e-9
"""Captum's stabilizer."""


@dataclass(frozen=True, repr=False, init=False)
class ModuleRules(Composite):
    """A composite that gives single modules, by path, the rules they were marked with.

    They outrank everything else.  A module whose operations cannot take its rule keeps the other
    one: an activation passes relevance on, max pooling gives all to the winner.

    Args:
        by_path: (module path, rule) pairs.
        options: of the composite of all other modules, see `Composite`.
    """

    by_path: tuple[tuple[str, Rule], ...] = ()

    def __init__(self, by_path: Sequence[tuple[str, Rule]] = (), **options: Any) -> None:
        super().__init__(**options)
        object.__setattr__(self, "by_path", tuple(by_path))

    def assign(self, layers: Sequence[LayerInfo]) -> list[Rule | None]:
        """See `Composite.assign`."""
        chosen = super().assign(layers)
        marked = dict(self.by_path)
        for i, layer in enumerate(layers):
            rule = marked.get(layer.path.partition("@")[0])
            if isinstance(rule, LinearRule) and fits(Norm(), layer.kind):
                rule = Norm(rule.epsilon)
            if rule is not None and fits(rule, layer.kind):
                chosen[i] = adapted(rule, layer.kind)
        return chosen


def ruled(model: nn.Module) -> dict[str, Any]:
    """The layers that carry a Captum rule, by path.  Like Captum, containers do not count.

    Raises:
        TypeError: a module's attribute `rule` is no rule of Captum's.
    """
    kinds = peer("captum.attr._utils.lrp_rules", "captum").PropagationRule
    found: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        rule = getattr(module, "rule", None)
        if rule is None:
            continue
        if not isinstance(rule, kinds):
            raise TypeError(
                f"'{path}' ({type(module).__name__}).rule is {rule!r}; expected a rule derived "
                "from captum's PropagationRule"
            )
        if path and not list(module.children()):
            found[path] = rule
    return found


def converted(rule: Any, where: str = "rule") -> Rule:
    """One of Captum's rules as relprop's, its parameters read from the instance.

    Raises:
        PlanningError: it is of a class that Captum does not define.
    """
    peers = peer("captum.attr._utils.lrp_rules", "captum")
    kind, epsilon = type(rule), rule.STABILITY_FACTOR
    if kind is peers.EpsilonRule:
        return Epsilon(epsilon)
    if kind is peers.IdentityRule:
        return Pass()
    if kind in (peers.GammaRule, peers.Alpha1_Beta0_Rule):
        gain = rule.gamma if kind is peers.GammaRule else None
        return ScaledWeights(gain, epsilon, "bias" if rule.set_bias_to_zero else None)
    raise PlanningError(
        f"{where}: {kind.__name__} is a rule of your own, which only strict=True can run; here "
        "give the module one of Captum's rules, or use relprop.Explainer with a LinearRule"
    )


def composite_of(model: nn.Module) -> ModuleRules:
    """What Captum's LRP means on a model: its rules as marked, Epsilon(1e-9) everywhere else."""
    marks = [(path, converted(rule, f"'{path}'.rule")) for path, rule in ruled(model).items()]
    plain = Epsilon(EPSILON)
    kinds = ("conv", "linear", "recurrent", "batch_norm")
    defaults = [(kind, adapted(plain, kind)) for kind in kinds]
    return ModuleRules(marks, stabilizer=EPSILON, defaults=defaults, name="captum_lrp")
