"""A Zennit composite as a composite of relprop's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from zennit.core import Composite as ZennitComposite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm

from relprop import rules
from relprop.composites import Composite
from relprop.composites.selectors import fits
from relprop.errors import InputError
from relprop.integrations.zennit import rules as own
from relprop.integrations.zennit.hook import RuleHook
from relprop.integrations.zennit.layers import kind_of
from relprop.integrations.zennit.linear_hook import LinearHook
from relprop.integrations.zennit.lookup import Lookup
from relprop.integrations.zennit.reading import own_rule
from relprop.rules import EPSILON, Rule

__all__ = ["relprop_rule", "to_composite", "usual_modules"]

_KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv": nn.Conv2d,
    "conv_transpose": nn.ConvTranspose2d,
}
_SILENT = (
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity,
)  # fmt: skip


def to_composite(composite: ZennitComposite, model: nn.Module) -> Composite:
    """The composite of relprop's that means what one of Zennit's does to a model.

    Rules by class become rules of a kind of operation, so that a functional layer gets the rule of
    its module; rules by name, and by a class that not all layers of a kind have, become rules of
    paths.  The rule of the first layer goes to the layers that the data reach first.  Canonizers
    that merge batch norms or spell out residual sums need no counterpart; for others see
    `relprop.integrations.zennit.canonised`.

    Args:
        composite: one of Zennit's.
        model: the model that it is meant for.

    Raises:
        InputError: a rule, a layer or a name has no counterpart; each message names it.
    """
    return _Conversion(composite, model).result()


def usual_modules() -> list[nn.Module]:
    """One module of each class that stands for an operation a function may do as well."""
    linear = [_typical(kind) for kind in _KINDS]
    return [*linear, nn.ReLU(), nn.AvgPool2d(1), nn.BatchNorm2d(1), Sum()]


def _typical(kind: str) -> nn.Module:
    """A layer to ask about: without values, so that no random numbers are drawn."""
    sizes = (1, 1) if kind == "linear" else (1, 1, 1)
    return _KINDS[kind](*sizes, device="meta")


class _Conversion:
    """Gathers the parts of the composite."""

    def __init__(self, composite: ZennitComposite, model: nn.Module) -> None:
        self.label = type(composite).__name__
        self.lookup = Lookup(composite, model)
        self.modules = list(model.named_modules())
        self.paths: list[tuple[str, Rule]] = []
        self.outranking: list[tuple[str, Rule]] = []
        self.stabilizer = EPSILON
        self.defaults: dict[str, Rule] = {}
        self._made: dict[tuple[int, int | None], Rule] = {}

    def result(self) -> Composite:
        """The composite."""
        self._rule("activation", nn.ReLU())
        self._set_defaults()
        for name, module in self.modules:
            self._add(name, module)
        return Composite(
            rules=self.paths,
            first=self._first(),
            stabilizer=self.stabilizer,
            defaults=self._sorted_defaults(),
            overrides=self.outranking,
            name=f"Zennit's {self.label}",
        )

    def _set_defaults(self) -> None:
        sums = self._rule("add", Sum())
        if isinstance(sums, rules.Norm) and sums.epsilon is not None:
            self.stabilizer = sums.epsilon
        for kind in _KINDS:
            rule = self._rule(kind, self._typical(kind))
            if rule is not None:
                self.defaults[kind] = rule
        pooling = self._rule("avg_pool", nn.AvgPool2d(1))
        if pooling is not None and pooling != rules.Norm(self.stabilizer):
            self.defaults["avg_pool"] = pooling
        norm = self._rule("batch_norm", nn.BatchNorm2d(1))
        if norm is not None:
            self.defaults["batch_norm"] = norm

    def _sorted_defaults(self) -> list[tuple[str, Rule]]:
        order = ("conv_transpose", "conv", "linear", "avg_pool", "batch_norm")
        found = [(kind, self.defaults[kind]) for kind in order if kind in self.defaults]
        if self.defaults.get("conv_transpose") == self.defaults.get("conv"):
            found = [pair for pair in found if pair[0] != "conv_transpose"]
        return found

    def _typical(self, kind: str) -> nn.Module:
        """A layer of that kind: of the model's, if it has one."""
        return next(self._of_kind(kind), None) or _typical(kind)

    def _of_kind(self, kind: str) -> Iterator[nn.Module]:
        return (module for _, module in self.modules if kind_of(module) == kind)

    def _rule(self, kind: str, module: nn.Module, name: str | None = None) -> Rule | None:
        """The rule of a layer that is not first; of its class alone if it has no name."""
        hook = self.lookup.hook(name, module, first=False)
        return None if hook is None else self._converted(hook, kind, name, module)

    def _where(self, name: str | None, module: nn.Module) -> str:
        layer = type(module).__name__ if name is None else f"'{name}' ({type(module).__name__})"
        return f"{self.label}, {layer}"

    def _converted(self, hook: Any, kind: str, name: str | None, module: nn.Module) -> Rule:
        where = self._where(name, module)
        weight = module.weight if kind in ("conv", "conv_transpose") else None
        ndim = weight.ndim if isinstance(weight, Tensor) else None
        key = (id(hook), ndim)
        if key not in self._made:  # bounds may be large, and layers many
            self._made[key] = relprop_rule(own_rule(hook, where), where, ndim)
        rule = self._made[key]
        if isinstance(rule, rules.Norm) and kind in (*_KINDS, "batch_norm"):
            rule = rules.Epsilon(EPSILON if rule.epsilon is None else rule.epsilon)
        elif isinstance(rule, rules.Epsilon) and kind in ("avg_pool", "add"):
            rule = rules.Norm(rule.epsilon)
        if not fits(rule, kind):
            raise InputError(f"{where}: {type(hook).__name__} is no rule for it in relprop")
        return rule

    def _add(self, name: str, module: nn.Module) -> None:
        """Check one module, and give it a rule of its own where that of its kind is another."""
        kind = _kind(module)
        hook = self.lookup.hook(name, module, first=False)
        first = self.lookup.hook(name, module, first=True)
        if kind is None or hook is None:
            if first is not None and hook is None and kind in _KINDS and self.lookup.is_first(name):
                rule = self._converted(first, kind, name, module)
                self.outranking.append((f"path:{name}", rule))
                return
            self._check_other(name, module, kind, hook)
            return
        rule = self._converted(hook, kind, name, module)
        if kind == "activation" or rule == self._default(kind):
            if first is hook and self._first() is not None and self.lookup.is_named(name):
                self.outranking.append((f"path:{name}", rule))
            return
        (self.outranking if first is hook else self.paths).append((f"path:{name}", rule))

    def _default(self, kind: str) -> Rule | None:
        if kind in ("avg_pool", "add"):
            return self.defaults.get("avg_pool", rules.Norm(self.stabilizer))
        return self.defaults.get(kind)

    def _check_other(self, name: str, module: nn.Module, kind: str | None, hook: Any) -> None:
        where = self._where(name, module)
        if hook is None:
            if kind in ("batch_norm", None) or type(module) is nn.ReLU:
                return
            raise InputError(
                f"{where}: the composite has no rule for it, so that in Zennit it would have the "
                "plain gradient, which is no relevance; add one to the composite"
            )
        passes = isinstance(own_rule(hook, where), own.Pass)
        if passes and isinstance(module, (*_SILENT, nn.MultiheadAttention)):
            return
        raise InputError(
            f"{where}: a rule around this module has no counterpart in relprop, which looks at the "
            "operations inside; leave it out of the composite, or use Zennit's own attributor with "
            "relprop.integrations.zennit.hooked(composite)"
        )

    def _first(self) -> Rule | dict[str, Rule] | None:
        """The rule of the first layer, by kind."""
        found: dict[str, Rule] = {}
        for kind in _KINDS:
            options = [self._first_rule(kind, module) for module in self._of_kind(kind)]
            options = options or [self._first_rule(kind, self._typical(kind))]
            if any(option != options[0] for option in options):
                raise InputError(
                    f"{self.label}: the rule of the first layer depends on more than its kind "
                    f"({kind}); give it to that layer by name"
                )
            if options[0] is not None:
                found[kind] = options[0]
        if len(found) == len(_KINDS) and len(set(found.values())) == 1:
            return found["conv"]
        if found.get("conv_transpose") == found.get("conv"):
            found.pop("conv_transpose", None)
        return found or None

    def _first_rule(self, kind: str, module: nn.Module) -> Rule | None:
        hook = self.lookup.first_hook(module)
        return None if hook is None else self._converted(hook, kind, None, module)


def _kind(module: nn.Module) -> str | None:
    """relprop's word for what a module of torch.nn or of Zennit does."""
    kinds: Iterable[tuple[Any, str]] = (
        (AvgPool, "avg_pool"),
        (Sum, "add"),
        (BatchNorm, "batch_norm"),
        (nn.MultiheadAttention, ""),
        (Activation, "activation"),
    )
    found = kind_of(module) or next((word for kind, word in kinds if isinstance(module, kind)), "")
    return found or None


def relprop_rule(hook: RuleHook, where: str = "rule", ndim: int | None = None) -> Rule:
    """The rule, as data, behind one of the hooks here.

    Args:
        hook: the rule.
        where: what to call it in messages.
        ndim: axes of the layer's input with the batch's, None if not known.

    Raises:
        InputError: it has none: a ReLU's gradient, a stabilizer that is a function, a weight taken
            for 0, bounds that differ from sample to sample.
    """
    if isinstance(hook, own.Pass):
        return rules.Pass()
    if not isinstance(hook, LinearHook):
        raise InputError(
            f"{where}: {type(hook).__name__} changes gradients; expected it in a composite without "
            "rules of relevance, as GuidedBackprop, on all nn.ReLU"
        )
    name = type(hook).__name__
    if hook.stabilize is not None:
        raise InputError(
            f"{where}: the stabilizer of {name} is {hook.stabilize!r}; expected a number (or a "
            "Stabilizer with neither clip nor norm_scale)"
        )
    if hook.zero_weight:
        raise InputError(f"{where}: {name} has 'weight' in zero_params, which leaves no relevance")
    if isinstance(hook, own.Norm):
        return rules.Norm(hook.epsilon)
    if isinstance(hook, own.ZBox):
        return hook.rule_for_any_batch(ndim)
    return hook.rule_for(None)
