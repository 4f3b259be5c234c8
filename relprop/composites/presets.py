"""Composites by the names that the field uses; those of Zennit mean what they mean there.

Their rules are `defaults`: a network without convolutions may use them too.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from relprop.composites.composite import Composite, by_layer, uniform
from relprop.errors import InputError
from relprop.rules import EPSILON, AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

__all__ = [
    "PRESETS",
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
]

ZeroParams = str | Sequence[str] | None


def zero_params_of(value: ZeroParams) -> str | None:
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
    zero = zero_params_of(zero_params)
    return by_layer("epsilon_plus", ZPlus(stabilizer, zero), Epsilon(epsilon, zero), stabilizer)


def epsilon_plus_flat(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """`epsilon_plus` with Flat in the first layer.  Zennit's EpsilonPlusFlat."""
    return _flat_first(epsilon_plus(epsilon, stabilizer, zero_params), zero_params)


def epsilon_alpha2_beta1(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """AlphaBeta(2, 1) in convolutions, Epsilon in dense layers.  Zennit's EpsilonAlpha2Beta1."""
    zero = zero_params_of(zero_params)
    conv = AlphaBeta(2.0, 1.0, stabilizer, zero)
    return by_layer("epsilon_alpha2_beta1", conv, Epsilon(epsilon, zero), stabilizer)


def epsilon_alpha2_beta1_flat(
    epsilon: float = EPSILON, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """`epsilon_alpha2_beta1` with Flat in the first layer.  Zennit's EpsilonAlpha2Beta1Flat."""
    return _flat_first(epsilon_alpha2_beta1(epsilon, stabilizer, zero_params), zero_params)


def _flat_first(base: Composite, zero_params: ZeroParams) -> Composite:
    flat = Flat(base.stabilizer, zero_params_of(zero_params))
    return replace(base, first=flat, name=f"{base.name}_flat")


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
    zero = zero_params_of(zero_params)
    conv, box = Gamma(gamma, stabilizer, zero), ZBox(low, high, stabilizer, zero)
    first = {"conv": box}
    return by_layer("epsilon_gamma_box", conv, Epsilon(epsilon, zero), stabilizer, first)


def excitation_backprop(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """ZPlus in every linear layer.  Zhang et al. 2016; Zennit's ExcitationBackprop."""
    rule = ZPlus(stabilizer, zero_params_of(zero_params))
    return by_layer("excitation_backprop", rule, rule, stabilizer)


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
    return by_layer("alpha_beta", rule, rule, stabilizer, first)


def deep_taylor(low: Any, high: Any, stabilizer: float = EPSILON) -> Composite:
    """Deep Taylor: AlphaBeta(1, 0) in every layer, ZBox(low, high) at the pixels.

    Montavon et al. 2017.  The method starts from relu of the output.
    """
    rule, box = AlphaBeta(1.0, 0.0, stabilizer), ZBox(low, high, stabilizer)
    return by_layer("deep_taylor", rule, rule, stabilizer, box)


def lrp_zero(zero_params: ZeroParams = None) -> Composite:
    """LRP-0: Epsilon without a stabilizer.  Bach et al. 2015; Montavon et al. 2019."""
    return uniform(Epsilon(0.0, zero_params_of(zero_params)), name="lrp_zero")


def lrp_epsilon(epsilon: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """LRP-epsilon everywhere.  Bach et al. 2015, eq. 58."""
    return uniform(Epsilon(epsilon, zero_params_of(zero_params)), name="lrp_epsilon")


def lrp_gamma(
    gamma: float = 0.25, stabilizer: float = EPSILON, zero_params: ZeroParams = None
) -> Composite:
    """LRP-gamma in every linear layer.  Montavon et al. 2019; Andéol et al. 2021."""
    rule = Gamma(gamma, stabilizer, zero_params_of(zero_params))
    return uniform(rule, stabilizer=stabilizer, name="lrp_gamma")


def lrp_zplus(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """ZPlus in every linear layer.  Montavon et al. 2017."""
    rule = ZPlus(stabilizer, zero_params_of(zero_params))
    return uniform(rule, stabilizer=stabilizer, name="lrp_zplus")


def lrp_w_square(stabilizer: float = EPSILON, zero_params: ZeroParams = None) -> Composite:
    """WSquare in every linear layer.  Montavon et al. 2017."""
    rule = WSquare(stabilizer, zero_params_of(zero_params))
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
"""By name, in the order in which they are listed to a user."""


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
        rule = AlphaBeta(alpha, beta, stabilizer, zero_params_of(zero_params))
        return uniform(rule, stabilizer=stabilizer, name=name)

    return preset
