"""Analyzers: which neuron is explained, by which method, at which points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from relprop.capture.call import Call, neutral_modes, unwrap
from relprop.errors import InputError
from relprop.explainer import Explainer
from relprop.graph.nodes import evaluate

__all__ = ["Analyzer", "Gradients", "Propagation", "Sampled"]

MODES = ("max_activation", "index", "all")


@dataclass(frozen=True)
class Propagation:
    """One pass of an Explainer's method.

    Attributes:
        method: any method of `relprop.Explainer`.
        start: "output", "one" or "relu": the signal at the explained neurons.
    """

    method: Any
    start: str = "output"


@dataclass(frozen=True)
class Gradients:
    """Gradients, averaged over several points.

    Attributes:
        times: multiply the average by the input: "" for no, "input", or "difference" from the
            reference.
        postprocess: "abs", "square" or None, of each point's gradient.
        points: how many.
        noise: standard deviation of the noise at the points.
        reference: where a straight path to the input starts; None for no path.
    """

    times: str = ""
    postprocess: str | None = None
    points: int = 1
    noise: float = 0.0
    reference: Any = None


@dataclass(frozen=True)
class Sampled:
    """The input itself, and noise of this standard deviation."""

    stddev: float = 0.0


class Analyzer:
    """An explanation method with iNNvestigate's calling form; made by `create_analyzer`.

    Args:
        name: of the analyzer.
        model: the module, in eval mode.
        work: what it computes.
        neuron_selection_mode: "max_activation" explains the greatest output of each sample,
            "index" the one that is passed, "all" starts from all outputs together.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        work: Propagation | Gradients | Sampled,
        neuron_selection_mode: str = "max_activation",
    ) -> None:
        if neuron_selection_mode not in MODES:
            raise InputError(
                f"neuron_selection_mode: {neuron_selection_mode!r}; expected one of "
                + ", ".join(map(repr, MODES))
            )
        self.name, self.model, self.work = name, unwrap(model), work
        self.neuron_selection_mode = neuron_selection_mode
        method, start = "gradient", "one"
        if isinstance(work, Propagation):
            method, start = work.method, work.start
        self.explainer = Explainer(self.model, method, start=start)

    def analyze(self, X: Any, neuron_selection: Any = None) -> Any:
        """The analysis of a batch.

        Args:
            X: an array or tensor `[batch, ...]`, or a list of them for a model with several inputs,
                channels where the model has them.
            neuron_selection: in the mode "index" an index for all samples, or one a sample, into
                the output without its batch axis, flattened.

        Returns:
            Shaped like `X`: an array for an array, a tensor for a tensor, a list for a list.

        Raises:
            InputError: `neuron_selection` is missing, out of range, or given in another mode.
            relprop.RelpropError: see `relprop.Explainer`.
        """
        several = isinstance(X, (list, tuple))
        given = list(X) if several else [X]
        inputs = tuple(self._tensor(x) for x in given)
        self._check_selection(neuron_selection)
        if isinstance(self.work, Sampled):
            stddev = self.work.stddev
            found = [x + stddev * torch.randn_like(x) if stddev else x.clone() for x in inputs]
        else:
            target = self._target(inputs, neuron_selection)
            found = self._explained(inputs, target)
        shaped = [
            r if isinstance(x, Tensor) else r.cpu().numpy()
            for r, x in zip(found, given, strict=True)
        ]
        return shaped if several else shaped[0]

    def _tensor(self, x: Any) -> Tensor:
        like = next((p for p in self.model.parameters() if p.is_floating_point()), torch.empty(0))
        tensor = torch.as_tensor(x).detach()
        kind = like.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.to(like.device, kind)

    def _check_selection(self, selection: Any) -> None:
        if (selection is None) == (self.neuron_selection_mode == "index"):
            missing = selection is None
            raise InputError(
                f"neuron_selection: {'missing' if missing else repr(selection)} in "
                f"neuron_selection_mode {self.neuron_selection_mode!r}; expected "
                + ("an index, or one a sample" if missing else "it only in the mode 'index'")
            )

    def _target(self, inputs: tuple[Tensor, ...], selection: Any) -> Any:
        """A target of the explainer's; in the mode "all" the starting relevance itself."""
        call = Call.of(inputs, None, 0)
        if self.neuron_selection_mode == "all":
            output = self._output(call)
            match self.explainer.start:
                case "one":
                    return torch.ones_like(output)
                case "relu":
                    return output.relu()
            return output
        with neutral_modes():
            plan = self.explainer._prepare(call).plan
        sizes = tuple((plan.graph.nodes[plan.output].shape or ())[1:])
        if not sizes:
            return None
        if self.neuron_selection_mode == "max_activation":
            flat = self._output(call).flatten(1).argmax(1).cpu().numpy()
        else:
            flat = np.asarray(selection).reshape(-1)
            flat = np.repeat(flat, call.batch) if flat.size == 1 else flat
        known = len(flat) == call.batch and (flat.dtype.kind in "iu" or not len(flat))
        if not known or not ((flat >= 0) & (flat < np.prod(sizes))).all():
            raise InputError(
                f"neuron_selection: {selection!r}; expected an index from 0 to "
                f"{int(np.prod(sizes)) - 1}, or one for each of the {call.batch} samples"
            )
        axes = np.unravel_index(flat, sizes)
        return [tuple(int(i) for i in position) for position in zip(*axes, strict=True)]

    def _output(self, call: Call) -> Tensor:
        """The model's output, from the captured graph."""
        with neutral_modes():
            graph, plan, *_ = self.explainer._prepare(call)
            values = dict(zip(graph.inputs, call.leaves, strict=True))
            output: Tensor = evaluate(graph, self.model, values)[plan.output]
            return output

    def _explained(self, inputs: tuple[Tensor, ...], target: Any) -> list[Tensor]:
        options = {"start": target} if isinstance(target, Tensor) else {"target": target}

        def once(points: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found = self.explainer(*points, **options)
            return found if isinstance(found, tuple) else (found,)

        if isinstance(self.work, Gradients):
            return _averaged(self.work, inputs, once)
        return list(once(inputs))


def _averaged(
    work: Gradients,
    inputs: tuple[Tensor, ...],
    gradient: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
) -> list[Tensor]:
    total = [torch.zeros_like(x) for x in inputs]
    for points in _points(work, inputs):
        for sum_, part in zip(total, gradient(points), strict=True):
            if work.postprocess == "abs":
                part = part.abs()
            elif work.postprocess == "square":
                part = part.square()
            sum_ += part / work.points
    if work.times == "input":
        return [x * r for x, r in zip(inputs, total, strict=True)]
    if work.times == "difference":
        starts = _references(work, inputs)
        return [(x - x0) * r for x, x0, r in zip(inputs, starts, total, strict=True)]
    return total


def _points(work: Gradients, inputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Where gradients are taken; a path's points are k / n of the way, k = 0, ..., n - 1."""
    for k in range(work.points):
        if work.reference is not None:
            starts = _references(work, inputs)
            part = k / work.points
            yield tuple(x0 + part * (x - x0) for x, x0 in zip(inputs, starts, strict=True))
        elif work.noise:
            yield tuple(x + work.noise * torch.randn_like(x) for x in inputs)
        else:
            yield inputs


def _references(work: Gradients, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    given = work.reference if isinstance(work.reference, (list, tuple)) else [work.reference]
    given = list(given) * (len(inputs) if len(given) == 1 else 1)
    try:
        return [torch.as_tensor(x0).to(x).expand_as(x) for x, x0 in zip(inputs, given, strict=True)]
    except (RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise InputError(
            f"reference_inputs: {error}; expected a number, an array that broadcasts to the input, "
            f"{shapes}, or one for each input"
        ) from error
