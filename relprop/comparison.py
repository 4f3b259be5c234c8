"""Several methods side by side, on one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from relprop.capture.call import Call, neutral_modes
from relprop.engine.shared_forward import SharedForward
from relprop.errors import InputError, is_out_of_memory
from relprop.explainer import Explainer
from relprop.explanation import Explanation

__all__ = ["Comparison"]


class Comparison:
    """Explains a model's predictions by several methods with one forward pass for all of them.

    Where the forward pass cannot be shared (a backend or a precision with products of its own, half
    precision, `lengths`, a batch too large for memory) every method makes its own.  Methods that
    look at other points than the input (integrated gradients, SmoothGrad) always do.

    Args:
        model: the module to explain, in eval mode.
        methods: by name what `Explainer` takes as its method; or methods' names.
        options: further options of `Explainer`, for all of them.

    Raises:
        InputError: no methods; an option or a method is not one of those that `Explainer` takes.
    """

    def __init__(
        self, model: nn.Module, methods: Mapping[str, Any] | Sequence[str], **options: Any
    ) -> None:
        if isinstance(methods, str) or not methods:
            raise InputError(
                f"methods: {methods!r}; expected some, as a list of names or by name in a dict"
            )
        named = methods if isinstance(methods, Mapping) else {name: name for name in methods}
        self.explainers = {
            name: Explainer(model, method, **options) for name, method in named.items()
        }

    def __call__(self, *inputs: Any, **named: Any) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Relevance of the inputs by method: arguments and maps as of `Explainer.__call__`."""
        found = self.explain(*inputs, report=False, **named)
        return {name: result.relevance for name, result in found.items()}

    def explain(
        self,
        *inputs: Any,
        target: Any = None,
        start: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        lengths: Any = None,
        report: bool = True,
    ) -> dict[str, Explanation]:
        """An `Explanation` by each method: see `Explainer.explain`."""
        call = next(iter(self.explainers.values()))._call(inputs, kwargs)
        if lengths is None and self._sharable(call):
            try:
                return self._together(call, target, start, report)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        return {
            name: explainer.explain(
                *inputs, target=target, start=start, kwargs=kwargs, lengths=lengths, report=report
            )
            for name, explainer in self.explainers.items()
        }

    def _sharable(self, call: Call) -> bool:
        """Whether all methods' products are those of the plain forward pass."""
        explainer = next(iter(self.explainers.values()))
        return (
            explainer.backend == "aten"
            and explainer.precision == "highest"
            and not any(map(_is_narrow, [*call.leaves, *explainer.model.parameters()]))
        )

    def _together(
        self, call: Call, target: Any, start: Any, report: bool
    ) -> dict[str, Explanation]:
        with neutral_modes(*call.leaves):
            explainers = list(self.explainers.values())
            explainers[0]._check_inputs(call)
            plans = [explainer._prepare(call).plan for explainer in explainers]
            shared = SharedForward(explainers[0].model, plans)
            return {
                name: explainer._explained_call(call, target, start, True, report, shared)
                for name, explainer in self.explainers.items()
            }


def _is_narrow(value: Any) -> bool:
    """Whether a tensor is of half precision, whose products the backends form in float32."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
