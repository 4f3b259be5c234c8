"""Pooling, reductions and residual sums of the Triton backend.

Each is an operation of `relprop.operations` whose relevance, and for pooling whose
value, a kernel computes.
"""

from __future__ import annotations

from relprop.backends.triton.operands import check_operands
from relprop.backends.triton.pooling import (
    TritonAdaptiveAveragePooling,
    TritonAdaptiveMaxPooling,
    TritonAveragePooling,
    TritonMaxPooling,
    TritonResampling,
)
from relprop.backends.triton.reductions import TritonMaximum, TritonReduction
from relprop.backends.triton.sums import TritonSum
from relprop.operations import Operation
from relprop.operations.pointwise import Addition, Difference
from relprop.operations.pool import (
    AdaptiveAveragePooling,
    AdaptiveMaxPooling,
    AveragePooling,
    Maximum,
    MaxPooling,
    Reduction,
)
from relprop.operations.resample import Resampling

__all__ = ["OPERATIONS", "check_operands"]

OPERATIONS: dict[type[Operation], Operation] = {
    MaxPooling: TritonMaxPooling(),
    AdaptiveMaxPooling: TritonAdaptiveMaxPooling(),
    AveragePooling: TritonAveragePooling(),
    AdaptiveAveragePooling: TritonAdaptiveAveragePooling(),
    Resampling: TritonResampling(),
    Reduction: TritonReduction(),
    Maximum: TritonMaximum(),
    Addition: TritonSum(),
    Difference: TritonSum(),
}
"""What serves an operation in place of each class of `relprop.operations`, its subclasses apart."""
