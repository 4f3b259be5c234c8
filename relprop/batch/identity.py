"""What a job is, in words and hashes that its manifest keeps and later runs are held to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relprop._version import __version__
from relprop.batch.loading import Loaded
from relprop.batch.spec import JobSpec
from relprop.io.files import printable
from relprop.io.opening import source_options
from relprop.io.sources import Numbered, Source

__all__ = ["environment_of", "identity_of"]


def identity_of(
    spec: JobSpec, model: nn.Module, source: Source, example: Loaded, plan: str
) -> dict[str, Any]:
    """What may not change in a job's folder.

    Args:
        spec, model, source: the job, opened.
        example: the first sample.
        plan: the explainer's, in words.
    """
    return {
        "model": printable(spec.model),
        "weights": _weights_hash(model),
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
        "method": spec.method,
        "method_options": printable(dict(spec.method_option), 1000),
        "target": printable(spec.target) if spec.top is None else f"top {spec.top}",
        "output": spec.output,
        "backend": spec.backend,
        "precision": spec.precision,
        "data": printable(Path(source.title).name),
        "inputs": _data_hash(source, example),
        "preprocessing": printable(source_options(spec).preprocess, 1000),
        "collate": spec.collate,
        "format": spec.format,
        "dtype": spec.dtype,
        "reduce": spec.reduce,
        "summary": list(spec.summary),
        "maps": spec.maps,
    }


def environment_of(device: torch.device, threads: int) -> dict[str, Any]:
    """What last bits depend on beside the job: versions, the device, threads."""
    cuda = device.type == "cuda"
    return {
        "relprop": __version__,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": threads,
    }


def _weights_hash(model: nn.Module) -> str:
    """A hash of every parameter and buffer: names, types, shapes, values."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def _data_hash(source: Source, example: Loaded) -> str:
    """A hash of the samples' names and of the first sample; the others are not read for it."""
    names = source.names
    numbered = isinstance(names, Numbered)
    words: Any = [names.stem, names.size] if isinstance(names, Numbered) else list(names)
    found = hashlib.sha256(json.dumps([numbered, words]).encode())
    for value in example.groups[0][1].args:
        found.update(f"{value.dtype} {list(value.shape)}".encode())
        found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
