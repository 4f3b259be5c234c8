"""What enters a rule's products: inputs, weights and biases as its terms modify them."""

from __future__ import annotations

import torch
from torch import Tensor

from relprop.errors import InputError
from relprop.graph.maps import LinearMap
from relprop.rules import Joint, LinearRule
from relprop.rules.bounds import bound_tensor
from relprop.rules.terms import Modifier, modified

__all__ = ["modify"]


def modify(modifier: Modifier, u: Tensor, linear_map: LinearMap, rule: LinearRule) -> Tensor:
    """The modified tensor, shaped like `u`.

    Args:
        modifier: of one of the rule's terms.
        u: the layer's input, weight or bias.
        linear_map: geometry of the layer.
        rule: the rule, which knows where the pixels of a concatenated input are.

    Raises:
        InputError: a rule for a concatenated input does not know.
    """
    if modifier.part is None:
        return _whole(modifier, u)
    if not isinstance(rule, Joint) or rule.channels is None:
        raise InputError(
            f"{rule}: a rule for a concatenated input needs to know where the pixels are; "
            "give it channels=(start, stop) on the layer's input features"
        )
    axis = linear_map.feature_axis
    before, pixels, after = u.tensor_split(rule.span, axis)
    if modifier.part == "pixel":
        parts = torch.zeros_like(before), _whole(modifier, pixels), torch.zeros_like(after)
    else:
        parts = _whole(modifier, before), torch.zeros_like(pixels), _whole(modifier, after)
    return torch.cat(parts, axis)


def _whole(modifier: Modifier, u: Tensor) -> Tensor:
    if modifier.kind == "constant":
        return -bound_tensor(modifier.value).to(u).expand(u.shape)
    return modified(modifier, u)
