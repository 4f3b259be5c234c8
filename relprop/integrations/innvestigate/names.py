"""iNNvestigate's analyzer names and what each stands for."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import nn

from relprop.composites import Composite
from relprop.errors import InputError
from relprop.integrations.innvestigate.analyzers import Analyzer, Gradients, Propagation, Sampled
from relprop.integrations.innvestigate.rules import alpha_beta, composite, inferred
from relprop.methods import PropagationMethod
from relprop.rules import Epsilon

__all__ = ["ANALYZERS", "create_analyzer"]

Work = Propagation | Gradients | Sampled


def _lrp(name: str, rule: Any, start: str = "output", **options: Any) -> Propagation:
    return _propagation(composite(name, rule, **options), start)


def _propagation(chosen: Composite, start: str) -> Propagation:
    return Propagation(PropagationMethod(chosen.name, start, chosen), start)


def _post(postprocess: str | None) -> str | None:
    if postprocess not in (None, "abs", "square"):
        raise InputError(f"postprocess: {postprocess!r}; expected None, 'abs' or 'square'")
    return postprocess


def _input() -> Work:
    return Sampled()


def _random(stddev: float = 1.0) -> Work:
    return Sampled(_deviation("stddev", stddev))


def _gradient(postprocess: str | None = None) -> Work:
    return Gradients(postprocess=_post(postprocess))


def _input_t_gradient() -> Work:
    return Gradients("input")


def _deconvnet() -> Work:
    return Propagation("deconvnet")


def _guided_backprop() -> Work:
    return Propagation("guided_backprop")


def _integrated_gradients(
    steps: int = 64, reference_inputs: Any = 0, postprocess: str | None = None
) -> Work:
    return Gradients("difference", _post(postprocess), _count(steps), reference=reference_inputs)


def _smoothgrad(
    augment_by_n: int = 64, noise_scale: float = 1.0, postprocess: str | None = None
) -> Work:
    noise = _deviation("noise_scale", noise_scale)
    return Gradients("", _post(postprocess), _count(augment_by_n), noise)


def _count(number: int) -> int:
    if not isinstance(number, int) or number < 1:
        raise InputError(f"steps, augment_by_n: {number!r}; expected a whole number >= 1")
    return number


def _deviation(name: str, value: float) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InputError(f"{name}: {value!r}; expected a number >= 0")
    return value


def _any_lrp(
    rule: Any = None,
    input_layer_rule: Any = None,
    until_layer_idx: int | None = None,
    until_layer_rule: Any = None,
) -> Work:
    return _lrp(
        "lrp",
        rule,
        input_layer_rule=input_layer_rule,
        until_layer_idx=until_layer_idx,
        until_layer_rule=until_layer_rule,
    )


def _single(name: str, rule: str) -> Callable[..., Work]:
    def make(input_layer_rule: Any = None) -> Work:
        return _lrp(name, rule, input_layer_rule=input_layer_rule)

    return make


def _epsilon(epsilon: float = 1e-7, bias: bool = True, input_layer_rule: Any = None) -> Work:
    if not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
        raise InputError(f"lrp.epsilon: epsilon is {epsilon!r}; expected a number > 0")
    rule = Epsilon(epsilon, None if bias else "bias")
    return _lrp("lrp.epsilon", rule, input_layer_rule=input_layer_rule)


def _alpha_beta(
    alpha: float | None = None,
    beta: float | None = None,
    bias: bool = True,
    input_layer_rule: Any = None,
) -> Work:
    try:
        rule = alpha_beta(*inferred(alpha, beta), bias)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"lrp.alpha_beta: {error}") from error
    return _lrp("lrp.alpha_beta", rule, input_layer_rule=input_layer_rule)


def _preset(name: str, conv: str, first: str | None = None) -> Callable[..., Work]:
    """A: Alpha1Beta0 in convolutions, B: Alpha2Beta1; Epsilon(0.1) in dense layers."""

    def make(epsilon: float = 1e-1, input_layer_rule: Any = first) -> Work:
        pairs = [("linear", Epsilon(epsilon)), ("conv", conv)]
        return _lrp(name, pairs, input_layer_rule=input_layer_rule)

    return make


def _flat_until(until_layer_idx: int | None = None, epsilon: float = 1e-1) -> Work:
    pairs = [("linear", Epsilon(epsilon)), ("conv", "Alpha2Beta1")]
    return _lrp(
        "lrp.sequential_preset_b_flat_until_idx",
        pairs,
        input_layer_rule="Flat",
        until_layer_idx=until_layer_idx,
        until_layer_rule="Flat",
    )


def _deep_taylor() -> Work:
    return _lrp("deep_taylor", "Alpha1Beta0IgnoreBias", "relu")


def _bounded(low: Any = None, high: Any = None) -> Work:
    if low is None or high is None:
        raise InputError(
            "deep_taylor.bounded: low or high is missing; expected both, the least and greatest "
            "value of an input"
        )
    first = low, high
    return _lrp("deep_taylor.bounded", "Alpha1Beta0IgnoreBias", "relu", input_layer_rule=first)


ANALYZERS: dict[str, Callable[..., Work]] = {
    "input": _input,
    "random": _random,
    "gradient": _gradient,
    "gradient.baseline": _gradient,
    "input_t_gradient": _input_t_gradient,
    "deconvnet": _deconvnet,
    "guided_backprop": _guided_backprop,
    "integrated_gradients": _integrated_gradients,
    "smoothgrad": _smoothgrad,
    "lrp": _any_lrp,
    "lrp.z": _single("lrp.z", "Z"),
    "lrp.epsilon": _epsilon,
    "lrp.w_square": _single("lrp.w_square", "WSquare"),
    "lrp.flat": _single("lrp.flat", "Flat"),
    "lrp.alpha_beta": _alpha_beta,
    "lrp.alpha_2_beta_1": _single("lrp.alpha_2_beta_1", "Alpha2Beta1"),
    "lrp.alpha_2_beta_1_IB": _single("lrp.alpha_2_beta_1_IB", "Alpha2Beta1IgnoreBias"),
    "lrp.alpha_1_beta_0": _single("lrp.alpha_1_beta_0", "Alpha1Beta0"),
    "lrp.alpha_1_beta_0_IB": _single("lrp.alpha_1_beta_0_IB", "Alpha1Beta0IgnoreBias"),
    "lrp.z_plus": _single("lrp.z_plus", "ZPlus"),
    "lrp.z_plus_fast": _single("lrp.z_plus_fast", "ZPlusFast"),
    "lrp.sequential_preset_a": _preset("lrp.sequential_preset_a", "Alpha1Beta0"),
    "lrp.sequential_preset_b": _preset("lrp.sequential_preset_b", "Alpha2Beta1"),
    "lrp.sequential_preset_a_flat": _preset("lrp.sequential_preset_a_flat", "Alpha1Beta0", "Flat"),
    "lrp.sequential_preset_b_flat": _preset("lrp.sequential_preset_b_flat", "Alpha2Beta1", "Flat"),
    "lrp.sequential_preset_b_flat_until_idx": _flat_until,
    "deep_taylor": _deep_taylor,
    "deep_taylor.bounded": _bounded,
}
"""The analyzers by name; each function takes the analyzer's own arguments."""

_RELU_ONLY = ("deconvnet", "guided_backprop", "deep_taylor", "deep_taylor.bounded")
_ACTIVATIONS = tuple(
    kind
    for kind in vars(nn.modules.activation).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.endswith(
        "activation"
    )
)  # fmt: skip


def create_analyzer(
    name: str,
    model: nn.Module,
    *,
    neuron_selection_mode: str = "max_activation",
    disable_model_checks: bool = False,
    **options: Any,
) -> Analyzer:
    """An analyzer by iNNvestigate's name.

    Args:
        name: a key of `ANALYZERS`.
        model: the module, in eval mode, returning logits.
        neuron_selection_mode: "max_activation", "index" or "all", see `Analyzer`.
        disable_model_checks: take models that end in a softmax, and under deconvnet, guided
            backpropagation and deep Taylor activations that are no ReLU.
        options: the analyzer's own: `epsilon`, `alpha`, `low`, `rule`, `input_layer_rule`, ...

    Raises:
        InputError: the name or an option is unknown or out of range, or the model is refused.
    """
    if name not in ANALYZERS:
        near = difflib.get_close_matches(str(name), list(ANALYZERS), n=3, cutoff=0.4)
        hint = f"near it: {', '.join(near)}" if near else f"expected one of {', '.join(ANALYZERS)}"
        raise InputError(f"create_analyzer: no analyzer is called {name!r}; {hint}")
    accepted = inspect.signature(ANALYZERS[name]).parameters
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise InputError(
            f"{name}: unknown option {', '.join(map(repr, unknown))}; expected "
            + (", ".join(accepted) or "none")
        )
    if not disable_model_checks and isinstance(model, nn.Module):
        _check_model(name, model)
    return Analyzer(name, model, ANALYZERS[name](**options), neuron_selection_mode)


def _check_model(name: str, model: nn.Module) -> None:
    modules = list(model.named_modules())
    path, last = modules[-1]
    if name not in ("input", "random") and isinstance(last, (nn.Softmax, nn.LogSoftmax)):
        raise InputError(
            f"{name}: '{path}' is a softmax; explain the logits, or pass disable_model_checks=True"
        )
    for path, module in modules:
        other = isinstance(module, _ACTIVATIONS) and not isinstance(module, nn.ReLU)
        if other and name in _RELU_ONLY:
            raise InputError(
                f"{name}: '{path}' is {type(module).__name__}, but the method is for ReLU "
                "networks; pass disable_model_checks=True to go on"
            )
