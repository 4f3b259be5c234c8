"""Explanation methods by name: rules of propagation, and the gradient methods beside them."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from relprop import composites
from relprop.composites import Composite
from relprop.errors import InputError
from relprop.rules import Rule

__all__ = ["GradientMethod", "Method", "PropagationMethod", "names", "resolve"]


@dataclass(frozen=True)
class Method:
    """What an Explainer does: immutable, comparable, picklable.

    Attributes:
        name: for tables and titles.
        start: the starting value at the target, see `relprop.engine.targets.seed`.
    """

    name: str
    start: str | Callable[..., Any] = "output"


@dataclass(frozen=True)
class PropagationMethod(Method):
    """Relevance propagation under a composite."""

    composite: Composite = field(default_factory=Composite)


@dataclass(frozen=True)
class GradientMethod(Method):
    """A method built on gradients.

    Attributes:
        relu: how a ReLU passes a gradient: "plain" (where the input was positive), "guided" (there,
            and where the gradient is positive; Springenberg et al. 2015), "deconvnet" (where the
            gradient is positive; Zeiler and Fergus 2014).  Gates of products are constants under
            the last two.
        power: 2 squares the gradient (sensitivity analysis; Simonyan et al. 2014).
        times_input: multiply by the input, or by input - baseline.
        samples: gradients averaged per sample.
        noise: standard deviation of the noise added to each (SmoothGrad; Smilkov et al. 2017).
        path: average along the path from `baseline` (integrated gradients; Sundararajan et al.
            2017) by Gauss-Legendre quadrature.
        baseline: where that path starts: a number, or a tensor that broadcasts to the input.
        seed: of the noise.
    """

    start: str | Callable[..., Any] = "one"
    relu: str = "plain"
    power: int = 1
    times_input: bool = False
    samples: int = 1
    noise: float = 0.0
    path: bool = False
    baseline: Any = 0.0
    seed: int = 0


def _gradient() -> GradientMethod:
    return GradientMethod("gradient")


def _sensitivity() -> GradientMethod:
    return GradientMethod("sensitivity", power=2)


def _simple_taylor() -> GradientMethod:
    return GradientMethod("simple_taylor", times_input=True)


def _gradient_x_input() -> GradientMethod:
    return GradientMethod("gradient_x_input", times_input=True)


def _guided_backprop() -> GradientMethod:
    return GradientMethod("guided_backprop", relu="guided")


def _deconvnet() -> GradientMethod:
    return GradientMethod("deconvnet", relu="deconvnet")


def _smoothgrad(samples: int = 20, noise: float = 0.1, seed: int = 0) -> GradientMethod:
    _whole("smoothgrad", "samples", samples, 1)
    _whole("smoothgrad", "seed", seed, 0)
    number = isinstance(noise, (int, float)) and not isinstance(noise, bool)
    if not number or not 0 <= noise < math.inf:
        raise InputError(f"smoothgrad: noise is {noise!r}; expected a finite number >= 0")
    return GradientMethod("smoothgrad", samples=samples, noise=noise, seed=seed)


def _integrated_gradients(steps: int = 50, baseline: Any = 0.0) -> GradientMethod:
    _whole("integrated_gradients", "steps", steps, 1)
    return GradientMethod(
        "integrated_gradients", samples=steps, path=True, times_input=True, baseline=baseline
    )


_GRADIENT_METHODS: dict[str, Callable[..., GradientMethod]] = {
    "gradient": _gradient,
    "sensitivity": _sensitivity,
    "simple_taylor": _simple_taylor,
    "gradient_x_input": _gradient_x_input,
    "guided_backprop": _guided_backprop,
    "deconvnet": _deconvnet,
    "smoothgrad": _smoothgrad,
    "integrated_gradients": _integrated_gradients,
}


def names() -> list[str]:
    """All method names; `lrp_alpha<a>_beta<b>` stands for any pair with a - b = 1."""
    return [*_GRADIENT_METHODS, *composites.PRESETS, "lrp_alpha<a>_beta<b>"]


def resolve(method: Any, options: Mapping[str, Any] | None = None) -> Method:
    """The method behind a name, a rule, a composite or a method.

    Args:
        method: one of `names()`, a `rules.Rule`, a `composites.Composite` or a `Method`.
        options: arguments of the named method, such as `low` and `high`.

    Raises:
        InputError: an unknown name, a missing or unknown option, an object of another type.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InputError(
            f"method_options: {type(options).__name__}; expected a dict, such as {{'low': -1}}"
        )
    options = dict(options or {})
    if isinstance(method, str):
        return _by_name(method, options)
    if options:
        raise InputError(
            f"method_options: {sorted(options)} beside a {type(method).__name__}; expected them "
            "only with a method's name"
        )
    if isinstance(method, Method):
        return method
    if isinstance(method, Composite):
        start = "relu" if getattr(method, "name", "") == "deep_taylor" else "output"
        return PropagationMethod(getattr(method, "name", "") or "composite", start, method)
    if isinstance(method, Rule):
        return PropagationMethod(type(method).__name__, "output", composites.uniform(method))
    raise InputError(
        f"method: {method!r} of type {type(method).__name__}; expected a name, a rule, a Composite "
        "or a Method"
    )


def _by_name(name: str, options: dict[str, Any]) -> Method:
    make = _GRADIENT_METHODS.get(name)
    if make is not None:
        accepted = list(inspect.signature(make).parameters)
        unknown = sorted(set(options) - set(accepted))
        if unknown:
            raise InputError(
                f"method_options: {name} takes no {', '.join(map(repr, unknown))}; expected "
                + (f"only {accepted}" if accepted else "none")
            )
        return make(**options)
    near = difflib.get_close_matches(name, names(), n=3)
    if name not in composites.PRESETS and not name.startswith("lrp_"):
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else "."
        raise InputError(f"method: no method is called {name!r}{hint} See relprop.methods.names()")
    composite = composites.from_name(name, **options)
    start = "relu" if name == "deep_taylor" else "output"
    return PropagationMethod(name, start, composite)


def _whole(method: str, name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise InputError(f"{method}: {name} is {value!r}; expected a whole number >= {minimum}")
