"""Explaining: a batch that was read in, rows for a shard out; a bad sample costs only itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from relprop.batch.loading import Inputs, Loaded
from relprop.batch.outputs import (
    SetupError,
    floating_dtype,
    largest_entries,
    predicted_classes,
    predictions,
    reason,
    scores,
    target_column,
)
from relprop.batch.reduce import Reduction
from relprop.batch.rows import Failure, Rows
from relprop.errors import CaptureError, InputError, PlanningError
from relprop.explainer import Explainer
from relprop.explanation import Explanation, layer_tensors

__all__ = ["Explaining"]

FATAL = (SetupError, CaptureError, PlanningError, torch.AcceleratorError)
STORED = {"float32": torch.float32, "float16": torch.float16}
OPTIONS = ("target", "output:", "layers:")


@dataclass
class Explaining:
    """Explains batches.

    Args:
        model: in evaluation mode, on `device`.
        explainer: explains it.
        target: "predicted", "label", a class, or the indices of one entry of the output.
        top: explain that many of the largest outputs instead.
        reduction: what is kept of a map.
        dtype: of what is kept; None keeps whole explanations: relevance, output and hidden layers
            as the explainer gives them.
        maps: whether relevance is kept.
        summaries: whether maps are handed on to be summed up.
        device: where the model is.
    """

    model: nn.Module
    explainer: Explainer
    target: str | int | tuple[int, ...]
    top: int | None
    reduction: Reduction
    dtype: str | None
    maps: bool
    summaries: bool
    device: torch.device

    def __post_init__(self) -> None:
        self._floating = floating_dtype(self.model)

    def probe(self, loaded: Loaded) -> tuple[Inputs, int | None]:
        """Explain one sample, to find what is wrong with the job before it starts.

        Returns:
            What could be explained, as a batch of one, and its label: zeros where the sample, or
            its label, is at fault itself.

        Raises:
            SetupError: not even an input of zeros can be explained.
        """
        places, inputs = loaded.groups[0]
        one = self._placed(inputs.map(lambda value: value[:1]))
        label = loaded.labels[int(places[0])]
        zeros = one.map(torch.zeros_like) if one.lengths is None else one
        wrong: list[InputError] = []
        for trial, own in ((one, label), (zeros, label), (zeros, 0)):
            try:
                self._rows(trial, [own])
            except FATAL:
                raise
            except InputError as error:
                wrong.append(error)
            else:
                return trial, own
        said = str(wrong[0])
        # the library's word for an option comes first, and is the option's name
        raise SetupError(f"--{said}" if said.startswith(OPTIONS) else said) from wrong[0]

    def time(self, inputs: Inputs, labels: list[int | None]) -> None:
        """Explain a batch for the clock alone."""
        self._rows(self._placed(inputs), labels)
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def __call__(self, loaded: Loaded) -> tuple[Rows | None, list[Failure]]:
        """Rows of the samples that could be explained, and the others.

        Raises:
            SetupError, CaptureError, PlanningError: nothing can be explained, whatever the input.
        """
        failures = dict(loaded.failures)
        found: dict[int, dict[str, Any]] = {}
        for places, inputs in loaded.groups:
            labels = [loaded.labels[int(place)] for place in places]
            bad: dict[int, str] = {}
            columns = self._sound(self._placed(inputs), labels, bad)
            for row, place in enumerate(places.tolist()):
                if row in bad and place not in failures:
                    name, index = loaded.names[place], loaded.task.start + place
                    failures[place] = Failure(index, name, bad[row])
            if columns is not None:
                each = enumerate(places.tolist())
                found |= {place: {"row": row, "of": columns} for row, place in each}
        kept = [place for place in sorted(found) if place not in failures]
        order = sorted(failures)
        rows = _gathered(loaded, [found[place] for place in kept], kept) if kept else None
        return rows, [failures[place] for place in order]

    def _placed(self, inputs: Inputs) -> Inputs:
        def place(value: Tensor) -> Tensor:
            dtype = self._floating if value.is_floating_point() else value.dtype
            return value.to(self.device, dtype, non_blocking=True)

        return inputs.map(place)

    def _sound(
        self, inputs: Inputs, labels: list[int | None], bad: dict[int, str]
    ) -> dict[str, Any] | None:
        """Columns of a batch; if it fails, of the batch with stand-ins for the samples at fault."""
        try:
            return self._rows(inputs, labels)
        except FATAL:
            raise
        except (InputError, RuntimeError, MemoryError) as error:
            why = reason(error)
        count = len(labels)
        for row in range(count):
            try:
                one = inputs.map(lambda value, row=row: value[row : row + 1])  # type: ignore[misc]
                self._rows(one, labels[row : row + 1])
            except FATAL:
                raise
            except (InputError, RuntimeError, MemoryError) as error:
                bad[row] = reason(error)
        sound = [row for row in range(count) if row not in bad]
        if sound:
            order = torch.tensor([sound[0] if row in bad else row for row in range(count)])
            replaced = inputs.map(lambda value: value[order.to(value.device)])
            try:
                return self._rows(replaced, [labels[row] for row in order.tolist()])
            except (InputError, RuntimeError, MemoryError) as error:
                why = reason(error)
        bad.update(dict.fromkeys(sound, why))
        return None

    def _rows(self, inputs: Inputs, labels: list[int | None]) -> dict[str, Any]:
        count = len(labels)
        result = self.explainer.explain(
            *inputs.args,
            kwargs=inputs.kwargs,
            target=self._target(labels),
            lengths=None if inputs.trimmed else inputs.lengths,
            report=False,
        )
        relevance, output = result.relevance, result.output
        if not isinstance(relevance, Tensor):
            raise SetupError(
                f"the model has {len(relevance)} explained inputs; a job stores the relevance of "
                "one: pass the others as whole numbers, or close over them"
            )
        target = result.target
        target = target_column(target, count)
        many = target is not None and target.ndim == 2 and self.top is not None
        lead = 2 if many else 1
        maps = self.reduction.maps(relevance, lead)
        reduced = self.reduction.pick(maps, lead)
        values = reduced.relevance
        values = values.to(STORED[self.dtype]) if self.dtype else values
        if self.dtype == "float16" and not torch.isfinite(values).all():
            raise InputError("relevance beyond the range of float16; use --dtype float32")
        lengths = None if inputs.lengths is None else inputs.lengths.tolist()
        more = {} if self.dtype else _more(result)
        return {
            "relevance": self._cut(values.cpu(), lengths, lead) if self.maps else None,
            "position": None if reduced.position is None else reduced.position.cpu(),
            "maps": self._cut(maps.float().cpu(), lengths, lead) if self.summaries else None,
            "target": torch.full((count,), -1) if target is None else target.cpu(),
            "score": self._number(scores(output, target, many)),
            "prediction": predictions(output, count).cpu(),
            "label": torch.tensor([-1 if label is None else label for label in labels]),
            "delta": self._number(result.convergence_delta),
            "lead": lead,
            "more": list(more),
            **more,
        }

    def _number(self, values: Tensor) -> Tensor:
        return (values.float() if self.dtype else values).cpu()

    def _cut(self, values: Tensor, lengths: list[int] | None, lead: int) -> Tensor | list[Tensor]:
        """Padding taken off whole maps of sequences."""
        if lengths is None or self.reduction.steps or self.reduction.top is not None:
            return values
        return [row.narrow(lead - 1, 0, length) for row, length in zip(values, lengths)]

    def _target(self, labels: list[int | None]) -> Any:
        if self.top is not None:
            return largest_entries(self.top)
        if self.target == "predicted":
            return predicted_classes
        if self.target == "label":
            if None in labels:
                raise InputError("no label to explain; see --labels, or use --target predicted")
            return labels
        return self.target


def _more(result: Explanation) -> dict[str, Tensor]:
    """What a whole explanation has beside columns and relevance, as its file names it."""
    layers = {f"layer:{path}": value.cpu() for path, value in layer_tensors(result.layers).items()}
    return {"output": result.output.float().cpu(), **layers}


def _gathered(loaded: Loaded, found: list[dict[str, Any]], kept: list[int]) -> Rows:
    """The rows of all groups of a batch, in the samples' order."""
    whole = found[0]["of"]
    one = all(entry["of"] is whole for entry in found)
    order = torch.tensor([entry["row"] for entry in found])

    def column(name: str) -> Any:
        if whole[name] is None:
            return None
        if one and isinstance(whole[name], Tensor):
            own = whole[name]
            return own if len(order) == len(own) else own[order]
        rows = [entry["of"][name][entry["row"]] for entry in found]
        together = isinstance(rows[0], Tensor) and len({row.shape for row in rows}) == 1
        return torch.stack(rows) if together else rows

    columns = {name: column(name) for name in ("target", "score", "prediction", "label", "delta")}
    if whole["position"] is not None:
        columns["position"] = column("position")
    maps, classes = column("maps"), columns["target"]
    if maps is not None and whole["lead"] == 2:
        maps = (
            [row for rows in maps for row in rows] if isinstance(maps, list) else maps.flatten(0, 1)
        )
        classes = classes.flatten()
    return Rows(
        index=torch.tensor([loaded.task.start + place for place in kept]),
        names=[loaded.names[place] for place in kept],
        relevance=column("relevance"),
        columns=columns,
        maps=maps,
        classes=classes,
        more={name: column(name) for name in whole["more"]},
    )
