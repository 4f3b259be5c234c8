"""Convolutions on a CPU with the pointwise work around them in the same pass over memory.

oneDNN applies a product or a ReLU to a convolution's result before it is written; PyTorch
reaches that through the operators its own compiler uses.  Where they do not apply, None.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from relprop.graph.maps import CHANNELS_LAST, Conv

__all__ = ["fused_adjoint", "rectified_contraction", "turned", "turns"]


def _available() -> bool:
    operator = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
    return bool(torch.backends.mkldnn.is_available()) and hasattr(operator, "binary")


def _serves(conv: Conv, a: Tensor, w: Tensor, other: Tensor | None = None) -> bool:
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


def rectified_contraction(conv: Conv, a: Tensor, w: Tensor, b: Tensor | None) -> Tensor | None:
    """max(W a + b, 0); a new tensor, or None where not served."""
    return _convolution(conv, a, w, b) if _serves(conv, a, w) else None


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
    return _convolution(backwards, s, w, None, times)


def turned(conv: Conv, w: Tensor) -> Tensor:
    """The weight of the convolution that is the adjoint of one of stride 1."""
    flipped = w.flip(list(range(2, w.ndim))) if any(taps > 1 for taps in w.shape[2:]) else w
    swapped = flipped.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)
    return swapped.contiguous(memory_format=CHANNELS_LAST[w.ndim])


def _convolution(
    conv: Conv, a: Tensor, w: Tensor, b: Tensor | None, times: Tensor | None = None
) -> Tensor:
    """The convolution, rectified, or multiplied by `times`."""
    padding = [before for before, _ in conv.padding]
    geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
    operator = torch.ops.mkldnn._convolution_pointwise
    if times is None:
        found: Tensor = operator(a, w, b, *geometry, "relu", [], "")
    else:
        found = operator.binary(a, times, w, b, *geometry, "mul", None, None, [], "")
    return found
