"""The result of an explanation, and its file.

A file is one safetensors file: tensors, and JSON in its metadata.  Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from relprop.atomic import replacing, sync_folder
from relprop.conservation import ConservationReport, ConservationRow, StepRecord
from relprop.errors import FileFormatError, InputError

__all__ = ["ConservationReport", "ConservationRow", "Explanation", "StepRecord"]

FORMAT = "relprop.explanation"
VERSION = 1
MAX_BYTES = 4 * 2**30
"""The largest file that `Explanation.load` reads unless told otherwise."""

_LAYER = "layer:"


@dataclass(eq=False, repr=False)
class Explanation:
    """Relevance and what belongs to it.

    Attributes:
        relevance: shaped like the input; a tuple for several inputs.  With a target `[batch, K]`
            the axis of K follows the batch's, here and in `layers`.
        output: the explained output of the model.
        target: the target as it was given.
        layers: relevance at the output of each layer asked for, by module path, later calls of a
            module as "path@1"; a tuple of those that the explained output depends on, in the order
            in which the module returns them, where there are several.
        convergence_delta: what went in at the output less what arrived at the inputs, `[batch]`
            or `[batch, K]`.
        method: the method's name.
        steps: what each step of the run did, from the output to the inputs.
    """

    relevance: Tensor | tuple[Tensor, ...]
    output: Tensor
    target: Any
    layers: dict[str, Tensor | tuple[Tensor, ...]]
    convergence_delta: Tensor
    method: str
    steps: Sequence[StepRecord] = field(default=())

    def conservation(self) -> ConservationReport:
        """Where relevance was absorbed, step by step."""
        return ConservationReport.of(self.steps)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the explanation to a file, wholly or not at all.

        Raises:
            InputError: the target is of a type that no explanation has.
            FileFormatError: the file cannot be written there.
        """
        tensors, words = _pack(self)
        metadata = {"format": FORMAT, "version": str(VERSION), "explanation": json.dumps(words)}
        _write(Path(path), to_bytes(tensors, metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Explanation:
        """Read what `save` wrote; tensors are on the CPU, a target that was an array is a tensor.

        Args:
            path: the file.
            max_bytes: refuse a larger one.

        Raises:
            FileFormatError: the file is missing, damaged, of another kind or larger than that.
        """
        path = Path(path)
        _check_size(path, max_bytes)
        try:
            with safe_open(path, framework="pt") as file:
                return _unpack(_words(path, file.metadata() or {}), _Tensors(file))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise FileFormatError(f"{path}: not a whole safetensors file ({error})") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise FileFormatError(f"{path}: a damaged explanation ({error!r})") from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Explanation):
            return NotImplemented
        mine, theirs = _pack(self), _pack(other)
        same_tensors = mine[0].keys() == theirs[0].keys() and all(
            _same(tensor, theirs[0][name]) for name, tensor in mine[0].items()
        )
        return same_tensors and mine[1] == theirs[1]

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        one = isinstance(self.relevance, Tensor)
        shapes = [list(tensor.shape) for tensor in _tuple(self.relevance)]
        return (
            f"Explanation(method={self.method!r}, relevance={shapes[0] if one else shapes}, "
            f"layers={list(self.layers)}, steps={len(self.steps)})"
        )


def _tuple(relevance: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (relevance,) if isinstance(relevance, Tensor) else tuple(relevance)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _pack(explanation: Explanation) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An explanation as named tensors and JSON."""
    relevance = _tuple(explanation.relevance)
    tensors = {f"relevance:{i}": tensor for i, tensor in enumerate(relevance)}
    layers = layer_tensors(explanation.layers)
    tensors |= {_LAYER + name: tensor for name, tensor in layers.items()}
    tensors["output"] = explanation.output
    tensors["convergence_delta"] = explanation.convergence_delta
    steps = explanation.steps
    if steps:
        tensors["relevance_out"] = torch.stack([record.relevance_out for record in steps])
        tensors["relevance_in"] = torch.stack([record.relevance_in for record in steps])
    words = {
        "method": explanation.method,
        "single": isinstance(explanation.relevance, Tensor),
        "inputs": len(relevance),
        "layers": list(layers),
        "steps": [[r.step, r.operation, r.path, r.rule] for r in steps],
        "target": _pack_target(explanation.target, tensors),
    }
    # A copy each: safetensors refuses tensors that share memory, as two layers may.
    return {name: _own(tensor) for name, tensor in tensors.items()}, words


def layer_tensors(layers: Mapping[str, Tensor | tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Relevance at layers, one tensor a name: those of several outputs as "path[0]", "path[1]"."""
    found: dict[str, Tensor] = {}
    for path, own in layers.items():
        if isinstance(own, Tensor):
            found[path] = own
        else:
            found |= {f"{path}[{i}]": tensor for i, tensor in enumerate(own)}
    return found


def _layers_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """What `layer_tensors` took apart."""
    found: dict[str, Tensor | tuple[Tensor, ...]] = {}
    for name, tensor in tensors.items():
        path, bracket, _ = name.partition("[")
        found[path] = (*found.get(path, ()), tensor) if bracket else tensor
    return found


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _pack_target(target: Any, tensors: dict[str, Tensor]) -> Any:
    """A target as JSON; an array goes to `tensors`."""
    if isinstance(target, (Tensor, np.ndarray)) and target.ndim > 0:
        tensors["target"] = torch.as_tensor(target)
        return "tensor"
    return _target_words(target)


def _target_words(target: Any) -> Any:
    if isinstance(target, (list, tuple)):
        entries = [_target_words(entry) for entry in target]
        return {"tuple": entries} if isinstance(target, tuple) else entries
    array = isinstance(target, (Tensor, np.ndarray))
    value = (
        target.item() if isinstance(target, np.integer) or (array and not target.ndim) else target
    )
    if value is None or type(value) is int:
        return value
    raise InputError(
        f"Explanation.target: {target!r} of type {type(target).__name__} cannot be saved; expected "
        "None, integers, or lists, tuples or tensors of integers"
    )


def _unpack_target(words: Any, tensors: _Tensors) -> Any:
    if words == "tensor":
        return tensors["target"]
    if isinstance(words, list):
        return [_unpack_target(entry, tensors) for entry in words]
    if isinstance(words, dict):
        return tuple(_unpack_target(entry, tensors) for entry in words["tuple"])
    if words is not None and type(words) is not int:
        raise ValueError(f"target {words!r}")
    return words


class _Tensors:
    """The tensors of an open file; each is copied out of the mapped file."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(name)
        return tensor.clone()


def _words(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise FileFormatError(
            f"{path}: a safetensors file, but not of an explanation; expected one that "
            "Explanation.save wrote"
        )
    if metadata.get("version") != str(VERSION):
        raise FileFormatError(
            f"{path}: version {metadata.get('version')!r} of the format; this relprop reads "
            f"version {VERSION}"
        )
    words = json.loads(metadata["explanation"])
    if not isinstance(words, dict):
        raise ValueError("its metadata is not an object")
    return words


def _unpack(words: dict[str, Any], tensors: _Tensors) -> Explanation:
    relevance = tuple(tensors[f"relevance:{i}"] for i in range(words["inputs"]))
    return Explanation(
        relevance=relevance[0] if words["single"] else relevance,
        output=tensors["output"],
        target=_unpack_target(words["target"], tensors),
        layers=_layers_of({name: tensors[_LAYER + name] for name in words["layers"]}),
        convergence_delta=tensors["convergence_delta"],
        method=str(words["method"]),
        steps=_unpack_steps(words["steps"], tensors),
    )


def _unpack_steps(steps: list[list[Any]], tensors: _Tensors) -> tuple[StepRecord, ...]:
    if not steps:
        return ()
    out, into = tensors["relevance_out"], tensors["relevance_in"]
    if out.shape != into.shape or len(out) != len(steps):
        raise ValueError(f"{len(steps)} steps, relevance of {len(out)} and {len(into)}")
    return tuple(
        StepRecord(int(step), str(operation), str(path), str(rule), out[i], into[i])
        for i, (step, operation, path, rule) in enumerate(steps)
    )


def _check_size(path: Path, max_bytes: int) -> None:
    """Refuse a file by its size alone, before any of it is read."""
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise FileFormatError(f"{path}: {what}; expected one that Explanation.save wrote")
    size = path.stat().st_size
    if size > max_bytes:
        raise FileFormatError(
            f"{path}: {size} bytes, more than the {max_bytes} that are read; if you trust it, pass "
            f"max_bytes={size}"
        )


def _write(path: Path, data: bytes) -> None:
    """Write the file in one step, into a folder that is there."""
    try:
        os.scandir(path.parent).close()  # a misspelt folder is told, not made
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        sync_folder(path.parent)
    except OSError as error:
        raise FileFormatError(f"{path}: cannot be written: {error.strerror or error}") from error
