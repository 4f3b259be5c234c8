"""The study's methods as composites of rules, one for each architecture."""

from __future__ import annotations

from relprop import composites, methods
from relprop.composites import Composite
from relprop.errors import InputError
from relprop.rules import AlphaBeta, Joint, ZBox
from relprop.study.networks.registry import check_name

__all__ = ["Kind", "composite", "method"]

Kind = str | tuple[str, float, float]
"""A method's name, or ("lrp", alpha, beta)."""

LOW, HIGH = -1.0, 1.0

STABILIZER = 1e-9
"""Smaller than the rules' default: where |z⁻| is about 1e-6, that one would take a share of R."""

_JOINT = {
    "shallow": "hidden",
    "conv_plus_deep": "features.conv1",
    "conv_plus_r_lstm_sd": "features.conv1",
}
"""Layers that are fed by pixels and a state in one."""


def composite(model_name: str, method: Kind) -> Composite:
    """The rules of "deep_taylor" or ("lrp", alpha, beta) for an architecture.

    ZBox(-1, 1) at the pixels, AlphaBeta that conserves in every other layer, `Joint` of both where
    pixels and a state enter one layer.  The study starts from relu(y_t): see `method`.

    Raises: InputError for an unknown architecture or method, or alpha - beta other than 1.
    """
    check_name(model_name)
    if method == "deep_taylor":
        alpha, beta = 1.0, 0.0
        made = composites.deep_taylor(LOW, HIGH, STABILIZER)
    elif isinstance(method, tuple) and len(method) == 3 and method[0] == "lrp":
        alpha, beta = method[1:]
        try:
            made = composites.alpha_beta(alpha, beta, pixel=(LOW, HIGH), stabilizer=STABILIZER)
        except ValueError as error:
            raise InputError(f"relprop.study.networks: {method!r}: {error}") from None
    else:
        raise InputError(
            f"study.networks: {method!r} is no method with rules; expected 'deep_taylor' or "
            "('lrp', alpha, beta)"
        )
    if model_name not in _JOINT:
        return made
    joint = Joint(ZBox(LOW, HIGH), AlphaBeta(alpha, beta, conserve=True), STABILIZER)
    return made.with_rule(_JOINT[model_name], joint)


def method(model_name: str, kind: Kind) -> methods.Method:
    """What an Explainer of that architecture takes: the composite, started from relu(y_t).

    `kind` is what `composite` takes, or the name of a gradient method, such as "sensitivity".
    """
    if isinstance(kind, str) and kind != "deep_taylor":
        return methods.resolve(kind)
    name = kind if isinstance(kind, str) else f"lrp_alpha{kind[1]:g}_beta{kind[2]:g}"
    return methods.PropagationMethod(name, "relu", composite(model_name, kind))
