"""Whether tensors, geometry and rule of a linear layer fit each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import Conv, LinearMap
from relprop.rules import Joint, LinearRule, Rule, ZBox
from relprop.rules.bounds import bound_tensor

__all__ = ["check_rule", "check_tensors", "conv_map"]

Size = int | Sequence[int]

_LINEAR_RULES = ", ".join(
    kind.__name__
    for kind in LinearRule.__subclasses__()
    if kind.__module__ == LinearRule.__module__
)


def check_tensors(where: str, **tensors: Tensor | None) -> None:
    """Every tensor that is given is real, floating, and on one device.

    Raises:
        InputError: naming the tensor that is not.
    """
    device = None
    for name, tensor in tensors.items():
        if tensor is None and name == "bias":
            continue
        if not isinstance(tensor, Tensor):
            raise InputError(f"{where}: {name} is {type(tensor).__name__}; expected a tensor")
        if not tensor.is_floating_point():
            raise InputError(
                f"{where}: {name} is {tensor.dtype}; expected a floating type, "
                f"as {name}.float() gives"
            )
        device = device or tensor.device
        if tensor.device != device:
            raise InputError(f"{where}: {name} is on {tensor.device}; expected {device}, as x")


def check_rule(where: str, rule: Rule, linear_map: LinearMap, shape: Sequence[int]) -> None:
    """The rule can be evaluated on a layer with that input.

    Args:
        where: the layer's name, for the message.
        rule: the rule.
        linear_map: the layer's geometry.
        shape: of the layer's input, batch axis first.

    Raises:
        InputError: it is not a linear rule, a box does not broadcast against the input, or
            a joint rule does not say where the pixels are.
    """
    if not isinstance(rule, LinearRule):
        raise InputError(
            f"{where}: rule is {rule!r}; a linear layer takes one of {_LINEAR_RULES}, or a "
            "LinearRule of your own"
        )
    target = list(shape)
    if isinstance(rule, Joint):
        axis = len(target) + linear_map.feature_axis
        target[axis] = _pixel_features(where, rule, target[axis])
    box = rule.pixel if isinstance(rule, Joint) else rule
    if isinstance(box, ZBox):
        _check_bounds(where, box, target)


def _pixel_features(where: str, rule: Joint, features: int) -> int:
    if rule.channels is None:
        raise InputError(
            f"{where}: Joint does not say which input features are pixels; "
            "give it channels=(start, stop)"
        )
    start, stop = rule.channels
    if not 0 <= start < stop <= features:
        raise InputError(
            f"{where}: Joint has channels {rule.channels}; expected 0 <= start < stop <= {features}"
        )
    return stop - start


def _check_bounds(where: str, box: ZBox, shape: Sequence[int]) -> None:
    for name, bound in (("low", box.low), ("high", box.high)):
        found = list(bound_tensor(bound).shape)
        sizes = zip(reversed(found), reversed([1, *shape[1:]]), strict=False)
        if len(found) > len(shape) or any(size not in (1, limit) for size, limit in sizes):
            raise InputError(
                f"{where}: {name} of ZBox is {found}, which does not broadcast against one "
                f"sample of the input, {list(shape[1:])}; for one value a channel give it "
                "one axis a dimension, [channels, 1, 1] for images"
            )


def conv_map(
    where: str,
    x: Tensor,
    weight: Tensor,
    stride: Size,
    padding: Size | str,
    dilation: Size,
    groups: int,
    transposed: bool,
    output_padding: Size,
) -> Conv:
    """The geometry of a convolution from the arguments of torch's functions.

    Raises:
        InputError: naming the argument that does not fit, or the input is smaller than the kernel.
    """
    spatial = weight.ndim - 2
    if spatial not in (1, 2, 3) or x.ndim != weight.ndim:
        raise InputError(
            f"{where}: x is {list(x.shape)} and weight {list(weight.shape)}; expected x "
            "[batch, in, *spatial] and a weight with as many axes, 1 to 3 of them spatial"
        )
    steps = _per_axis(where, "stride", stride, spatial, minimum=1)
    gaps = _per_axis(where, "dilation", dilation, spatial, minimum=1)
    extra = _per_axis(where, "output_padding", output_padding, spatial, minimum=0)
    if any(extra) and not transposed:
        raise InputError(f"{where}: output_padding is {extra}; only transposed=True has one")
    if any(e >= max(s, d) for e, s, d in zip(extra, steps, gaps, strict=True)):
        raise InputError(
            f"{where}: output_padding is {extra}; expected less than stride {steps} "
            f"or dilation {gaps} on every axis"
        )
    _check_channels(where, x, weight, groups, transposed)
    if isinstance(padding, str):
        _check_named_padding(where, padding, steps, transposed)
    else:
        padding = _per_axis(where, "padding", padding, spatial, minimum=0)
    conv = Conv.of(weight.shape[2:], steps, padding, gaps, groups, transposed, extra)
    sizes = list(conv.output_shape(x.shape, weight.shape)[2:])
    if min(sizes) < 1:
        raise InputError(
            f"{where}: x is {list(x.shape)} and weight {list(weight.shape)}; "
            f"the output would have the spatial size {sizes}"
        )
    return conv


def _check_channels(where: str, x: Tensor, weight: Tensor, groups: int, transposed: bool) -> None:
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(
            f"{where}: groups is {groups}; expected a divisor of weight's {weight.shape[0]}"
        )
    expected = weight.shape[0] if transposed else weight.shape[1] * groups
    if x.shape[1] != expected:
        raise InputError(
            f"{where}: x has {x.shape[1]} channels; weight {list(weight.shape)} with "
            f"groups={groups} takes {expected}"
        )


def _per_axis(where: str, name: str, value: Any, spatial: int, minimum: int) -> tuple[int, ...]:
    sizes = (value,) * spatial if isinstance(value, int) else tuple(value)
    if len(sizes) == 1:
        sizes *= spatial
    if len(sizes) != spatial or not all(isinstance(s, int) and s >= minimum for s in sizes):
        raise InputError(
            f"{where}: {name} is {value!r}; expected an integer >= {minimum}, or {spatial} of them"
        )
    return sizes


def _check_named_padding(
    where: str, padding: str, stride: tuple[int, ...], transposed: bool
) -> None:
    if padding not in ("same", "valid") or transposed:
        raise InputError(
            f"{where}: padding is {padding!r}; expected integers"
            + ("" if transposed else ", 'same' or 'valid'")
        )
    if padding == "same" and any(step != 1 for step in stride):
        raise InputError(f"{where}: padding 'same' needs stride 1, got {stride}")
