"""The work of `relprop explain`: batches in, explanations out, a bad input costs only itself."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from relprop.cli.files import printable
from relprop.cli.output import Explained
from relprop.cli.outputs import SetupError, floating_dtype, predicted_classes, reason
from relprop.cli.sources import Failed, Item
from relprop.errors import InputError
from relprop.targets import resolve_target

__all__ = ["Explains", "Job", "batches"]

TargetChoice = str | int | tuple[int, ...]


class Explains(Protocol):
    """The part of `relprop.Explainer` that a job uses."""

    def explain(self, *inputs: Tensor, target: Any = None) -> Any:
        """An explanation with relevance, output, layers and convergence_delta."""


def batches(items: Iterable[Item | Failed], size: int) -> Iterator[list[Item] | Failed]:
    """Group successive inputs of one shape, at most `size`; failures come when they are met."""
    batch: list[Item] = []
    for item in items:
        if isinstance(item, Failed):
            yield item
            continue
        first = batch[0].value if batch else item.value
        fits = first.shape == item.value.shape and first.dtype == item.value.dtype
        if batch and (len(batch) == size or not fits):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


@dataclass
class Job:
    """Explains batches of inputs.

    Args:
        model: in evaluation mode, on `device`.
        explainer: explains it.
        target: "predicted", "label", a class or the position of one entry of the output.
        device: where inputs go.
        output: name or index of the explained tensor where the model returns several.
    """

    model: nn.Module
    explainer: Explains
    target: TargetChoice
    device: torch.device
    output: str | int | None = None

    def __post_init__(self) -> None:
        self._dtype = floating_dtype(self.model)
        self._sound: set[torch.Size] = set()

    def run(self, batch: list[Item]) -> Iterator[Explained | Failed]:
        """Explain a batch; if that fails, each of its inputs alone.

        Raises:
            SetupError, PlanningError, CaptureError: nothing can be explained, whatever the input.
        """
        try:
            done = self._explain(batch)
        except SetupError:
            raise
        except (InputError, RuntimeError, MemoryError) as error:
            if len(batch) > 1:
                gc.collect()
                for item in batch:
                    yield from self.run([item])
            else:
                yield Failed(batch[0].name, reason(error))
            return
        yield from done

    def _explain(self, batch: list[Item]) -> list[Explained]:
        values = torch.stack([item.value for item in batch])
        dtype = self._dtype if values.is_floating_point() else values.dtype
        values = values.to(self.device, dtype)
        targets = self._targets(batch, values)
        result = self._explanation(values, targets)
        output = result.output.detach().cpu()
        relevance = result.relevance.detach().cpu()
        layers = {path: tensor.detach().cpu() for path, tensor in result.layers.items()}
        delta = torch.as_tensor(result.convergence_delta).detach().cpu().double()
        each = targets if isinstance(targets, list) else [targets] * len(batch)
        return [
            Explained(
                item=item,
                relevance=relevance[i],
                layers={path: tensor[i] for path, tensor in layers.items()},
                target=each[i],
                prediction=_prediction(output[i]),
                output=output[i],
                score=float(output[i][() if each[i] is None else each[i]]),
                delta=float(delta[i]),
            )
            for i, item in enumerate(batch)
        ]

    def _explanation(self, values: Tensor, targets: Any) -> Any:
        """Explain; an error that an input of zeros meets too is not the data's fault."""
        shape = values.shape[1:]
        try:
            result = self.explainer.explain(values, target=targets)
        except InputError as error:
            if shape not in self._sound:
                first = None if targets is None else targets[:1]
                try:
                    self.explainer.explain(torch.zeros_like(values[:1]), target=first)
                except InputError:
                    raise SetupError(str(error)) from None
                self._sound.add(shape)
            raise
        self._sound.add(shape)
        return result

    def _forward(self, values: Tensor) -> Any:
        try:
            with torch.no_grad():
                output = self.model(values)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the user's code raises on an input that it dislikes
            raise InputError(
                f"the model refused an input of shape {list(values.shape[1:])} "
                f"({type(error).__name__}: {printable(error, 200)})"
            ) from error
        if self.output is None:
            return output
        try:
            return output[self.output]
        except (KeyError, IndexError, TypeError):
            raise SetupError(
                f"--output {self.output}: not in what the model returns, {_kind(output)}"
            ) from None

    def _targets(self, batch: list[Item], values: Tensor) -> Any:
        """A target for each input, or None where the output has one value."""
        output = self._forward(values)
        if not isinstance(output, Tensor):
            raise SetupError(f"the model returns {_kind(output)}; pick its output with --output")
        if self.target == "label":
            if any(item.label is None for item in batch):
                raise InputError("no label to explain; see --labels, or use --target predicted")
            targets: Any = [item.label for item in batch]
        elif self.target == "predicted":
            classes = predicted_classes(output)
            targets = None if classes is None else classes.tolist()
        else:
            targets = [self.target] * len(batch)
        try:
            resolve_target(targets, output.shape, len(batch))
        except InputError as error:
            # A label concerns its own input; anything else every one.
            failure = InputError if self.target == "label" else SetupError
            raise failure(f"--target {self.target}: {error}") from None
        return targets


def _kind(output: Any) -> str:
    """What a model returns, in words."""
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)}"
    if hasattr(output, "keys"):
        return f"a {type(output).__name__} with {printable(', '.join(map(str, output)))}"
    return f"a {type(output).__name__}"


def _prediction(output: Tensor) -> int | None:
    return int(output.argmax()) if output.ndim == 1 and output.numel() > 1 else None
