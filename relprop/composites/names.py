"""Composites by name."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable
from typing import Any

from relprop.composites.composite import Composite, uniform
from relprop.composites.presets import PRESETS, ZeroParams, zero_params_of
from relprop.errors import InputError
from relprop.rules import EPSILON, AlphaBeta

__all__ = [
    "from_name",
]

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
