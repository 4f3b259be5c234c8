"""Composites by the names that the field uses; those of Zennit mean what they mean there.

Their rules are `defaults`: a network without convolutions may use them too.
"""

from __future__ import annotations

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
