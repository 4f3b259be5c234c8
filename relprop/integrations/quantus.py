"""An `explain_func` for Quantus: its arguments, NumPy in and out, one plan for all calls.

    from relprop.integrations.quantus import explain     # instead of: from quantus import explain
    metric = quantus.MaxSensitivity(...)
    metric(..., explain_func=explain, explain_func_kwargs={"method": "epsilon_plus"})

Nothing of Quantus is imported here.  A model is captured and planned at its first call; the graph
and the plan are kept with the model, weakly, so that the hundreds of calls that a metric makes pay
for the arithmetic alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.errors import InputError
from relprop.explainer import Explainer
from relprop.rules import Epsilon

__all__ = ["METHODS", "explain"]

METHODS: dict[str, Any] = {
    "Gradient": "gradient",
    "Saliency": "gradient",
    "InputXGradient": "gradient_x_input",
    "Deconvolution": "deconvnet",
    "GuidedBackprop": "guided_backprop",
    "IntegratedGradients": "integrated_gradients",
    "LRP": Epsilon(1e-9),
}
"""What Quantus' names of Captum's methods stand for; Saliency takes the absolute value."""

_REFUSED = ("canonizer", "attributor", "attributor_kwargs", "xai_lib_kwargs")


def explain(
    model: nn.Module,
    inputs: np.ndarray[Any, Any] | Tensor,
    targets: Any,
    *,
    method: Any = "epsilon_plus",
    method_options: Mapping[str, Any] | None = None,
    start: Any = None,
    device: str | torch.device | None = None,
    reduce_axes: tuple[int, ...] | list[int] | None = None,
    keepdims: bool = True,
    channel_first: bool = True,
    softmax: bool | None = None,
    xai_lib: str = "relprop",
    composite: Any = None,
    composite_kwargs: Mapping[str, Any] | None = None,
    backend: str = "auto",
    precision: str = "highest",
    **others: Any,
) -> np.ndarray[Any, Any]:
    """Relevance, as Quantus' metrics want it.

    Args:
        model: the module, or Quantus' wrapper of one; it is explained as if in eval mode.
        inputs: `[batch, ...]`.  Real numbers, and unsigned integers as of images, are taken in
            the type of the model's parameters; other integers stay, as token ids must.
        targets: an index for all samples, or one a sample, `[batch]`.
        method: any method of `relprop.Explainer`, or one of `METHODS`.
        method_options: arguments of a named method.
        start: see `relprop.Explainer`.
        device: where to compute; None is where the model is.  A model elsewhere is moved, as by
            Quantus.
        reduce_axes: axes that are summed; None: the channels, () none.  Inputs of fewer than three
            axes are never reduced.
        keepdims: whether a summed axis stays, with size 1.
        channel_first: False where the inputs' channels come last and the model's second.
        softmax: False or None, for a model that returns logits, which is what one should explain.
        xai_lib: "zennit" takes `composite`, the name or class of one of Zennit's, in place of
            `method`, and starts from 1 as Quantus does there; anything else is ignored.
        composite, composite_kwargs: that composite and its arguments.
        backend, precision: see `relprop.Explainer`.

    Returns:
        Shaped like `inputs` but for the summed axes; float64 for a float64 model, else float32.

    Raises:
        InputError: an argument that is not known, or out of range.
        relprop.RelpropError: see `relprop.Explainer`.
    """
    _check_others(others)
    if xai_lib == "zennit" and composite is not None:
        method, method_options, start = _zennit_name(composite), composite_kwargs, "one"
    module = _module(model)
    _check_softmax(module, softmax)
    if device is not None:
        _move(module, torch.device(device))
    x = _tensor(module, inputs)
    channels = (1 if channel_first else -1,)
    axes = _axes(channels if reduce_axes is None else reduce_axes, x.ndim)
    known = METHODS.get(method, method) if isinstance(method, str) else method
    explainer = Explainer(
        module,
        known,
        method_options=method_options,
        start=start,
        backend=backend,
        precision=precision,
    )
    with _evaluating(module):
        relevance = explainer(
            x if channel_first else x.movedim(-1, 1), target=_targets(targets, len(x))
        )
    assert isinstance(relevance, Tensor)
    relevance = relevance if channel_first else relevance.movedim(1, -1)
    if method == "Saliency":
        relevance = relevance.abs()
    if axes:
        relevance = relevance.sum(axes, keepdim=keepdims)
    found: np.ndarray[Any, Any] = relevance.cpu().numpy()
    return found


def _check_others(others: Mapping[str, Any]) -> None:
    given = {key for key, value in others.items() if value is not None}
    refused = sorted(given & set(_REFUSED))
    if refused:
        raise InputError(
            f"explain: {', '.join(refused)} has no meaning here; pass a model that returns logits, "
            "and what the method needs as method_options"
        )
    if given:
        raise InputError(f"explain: unknown argument {', '.join(sorted(given))}")


def _check_softmax(model: nn.Module, softmax: bool | None) -> None:
    """Quantus takes a last softmax off, or puts it back; here the model is as it is."""
    last = list(model.modules())[-1]
    if softmax or (softmax is False and isinstance(last, nn.Softmax)):
        raise InputError(
            f"explain: softmax={softmax}, but {type(model).__name__} "
            + ("ends in a softmax" if isinstance(last, nn.Softmax) else "returns logits")
            + "; pass a model that ends as you want it explained, without softmax="
        )


def _zennit_name(composite: Any) -> str:
    """The name, in both libraries, of one of Zennit's composites."""
    if isinstance(composite, str):
        return composite
    if not isinstance(composite, type):
        raise InputError(f"composite: {composite!r}; expected the name or the class of one")
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in composite.__name__)
    return words.lstrip("_")


def _module(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module) and hasattr(model, "get_model"):
        model = model.get_model()
    if not isinstance(model, nn.Module):
        raise InputError(f"model: {type(model).__name__}; expected a torch.nn.Module")
    return model


def _move(model: nn.Module, device: torch.device) -> None:
    here = next(model.parameters(), torch.empty(0)).device
    if here.type != device.type or device.index not in (None, here.index):
        model.to(device)


def _tensor(model: nn.Module, inputs: Any) -> Tensor:
    """The inputs where the model is, all but signed integers in its type."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    x = _from_numpy("inputs", inputs)
    whole = x.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)
    return x.to(like.device, x.dtype if whole else like.dtype)


def _from_numpy(name: str, values: Any) -> Tensor:
    """A tensor of what may be an array of any strides, which nothing writes into, or a list."""
    if isinstance(values, Tensor):
        return values
    array = np.array(values, order="C")
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: {array.dtype} of {type(values).__name__}; expected numbers")
    return torch.from_numpy(array)


def _targets(targets: Any, batch: int) -> int | Tensor:
    found = _from_numpy("targets", targets)
    if found.numel() == 1:
        found = found.reshape(())
    elif found.shape not in ((batch,), (batch, 1)):
        raise InputError(
            f"targets: {list(found.shape)} for {batch} samples; expected an index, or one a sample"
        )
    whole = found.round().long() if found.is_floating_point() else found
    if found.dtype is torch.bool or not torch.equal(whole.to(found.dtype), found):
        raise InputError(f"targets: {targets!r}; expected whole numbers")
    return whole.flatten() if found.ndim else int(whole)


def _axes(axes: Any, ndim: int) -> tuple[int, ...]:
    given = axes if isinstance(axes, (tuple, list)) else (None,)
    known = [isinstance(axis, (int, np.integer)) and -ndim <= axis < ndim for axis in given]
    chosen = tuple(int(axis) % ndim for axis in given) if all(known) else (0,)
    if 0 in chosen or len(set(chosen)) < len(chosen):
        raise InputError(
            f"reduce_axes: {axes!r}; expected different axes from 1 to {ndim - 1}, without the "
            "batch axis"
        )
    return chosen if ndim > 2 else ()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode for a while."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
