"""Composites: which rule each layer gets.

A composite is data.  `Composite.assign` looks only at `LayerInfo`, the plan's description of an
operation, so nothing here knows of graphs or tensors.  Presets carry the names the field uses;
those of Zennit mean what they mean there, on networks with one stem.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from relprop.errors import InputError, PlanningError
from relprop.rules import (
    EPSILON,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    LinearRule,
    Norm,
    Pass,
    Product,
    Recurrent,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
)

__all__ = [
    "KINDS",
    "LINEAR_KINDS",
    "PRESETS",
    "Composite",
    "LayerInfo",
    "Selector",
    "alpha_beta",
    "deep_taylor",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "from_name",
    "lrp_epsilon",
    "lrp_flat",
    "lrp_gamma",
    "lrp_w_square",
    "lrp_zero",
    "lrp_zplus",
    "uniform",
]

Selector = str | type[nn.Module]
"""A kind of layer, a glob on the dotted module path, or a module class."""

LINEAR_KINDS = ("linear", "conv", "conv_transpose")
"""The kinds that `first` and `pixel` apply to."""

_RULES_OF_KIND: dict[str, tuple[type[Rule], ...]] = {
    **dict.fromkeys(LINEAR_KINDS, (LinearRule, Pass)),
    "activation": (Pass,),
    "add": (Norm,),
    "mul": (Product,),
    "avg_pool": (Norm,),
    "max_pool": (),
    "batch_norm": (Pass, LinearRule),
    "embedding": (),
    "recurrent": (Recurrent, LinearRule),
}

KINDS = tuple(_RULES_OF_KIND)
"""The words that select layers by kind."""

_RULES_OF_OTHER_KINDS: tuple[type[Rule], ...] = (Pass, Norm, Epsilon)


@dataclass(frozen=True)
class LayerInfo:
    """What a composite may know of one operation.

    Attributes:
        kind: one of `KINDS`, or another word that the engine uses.
        path: full dotted path of the module that owns the operation; a repeated call of that
            module has the suffix `@1`, `@2`, ...
        module_types: classes of the modules around the operation, from the innermost outward.
        first: whether a floating input reaches it without crossing another linear layer.
    """

    kind: str
    path: str
    module_types: tuple[type, ...] = ()
    first: bool = False

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'!r} ({self.kind})"


@dataclass(frozen=True, repr=False)
class Composite:
    """An assignment of rules to layers; immutable, equal by value, hashable and picklable.

    Precedence: `with_rule` (last given first), `first` or `pixel`, `rules` in order, `defaults`,
    and where all are silent the table of the engine.  A selector is

    - a kind: one of `KINDS`; "conv" includes "conv_transpose";
    - any other string: a glob on the full dotted path, whose `*` crosses dots; "path:..." forces a
      path where a module is called like a kind; a path selects every call of its module,
      "path@1" the second call alone;
    - an nn.Module class: the operations that such a module performs itself.

    A path or a class may select operations of several kinds; its rule goes to those that can take
    it.  A selector that matches nothing, or whose rule fits nothing it matches, is an error.

    Args:
        rules: (selector, rule) pairs.
        first: rule of every linear layer that a floating input reaches without crossing another
            linear layer; or a mapping from "linear", "conv", "conv_transpose" to such rules, where
            the kinds left out keep their other rule.
        pixel: (low, high), short for `first=ZBox(low, high)`.
        stabilizer: epsilon of sums, poolings and other operations whose rule names none.
        defaults: (kind, rule) pairs that come after `rules` and may match nothing.
        overrides: what `with_rule` has added, the most important first.
        name: what to call the composite in messages; does not count in comparisons.

    Raises:
        InputError: (a ValueError) both `first` and `pixel`, a selector or rule of another type, or
            a stabilizer that is not a finite number >= 0.
    """

    rules: tuple[tuple[Selector, Rule], ...] = ()
    first: Rule | tuple[tuple[str, Rule], ...] | None = None
    stabilizer: float = EPSILON
    defaults: tuple[tuple[str, Rule], ...] = ()
    overrides: tuple[tuple[Selector, Rule], ...] = ()
    name: str = field(default="", compare=False)

    def __init__(
        self,
        rules: Iterable[tuple[Selector, Rule]] = (),
        first: Rule | Mapping[str, Rule] | Iterable[tuple[str, Rule]] | None = None,
        pixel: tuple[Any, Any] | None = None,
        stabilizer: float = EPSILON,
        *,
        defaults: Iterable[tuple[str, Rule]] = (),
        overrides: Iterable[tuple[Selector, Rule]] = (),
        name: str = "",
    ) -> None:
        values = {
            "rules": _pairs("rules", rules),
            "first": _first(first, pixel),
            "stabilizer": _stabilizer(stabilizer),
            "defaults": _kind_pairs("defaults", defaults, KINDS),
            "overrides": _pairs("overrides", overrides),
            "name": name,
        }
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def with_rule(self, selector: Selector, rule: Rule) -> Composite:
        """A new composite in which `rule` outranks everything given before, `first` included."""
        added = _pairs("with_rule", [(selector, rule)])
        return replace(self, overrides=added + self.overrides)

    def assign(self, layers: Sequence[LayerInfo]) -> list[Rule | None]:
        """The rule of each layer; None leaves it to the engine's table.

        A LinearRule selected for a recurrent layer comes back as `Recurrent` holding it.

        Raises:
            PlanningError: a selector matches no layer, its rule fits none that it matches, or
                `first` is given and no layer is first.
        """
        chosen: list[Rule | None] = [None] * len(layers)
        for selector, rule in self.overrides:
            self._give(rule, selector, layers, chosen)
        if self.first is not None:
            self._give_first(self.first, layers, chosen)
        for selector, rule in self.rules:
            self._give(rule, selector, layers, chosen)
        for kind, rule in self.defaults:
            self._give(rule, kind, layers, chosen, required=False)
        return chosen

    def _give(
        self,
        rule: Rule,
        selector: Selector,
        layers: Sequence[LayerInfo],
        chosen: list[Rule | None],
        required: bool = True,
    ) -> None:
        """Write a rule to the layers it is selected for and that have none yet."""
        matched = [i for i, layer in enumerate(layers) if _matches(selector, layer)]
        fitting = [i for i in matched if _fits(rule, layers[i].kind)]
        if required and not matched:
            raise PlanningError(self._unmatched(selector, layers))
        if matched and not fitting:
            raise PlanningError(self._unfitting(selector, rule, [layers[i] for i in matched]))
        for i in fitting:
            chosen[i] = chosen[i] or _adapted(rule, layers[i].kind)

    def _give_first(
        self,
        first: Rule | tuple[tuple[str, Rule], ...],
        layers: Sequence[LayerInfo],
        chosen: list[Rule | None],
    ) -> None:
        starts = [i for i, x in enumerate(layers) if x.first and x.kind in LINEAR_KINDS]
        if not starts:
            raise PlanningError(
                f"{self._label}: it has a rule for the first layer, but no linear layer or "
                "convolution is reached from a floating input; expected at least one. "
                "Use a composite without first= or pixel=."
            )
        for i in starts:
            chosen[i] = chosen[i] or _rule_of_first(first, layers[i].kind)

    @property
    def _label(self) -> str:
        return f"Composite {self.name!r}" if self.name else "Composite"

    def _unmatched(self, selector: Selector, layers: Sequence[LayerInfo]) -> str:
        kinds = sorted({layer.kind for layer in layers if layer.kind in KINDS})
        paths = [layer.path for layer in layers if layer.path]
        classes = [x.module_types[0].__name__ for x in layers if x.module_types]
        if isinstance(selector, type):
            names, wanted = classes, selector.__name__
        else:
            names, wanted = paths + kinds, selector.removeprefix("path:")
        near = difflib.get_close_matches(wanted, sorted(set(names)), n=3, cutoff=0.5)
        hint = f"Near it: {', '.join(near)}. " if near else ""
        return (
            f"{self._label}: selector {_show(selector)} matches no layer of this model. {hint}"
            f"Expected a kind ({', '.join(kinds) or 'none here'}), a glob on a module path, or the "
            "class of a module; correct it or leave it out."
        )

    def _unfitting(self, selector: Selector, rule: Rule, matched: Sequence[LayerInfo]) -> str:
        shown = ", ".join(str(layer) for layer in matched[:3]) + (", ..." * (len(matched) > 3))
        kinds = dict.fromkeys(layer.kind for layer in matched)
        allowed = "; ".join(f"{kind} takes {_allowed(kind)}" for kind in kinds)
        return (
            f"{self._label}: selector {_show(selector)} gives {rule!r} to {shown}, "
            f"which cannot take it: {allowed}."
        )

    def __repr__(self) -> str:
        parts = []
        if self.rules:
            parts.append(f"rules={_show_pairs(self.rules)}")
        if isinstance(self.first, tuple):
            parts.append(f"first={dict(self.first)!r}")
        elif self.first is not None:
            parts.append(f"first={self.first!r}")
        if self.stabilizer != EPSILON:
            parts.append(f"stabilizer={self.stabilizer!r}")
        for key in ("defaults", "overrides"):
            if getattr(self, key):
                parts.append(f"{key}={_show_pairs(getattr(self, key))}")
        if self.name:
            parts.append(f"name={self.name!r}")
        return f"Composite({', '.join(parts)})"


def _pairs(where: str, pairs: Iterable[tuple[Selector, Rule]]) -> tuple[tuple[Selector, Rule], ...]:
    checked = []
    for entry in pairs:
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            raise InputError(f"Composite {where}: got {entry!r}; expected (selector, rule) pairs")
        selector, rule = entry
        module_class = isinstance(selector, type) and issubclass(selector, nn.Module)
        if not module_class and not (isinstance(selector, str) and selector):
            raise InputError(
                f"Composite {where}: selector {selector!r} is neither a kind ({', '.join(KINDS)}), "
                "nor a glob on a module path, nor an nn.Module class"
            )
        checked.append((selector, _rule(where, rule)))
    return tuple(checked)


def _rule(where: str, rule: Any) -> Rule:
    if isinstance(rule, Rule):
        return rule
    called = isinstance(rule, type) and issubclass(rule, Rule)
    hint = f"; write {rule.__name__}(...), an instance" if called else ""
    raise InputError(f"Composite {where}: {rule!r} is not a rule of relprop.rules{hint}")


def _kind_pairs(
    where: str, pairs: Iterable[tuple[str, Rule]], kinds: Sequence[str]
) -> tuple[tuple[str, Rule], ...]:
    checked: list[tuple[str, Rule]] = []
    for kind, rule in pairs:
        if kind not in kinds:
            raise InputError(f"Composite {where}: kind {kind!r}; expected {', '.join(kinds)}")
        if not _fits(_rule(where, rule), kind):
            raise InputError(
                f"Composite {where}: {kind!r} is given {rule!r}, but {kind} takes {_allowed(kind)}"
            )
        checked.append((kind, rule))
    return tuple(checked)


def _first(first: Any, pixel: Any) -> Rule | tuple[tuple[str, Rule], ...] | None:
    if first is not None and pixel is not None:
        raise InputError(
            "Composite: both first and pixel are given; pixel=(low, high) is short for "
            "first=ZBox(low, high), so give one of them"
        )
    if pixel is not None:
        if not isinstance(pixel, (tuple, list)) or len(pixel) != 2:
            raise InputError(f"Composite: pixel is {pixel!r}; expected (low, high)")
        return ZBox(*pixel)
    if first is None:
        return None
    if isinstance(first, (Mapping, tuple, list)):
        pairs = first.items() if isinstance(first, Mapping) else first
        return _kind_pairs("first", pairs, LINEAR_KINDS) or None
    rule = _rule("first", first)
    if not _fits(rule, "linear"):
        raise InputError(f"Composite first: {rule!r}; a linear layer takes {_allowed('linear')}")
    return rule


def _rule_of_first(first: Rule | tuple[tuple[str, Rule], ...], kind: str) -> Rule | None:
    if isinstance(first, Rule):
        return first
    by_kind = dict(first)
    return by_kind.get(kind) or (by_kind.get("conv") if kind == "conv_transpose" else None)


def _stabilizer(value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        raise InputError(f"Composite: stabilizer is {value!r}; expected a finite number >= 0")
    return float(value)


def _matches(selector: Selector, layer: LayerInfo) -> bool:
    if isinstance(selector, type):
        return bool(layer.module_types) and issubclass(layer.module_types[0], selector)
    if selector in KINDS:
        return layer.kind == selector or (selector, layer.kind) == ("conv", "conv_transpose")
    glob = selector.removeprefix("path:")
    plain = re.sub(r"@\d+$", "", layer.path)
    return fnmatchcase(layer.path, glob) or fnmatchcase(plain, glob)


def _fits(rule: Rule, kind: str) -> bool:
    return isinstance(rule, _RULES_OF_KIND.get(kind, _RULES_OF_OTHER_KINDS))


def _allowed(kind: str) -> str:
    names: dict[type[Rule], str] = {
        LinearRule: "a rule of linear maps (Epsilon, ZPlus, AlphaBeta, ...)"
    }
    allowed = _RULES_OF_KIND.get(kind, _RULES_OF_OTHER_KINDS)
    if not allowed:
        return "no rule, its relevance moves in one way only"
    return " or ".join(names.get(rule, rule.__name__) for rule in allowed)


def _adapted(rule: Rule, kind: str) -> Rule:
    """A rule of linear maps on a recurrent layer is the rule of its candidate's map."""
    if kind != "recurrent" or not isinstance(rule, LinearRule):
        return rule
    plain = rule == Epsilon(rule.epsilon)
    return Recurrent(epsilon=rule.epsilon, rule=None if plain else rule)


def _show(selector: Selector) -> str:
    return selector.__name__ if isinstance(selector, type) else repr(selector)


def _show_pairs(pairs: Iterable[tuple[Selector, Rule]]) -> str:
    return "[" + ", ".join(f"({_show(selector)}, {rule!r})" for selector, rule in pairs) + "]"


# Presets.  Their rules are `defaults`: a network without convolutions may use them too.


def _preset(
    name: str,
    conv: Rule,
    linear: Rule,
    stabilizer: float,
    first: Rule | Mapping[str, Rule] | None = None,
    recurrent: Rule | None = None,
) -> Composite:
    pairs = [("conv", conv), ("linear", linear)]
    if recurrent is not None:
        pairs.append(("recurrent", recurrent))
    return Composite(first=first, stabilizer=stabilizer, defaults=pairs, name=name)


ZeroParams = str | Sequence[str] | None


def _zero_params(value: ZeroParams) -> str | None:
    """Zennit takes a list of parameter names; a rule takes "bias" or None."""
    if value is None or isinstance(value, str):
        return value
    names = list(value)
    if names not in ([], ["bias"]):
        raise InputError(f"zero_params is {value!r}; expected None, 'bias' or ['bias']")
    return "bias" if names else None


def epsilon_plus(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """ZPlus in convolutions, Epsilon in dense layers.  Zennit's EpsilonPlus.

    Args:
        epsilon: stabilizer of the Epsilon rule.
        stabilizer: stabilizer of everything else.
        zero_params: "bias" leaves biases out of the denominators.
    """
    zero = _zero_params(zero_params)
    return _preset("epsilon_plus", ZPlus(stabilizer, zero), Epsilon(epsilon, zero), stabilizer)


def epsilon_plus_flat(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """`epsilon_plus` with Flat in the first layer.  Zennit's EpsilonPlusFlat."""
    base = epsilon_plus(epsilon, stabilizer, zero_params)
    flat = Flat(stabilizer, _zero_params(zero_params))
    return replace(base, first=flat, name="epsilon_plus_flat")


def epsilon_alpha2_beta1(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """AlphaBeta(2, 1) in convolutions, Epsilon in dense layers.  Zennit's EpsilonAlpha2Beta1."""
    zero = _zero_params(zero_params)
    conv = AlphaBeta(2.0, 1.0, stabilizer, zero)
    return _preset("epsilon_alpha2_beta1", conv, Epsilon(epsilon, zero), stabilizer)


def epsilon_alpha2_beta1_flat(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """`epsilon_alpha2_beta1` with Flat in the first layer.  Zennit's EpsilonAlpha2Beta1Flat."""
    base = epsilon_alpha2_beta1(epsilon, stabilizer, zero_params)
    flat = Flat(stabilizer, _zero_params(zero_params))
    return replace(base, first=flat, name="epsilon_alpha2_beta1_flat")


def epsilon_gamma_box(
    low: Any,
    high: Any,
    epsilon: float = EPSILON,
    gamma: float = 0.25,
    stabilizer: float = EPSILON,
    zero_params: ZeroParams = None,
) -> Composite:
    """ZBox in a convolution that comes first, Gamma in the others, Epsilon in dense layers.

    Zennit's EpsilonGammaBox.  A network that begins with a dense layer has Epsilon there.

    Args:
        low, high: the least and greatest value of a pixel: numbers, or tensors that broadcast
            against the input without its batch axis.
        epsilon: stabilizer of the Epsilon rule.
        gamma: see `rules.Gamma`.
        stabilizer: stabilizer of everything else.
        zero_params: "bias" leaves biases out of the denominators.
    """
    zero = _zero_params(zero_params)
    conv, box = Gamma(gamma, stabilizer, zero), ZBox(low, high, stabilizer, zero)
    first = {"conv": box}
    return _preset("epsilon_gamma_box", conv, Epsilon(epsilon, zero), stabilizer, first)


def excitation_backprop(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """ZPlus in every linear layer.  Zhang et al. 2016; Zennit's ExcitationBackprop."""
    rule = ZPlus(stabilizer, _zero_params(zero_params))
    return _preset("excitation_backprop", rule, rule, stabilizer)


def uniform(rule: Rule, *, stabilizer: float | None = None, name: str = "") -> Composite:
    """One rule on every linear layer: what a bare rule means as a method.

    Args:
        rule: `Epsilon(e)` goes to recurrent layers too and makes e the stabilizer; any other
            rule of linear maps, or `Pass`, goes to linear layers and convolutions alone;
            `Recurrent` goes to recurrent layers and its epsilon to everything else.
        stabilizer: of everything else; None is e as above, 1e-6 for other rules.
        name: what to call the composite in messages.

    Raises:
        InputError: the rule is of no use to a linear or recurrent layer.
    """
    _rule("uniform", rule)
    if not (_fits(rule, "linear") or _fits(rule, "recurrent")):
        raise InputError(f"uniform: {rule!r}; a linear layer takes {_allowed('linear')}")
    shared = isinstance(rule, (Epsilon, Recurrent))
    if stabilizer is None:
        stabilizer = rule.epsilon if isinstance(rule, (Epsilon, Recurrent)) else EPSILON
    linear = Epsilon(rule.epsilon) if isinstance(rule, Recurrent) else rule
    recurrent = _adapted(rule, "recurrent") if shared else None
    label = name or type(rule).__name__
    return _preset(label, linear, linear, stabilizer, recurrent=recurrent)


def alpha_beta(
    alpha: float = 2.0,
    beta: float = 1.0,
    pixel: tuple[Any, Any] | None = (-1.0, 1.0),
    stabilizer: float = EPSILON,
) -> Composite:
    """The seeds' LRP: AlphaBeta that conserves in every layer, ZBox at the pixels.

    Args:
        alpha, beta: with alpha - beta = 1.
        pixel: (low, high) of the pixels; None has AlphaBeta there too.
        stabilizer: of every rule.
    """
    rule = AlphaBeta(alpha, beta, stabilizer, conserve=True)
    first = None if pixel is None else ZBox(*pixel, epsilon=stabilizer)
    return _preset("alpha_beta", rule, rule, stabilizer, first)


def deep_taylor(low: Any, high: Any, stabilizer: float = EPSILON) -> Composite:
    """Deep Taylor: AlphaBeta(1, 0) in every layer, ZBox(low, high) at the pixels.

    Montavon et al. 2017.  The method starts from relu of the output.
    """
    rule, box = AlphaBeta(1.0, 0.0, stabilizer), ZBox(low, high, stabilizer)
    return _preset("deep_taylor", rule, rule, stabilizer, box)


def lrp_zero(zero_params: ZeroParams = None) -> Composite:
    """LRP-0: Epsilon without a stabilizer.  Bach et al. 2015; Montavon et al. 2019."""
    return uniform(Epsilon(0.0, _zero_params(zero_params)), name="lrp_zero")


def lrp_epsilon(epsilon: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """LRP-epsilon everywhere.  Bach et al. 2015, eq. 58."""
    return uniform(Epsilon(epsilon, _zero_params(zero_params)), name="lrp_epsilon")


def lrp_gamma(
    gamma: float = 0.25, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """LRP-gamma in every linear layer.  Montavon et al. 2019; Andéol et al. 2021."""
    rule = Gamma(gamma, stabilizer, _zero_params(zero_params))
    return uniform(rule, stabilizer=stabilizer, name="lrp_gamma")


def lrp_zplus(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """ZPlus in every linear layer.  Montavon et al. 2017."""
    rule = ZPlus(stabilizer, _zero_params(zero_params))
    return uniform(rule, stabilizer=stabilizer, name="lrp_zplus")


def lrp_w_square(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """WSquare in every linear layer.  Montavon et al. 2017."""
    rule = WSquare(stabilizer, _zero_params(zero_params))
    return uniform(rule, stabilizer=stabilizer, name="lrp_w_square")


def lrp_flat(stabilizer: float = EPSILON) -> Composite:
    """Flat in every linear layer.  Lapuschkin et al. 2019."""
    return uniform(Flat(stabilizer), stabilizer=stabilizer, name="lrp_flat")


PRESETS: dict[str, Callable[..., Composite]] = {
    preset.__name__: preset
    for preset in (
        epsilon_plus,
        epsilon_plus_flat,
        epsilon_alpha2_beta1,
        epsilon_alpha2_beta1_flat,
        epsilon_gamma_box,
        excitation_backprop,
        alpha_beta,
        deep_taylor,
        lrp_zero,
        lrp_epsilon,
        lrp_gamma,
        lrp_zplus,
        lrp_w_square,
        lrp_flat,
    )
}
"""The composites that `from_name` knows, besides `lrp_alpha<alpha>_beta<beta>`."""

_ALPHA_BETA_NAME = re.compile(r"lrp_alpha(\d+(?:\.\d+)?)_beta(\d+(?:\.\d+)?)")


def from_name(name: str, **options: Any) -> Composite:
    """A preset by name: a key of `PRESETS`, or `lrp_alpha<alpha>_beta<beta>` with alpha - beta = 1.

    Args:
        name: for instance "epsilon_plus" or "lrp_alpha2_beta1" (AlphaBeta in every linear layer,
            no rule for pixels).
        options: the arguments of the preset.

    Raises:
        InputError: the name or an option is unknown, a required option is missing, or a value is
            out of range.
    """
    preset = _preset_by_name(name)
    parameters = inspect.signature(preset).parameters
    unknown = sorted(set(options) - set(parameters))
    if unknown:
        near = difflib.get_close_matches(unknown[0], list(parameters), n=1)
        hint = f"; did you mean {near[0]!r}" if near else ""
        raise InputError(
            f"{name}: unknown option {unknown[0]!r}{hint}; it takes {', '.join(parameters)}"
        )
    required = [key for key, p in parameters.items() if p.default is inspect.Parameter.empty]
    missing = [key for key in required if key not in options]
    if missing:
        raise InputError(
            f"{name}: it needs {' and '.join(missing)}, the least and greatest value an input can "
            f"have; pass method_options={{{', '.join(f'{key!r}: ...' for key in required)}}}"
        )
    try:
        return preset(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from error


def _preset_by_name(name: str) -> Callable[..., Composite]:
    if name in PRESETS:
        return PRESETS[name]
    match = _ALPHA_BETA_NAME.fullmatch(name)
    if match is None:
        near = difflib.get_close_matches(name, list(PRESETS), n=3, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else f"expected one of {', '.join(PRESETS)}"
        raise InputError(
            f"Unknown composite {name!r}; {hint} (or lrp_alpha<alpha>_beta<beta> such as "
            "lrp_alpha2_beta1)"
        )
    alpha, beta = map(float, match.groups())

    def preset(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
        rule = AlphaBeta(alpha, beta, stabilizer, _zero_params(zero_params))
        return uniform(rule, stabilizer=stabilizer, name=name)

    return preset
