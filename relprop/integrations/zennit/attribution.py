"""Zennit's attributors, in its calling form, on relprop's engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import zennit.attribution
from torch import Tensor, nn
from zennit.core import Composite

from relprop.capture.call import check_modes
from relprop.errors import InputError
from relprop.integrations.zennit.session import Session

__all__ = ["Gradient", "IntegratedGradients", "SmoothGrad"]

AttributionOutput = Tensor | Callable[[Tensor], Tensor] | None


class _Attributor:
    """What the attributors share; comes before Zennit's class of the same name.

    On entering, the composite is converted: the model gets no hooks and is not changed.  Without a
    composite, or with one that has no rule for the model, the gradient is autograd's.
    """

    model: nn.Module
    composite: Composite | None
    attr_output_fn: Callable[[Tensor], Tensor]
    create_graph: bool
    retain_graph: bool | None
    _session: Session | None = None
    _plain = False

    def __enter__(self) -> Any:
        self._session = Session(self.model, self.composite)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._session is not None:
            self._session.set_active(False)
        self._session = None

    def __call__(
        self, input: Tensor, attr_output: AttributionOutput = None
    ) -> tuple[Tensor, Tensor]:
        """Output and attribution.

        Args:
            input: the model's only input, samples along its first axis.
            attr_output: the relevance of the output, or a function that makes it from the output;
                None takes what the attributor was made with, which by default is the output.

        Returns:
            The model's output, and the attribution, shaped like the input: float64 for a float64
            input.  Of a composite with rules of relevance both are detached, and the attribution
            of half-precision inputs is float32.

        Raises:
            InputError: the composite or the input cannot be converted; the message says which part.
            CaptureError, PlanningError: see `relprop.Explainer`.
        """
        if not isinstance(input, Tensor):
            raise InputError(f"input: {type(input).__name__}; expected one torch.Tensor")
        function = self.attr_output_fn if attr_output is None else _function(attr_output)
        with nullcontext() if self._session is not None else self:  # type: ignore[attr-defined]
            return self.forward(input, function)

    @property
    def inactive(self) -> Callable[[], Any]:
        """A context in which attributions are plain gradients."""
        return self._inactive

    @contextmanager
    def _inactive(self) -> Iterator[Any]:
        before, self._plain = self._plain, True
        session = self._session
        try:
            if session is not None:
                session.set_active(False)
            with nullcontext() if self.composite is None else self.composite.inactive():
                yield self.composite
        finally:
            self._plain = before
            if session is not None:
                session.set_active(not before)

    def grad(self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]) -> Any:
        """Output and (modified) gradient at one input."""
        session = self._session or Session(self.model, self.composite)
        plain = Session(self.model, None) if self._plain else session
        return plain.attribute(input, attr_output_fn, self.create_graph, self.retain_graph)

    def forward(
        self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Output and attribution; `__call__` without its default."""
        found: tuple[Tensor, Tensor] = self.grad(input, attr_output_fn)
        return found


def _function(attr_output: Any) -> Callable[[Tensor], Tensor]:
    return attr_output if callable(attr_output) else lambda output: attr_output


class Gradient(_Attributor, zennit.attribution.Gradient):  # type: ignore[misc]
    """Zennit's Gradient: with a composite, its relevance.

    Args:
        model: the model, which is not changed.
        composite: one of Zennit's, or None.
        attr_output: the default of a call's.
        create_graph, retain_graph: as autograd's; relevance is detached, so with rules of
            relevance `create_graph` is an error.
    """


class _Averaged(_Attributor):
    """Attributions of many inputs made from one, several at a time."""

    n_iter: int

    def __init__(
        self, *arguments: Any, iterations_per_call: int | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        if iterations_per_call is not None:
            _check_count("iterations_per_call", iterations_per_call, ", or None")
        self.iterations_per_call = iterations_per_call

    def _mean(
        self,
        input: Tensor,
        points: Callable[[int], Tensor],
        attr_output_fn: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The last point's output, and the mean attribution.

        Args:
            input: what the points are made from; of less than two axes it is a sample alone.
            points: from the number of a point to the point; called in order.
            attr_output_fn: of the output of one point.
        """
        _check_count("n_iter", self.n_iter)
        size = 1 if input.ndim < 2 else self.iterations_per_call or self.n_iter
        if size > 1 and self.n_iter > 1:
            check_modes(self.model)  # points that share a batch must not see each other
        total: Any = 0
        for start in range(0, self.n_iter, size):
            group = [points(i) for i in range(start, min(start + size, self.n_iter))]
            output, maps = self.grad(torch.cat(group), _pointwise(attr_output_fn, len(group)))
            total = total + sum(part / self.n_iter for part in maps.chunk(len(group)))
        return output.chunk(len(group))[-1], total


def _pointwise(
    attr_output_fn: Callable[[Tensor], Tensor], count: int
) -> Callable[[Tensor], Tensor]:
    """A function of one point's output, applied to the outputs of several in one batch."""

    def applied(output: Tensor) -> Tensor:
        if output.ndim == 0 or output.shape[0] % count:
            raise InputError(
                f"the output is {list(output.shape)}, of {count} inputs in one batch; expected the "
                "samples along its first axis. Make the attributor with iterations_per_call=1"
            )
        return torch.cat([attr_output_fn(part) for part in output.chunk(count)])

    return applied


class SmoothGrad(_Averaged, zennit.attribution.SmoothGrad):  # type: ignore[misc]
    """Zennit's SmoothGrad, its iterations in one batch; the same random numbers, so the same map.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see `Gradient`.
        noise_level: standard deviation of the noise over the range of a sample's values.
        n_iter: iterations, of which the last is without noise.
        iterations_per_call: how many share a batch; None: all.
    """

    def forward(
        self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `_Attributor.forward`."""
        axes = tuple(range(1, input.ndim))  # none, hence all values, for a sample without a batch
        spread = input.amax(axes, keepdim=True) - input.amin(axes, keepdim=True)

        def point(number: int) -> Tensor:
            if number == self.n_iter - 1:
                return input
            return input + torch.randn_like(input) * (self.noise_level * spread)

        return self._mean(input, point, attr_output_fn)


class IntegratedGradients(_Averaged, zennit.attribution.IntegratedGradients):  # type: ignore[misc]
    """Zennit's integrated gradients (its sum over points 1/n, 2/n, ..., 1), in one batch.

    Args:
        model, composite, attr_output, create_graph, retain_graph: see `Gradient`.
        baseline_fn: from the input to where the path begins; None: zeros.
        n_iter: points on the path.
        iterations_per_call: how many share a batch; None: all.
    """

    def forward(
        self, input: Tensor, attr_output_fn: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `_Attributor.forward`."""
        baseline = self.baseline_fn(input)

        def point(number: int) -> Tensor:
            return baseline + (number + 1) / self.n_iter * (input - baseline)

        output, mean = self._mean(input, point, attr_output_fn)
        return output, mean * (input - baseline)


def _check_count(name: str, value: Any, otherwise: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: {value!r}; expected a whole number >= 1{otherwise}")
