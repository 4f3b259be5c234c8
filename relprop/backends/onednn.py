"""Convolutions on a CPU with the pointwise work around them in the same pass over memory.

oneDNN applies a sum, a product and a ReLU to a convolution's result before it is written; PyTorch
reaches that through the operators its own compiler uses.  Where they do not apply, None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relprop.backends.pointwise import CHANNELS_LAST
from relprop.maps import Conv

__all__ = ["fused_adjoint", "fused_contraction", "turned", "turns"]


def _available() -> bool:
    operator = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    return bool(torch.backends.mkldnn.is_available()) and hasattr(operator, "binary")


def _serves(conv: Conv, a: Tensor, w: Tensor, other: Tensor | None) -> bool:
    """Whether the operators take these: images with channels innermost, one format, no gaps."""
    layout = CHANNELS_LAST.get(a.ndim)
    return (
        layout is not None
        and a.device.type == "cpu"
        and a.dtype is torch.float32
        and w.dtype is a.dtype
        and not conv.transposed
        and a.numel() > 0
        and a.is_contiguous(memory_format=layout)
        and (
            other is None or (other.dtype is a.dtype and other.is_contiguous(memory_format=layout))
        )
        and all(before == after for before, after in conv.padding)
        and bool(torch.backends.mkldnn.enabled)
        and _available()
    )


def fused_contraction(
    conv: Conv,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    add: Tensor | None,
    rectify: bool,
) -> Tensor | None:
    """W a + b, plus `add`, then max(., 0) if asked; a new tensor, or None where not served."""
    if (add is None and not rectify) or not _serves(conv, a, w, add):
        return None
    return _convolution(conv, a, w, b, add, "add", rectify)


def turns(conv: Conv, s: Tensor, taps: Sequence[int], times: Tensor) -> Conv | None:
    """The convolution that is the adjoint of one of stride 1, if `fused_adjoint` serves it.

    Args:
        conv: geometry of the layer.
        s: `[rows, *output shape]`.
        taps: of the layer's kernel in each spatial dimension.
        times: what the result is to be multiplied by, `[rows, *input shape]`.
    """
    if conv.transposed or any(step != 1 for step in conv.stride) or times.shape[0] != s.shape[0]:
        return None
    padding = tuple(
        (dilation * (count - 1) - before,) * 2
        for (before, _), dilation, count in zip(conv.padding, conv.dilation, taps, strict=True)
    )
    if any(before < 0 for before, _ in padding) or any(b != a for b, a in conv.padding):
        return None
    backwards = Conv(conv.stride, padding, conv.dilation, conv.groups)
    return backwards if _serves(backwards, s, s, times) else None


def fused_adjoint(backwards: Conv, s: Tensor, w: Tensor, times: Tensor) -> Tensor:
    """(W^T s) * times; a new tensor.

    Args:
        backwards: what `turns` gave.
        s: `[rows, *output shape]`.
        w: the layer's weight as `turned` gives it.
        times: `[rows, *input shape]`.
    """
    return _convolution(backwards, s, w, None, times, "mul", False)


def turned(conv: Conv, w: Tensor) -> Tensor:
    """The weight of the convolution that is the adjoint of one of stride 1."""
    flipped = w.flip(list(range(2, w.ndim))) if any(taps > 1 for taps in w.shape[2:]) else w
    swapped = flipped.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.contiguous(memory_format=CHANNELS_LAST[w.ndim])


def _convolution(
    conv: Conv,
    a: Tensor,
    w: Tensor,
    b: Tensor | None,
    other: Tensor | None,
    operation: str,
    rectify: bool,
) -> Tensor:
    padding = [before for before, _ in conv.padding]
    geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
    unary = "relu" if rectify else None
    operator = torch.ops.mkldnn._convolution_pointwise
    if other is None:
        found: Tensor = operator(a, w, b, *geometry, unary or "none", [], "")
        return found
    found = operator.binary(a, other, w, b, *geometry, operation, None, unary, [], "")
    return found
