"""From a job's words to what a worker needs: model, data, explainer, manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relprop._version import __version__
from relprop.batch.explaining import Explaining
from relprop.batch.loading import Inputs, Loaded, Loader, Task
from relprop.batch.locks import JobLock
from relprop.batch.manifest import FILE, Manifest, read_manifest, require_same, write_manifest
from relprop.batch.reduce import parse_reduction
from relprop.batch.spec import JobSpec
from relprop.batch.summaries import Summaries
from relprop.batch.tuning import best_batch_size
from relprop.cli.files import printable
from relprop.cli.imports import imported
from relprop.cli.opening import method_options, open_inputs, output_key, source_options
from relprop.cli.sources import Numbered, Source
from relprop.errors import InputError
from relprop.explainer import Explainer

__all__ = ["Prepared", "made_manifest", "prepare"]

TRIED = 100
"""Samples looked at for one that can be read, before a job is refused."""


@dataclass
class Prepared:
    """Everything of a worker but its share of the shards.

    Attributes:
        source: the data set.
        loader, explaining: the stages.
        wanted: the manifest that these words ask for; its batch size is still open (1).
        trial: a batch of one that can be explained, and its label.
    """

    source: Source
    loader: Loader
    explaining: Explaining
    wanted: Manifest
    trial: tuple[Inputs, int | None]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.explaining.device


def prepare(spec: JobSpec, device: str | None = None) -> Prepared:
    """Open model and data, and explain one sample.

    Args:
        spec: the job.
        device: instead of the job's, for one of several workers.

    Raises:
        InputError, FileFormatError, CaptureError, PlanningError: what is wrong with the job.
    """
    reduction = parse_reduction(spec.reduce)
    Summaries(spec.summary)
    words = _Placed(spec, device) if device else spec
    model, source, place = open_inputs(words)
    collate = imported(spec.collate, spec.trust, "--collate") if spec.collate is not None else None
    loader = Loader(source, collate)
    explainer = Explainer(
        model,
        spec.method,
        method_options=method_options(spec.method_option),
        output=output_key(spec.output),
        backend=spec.backend,
        precision=spec.precision,
        frozen=True,
    )
    explaining = Explaining(
        model,
        explainer,
        spec.target,
        spec.top,
        reduction,
        spec.dtype,
        spec.maps,
        bool(spec.summary),
        place,
    )
    if place.type == "cpu":
        torch.set_num_threads(_threads(spec))
    example = _example(loader, spec.target == "label")
    trial = explaining.probe(example)
    identity = _identity(spec, model, source, example, str(explainer.plan))
    samples = min(len(source), spec.limit or len(source))
    wanted = Manifest(identity, _environment(spec, place), samples, spec.shard_size, 1)
    return Prepared(source, loader, explaining, wanted, trial)


def made_manifest(prepared: Prepared, spec: JobSpec, folder: Path, lock: JobLock) -> Manifest:
    """The folder's manifest: the one that is there, if it is of this job, or a new one.

    Raises:
        InputError: the folder holds another job.
        FileFormatError: its manifest is damaged.
    """
    with lock.making():
        if (folder / FILE).exists():
            manifest = read_manifest(folder)
            require_same(manifest, prepared.wanted, folder, spec.accept_versions)
            if spec.batch_size not in (None, manifest.batch_size):
                raise InputError(
                    f"{printable(folder)}: its batches have {manifest.batch_size} samples, not "
                    f"{spec.batch_size}; leave --batch-size out, or give this job its own folder"
                )
        else:
            size = spec.batch_size or _batch_size(prepared)
            wanted = prepared.wanted
            manifest = Manifest(
                wanted.identity, wanted.environment, wanted.samples, wanted.shard_size, size
            )
            write_manifest(folder, manifest)
    if prepared.device.type == "cpu":
        torch.set_num_threads(int(manifest.environment["threads"]))
    return manifest


class _Placed:
    """A job's words with another device."""

    def __init__(self, spec: JobSpec, device: str) -> None:
        self._spec, self.device = spec, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spec, name)


def _threads(spec: JobSpec) -> int:
    return spec.threads or max(1, torch.get_num_threads() // spec.workers)


def _example(loader: Loader, labelled: bool) -> Loaded:
    """The first sample that can be read, and has a label if it must, as a batch of one."""
    source = loader.source
    count = min(TRIED, len(source))
    readable, reason = False, ""
    for index in range(count):
        loaded = loader(Task(0, index, index + 1, True))
        if loaded.groups and (loaded.labels[0] is not None or not labelled):
            return loaded
        readable |= bool(loaded.groups)
        for failure in loaded.failures.values():
            reason = reason or f"{failure.name}: {failure.reason}"
    if readable:
        raise InputError(
            f"{source.title}: none of the first {count} inputs has a label; see --labels, or use "
            "--target predicted"
        )
    raise InputError(f"{source.title}: holds no input that can be read; the first: {reason}")


def _identity(
    spec: JobSpec, model: nn.Module, source: Source, example: Loaded, plan: str
) -> dict[str, Any]:
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


def _environment(spec: JobSpec, device: torch.device) -> dict[str, Any]:
    cuda = device.type == "cuda"
    return {
        "relprop": __version__,
        "torch": str(torch.__version__),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "threads": _threads(spec),
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


def _batch_size(prepared: Prepared) -> int:
    inputs, label = prepared.trial

    def explain(size: int) -> None:
        repeated: Inputs = inputs.map(lambda value: value.repeat(size, *[1] * (value.ndim - 1)))
        prepared.explaining.time(repeated, [label] * size)

    return best_batch_size(explain, min(prepared.wanted.shard_size, prepared.wanted.samples))
