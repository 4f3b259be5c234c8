"""The model's own output, and whether a captured graph gives the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from relprop.capture.call import Call
from relprop.errors import ModelError
from relprop.graph import Graph
from relprop.graph.nodes import evaluate

__all__ = ["difference", "run_model"]


def run_model(model: nn.Module, call: Call) -> list[Any]:
    """The leaves of the model's output for a call.

    Raises:
        ModelError: the model itself refuses the inputs.
    """
    args, kwargs = call.copied().arguments
    try:
        return pytree.tree_leaves(model(*args, **kwargs))
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise ModelError(
            f"the model itself fails on these inputs ({_describe(call)}): "
            f"{type(error).__name__}: {lines[0]}{_hint(model, call)}"
        ) from error


def _hint(model: nn.Module, call: Call) -> str:
    """The parameters' type, where a real input has another one."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    given = {leaf.dtype for leaf in call.leaves if isinstance(leaf, Tensor)}
    if len(kinds) != 1 or given <= kinds:
        return ""
    (kind,) = kinds
    return f"; the model's parameters are {str(kind).removeprefix('torch.')}"


def _describe(call: Call) -> str:
    return ", ".join(
        f"{label}: {tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
        for label, leaf in zip(call.labels, call.leaves, strict=True)
        if isinstance(leaf, Tensor)
    )


def difference(graph: Graph, model: nn.Module, call: Call, expected: list[Any]) -> str | None:
    """What differs between the graph's output and the model's own, None if nothing does."""
    inputs = dict(zip(graph.inputs, call.leaves, strict=True))
    try:
        values = evaluate(graph, model, inputs)
    except Exception as error:
        return f"running the captured graph failed: {type(error).__name__}: {error}"
    found = [values[name] for name in graph.output_names]
    wanted = [leaf for leaf in expected if isinstance(leaf, Tensor)]
    if len(found) != len(wanted):
        return f"the captured graph has {len(found)} outputs, the model {len(wanted)}"
    for ours, theirs in zip(found, wanted, strict=True):
        if ours.shape != theirs.shape:
            return f"the captured graph gives shape {tuple(ours.shape)}, not {tuple(theirs.shape)}"
        if not _close(ours, theirs):
            return "the captured graph's output differs from the model's own"
    return None


_TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Equality within rounding, by root mean squares; NaN where the model gives NaN."""
    if not theirs.is_floating_point():
        return bool(torch.equal(ours, theirs))
    a, b = ours.double().nan_to_num(), theirs.double().nan_to_num()
    scale = b.square().mean().sqrt() if b.numel() else b.sum()
    error = (a - b).square().mean().sqrt() if b.numel() else b.sum()
    return bool(error <= _TOLERANCE.get(theirs.dtype, 2e-3) * scale + 1e-12)
