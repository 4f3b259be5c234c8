"""Pooling, reductions and residual sums of the Triton backend.

Each is an operation of `relprop.layers` whose relevance, and for pooling whose value, a kernel
computes.
"""

from __future__ import annotations

from relprop.backends.triton_operations.operands import check_operands
from relprop.backends.triton_operations.pooling import (
    TritonAdaptiveAveragePooling,
    TritonAdaptiveMaxPooling,
    TritonAveragePooling,
    TritonMaxPooling,
    TritonResampling,
)
from relprop.backends.triton_operations.reductions import TritonMaximum, TritonReduction
from relprop.backends.triton_operations.sums import TritonSum
from relprop.layers import Operation

__all__ = ["OPERATIONS", "check_operands"]

OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), TritonMaxPooling()),
    **dict.fromkeys(
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        TritonAdaptiveMaxPooling(),
    ),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), TritonAveragePooling()),
    **dict.fromkeys(
        (
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "_adaptive_avg_pool2d",
            "adaptive_avg_pool3d",
            "_adaptive_avg_pool3d",
        ),
        TritonAdaptiveAveragePooling(),
    ),
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), TritonResampling()
    ),
    **dict.fromkeys(("mean", "sum"), TritonReduction()),
    **dict.fromkeys(("amax", "max"), TritonMaximum()),
    **dict.fromkeys(("add", "sub", "rsub"), TritonSum()),
}
"""By canonical name."""
