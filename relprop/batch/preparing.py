"""From a job's words to what a worker needs: model, data, explainer, manifest."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from relprop.atomic import remove_leftovers
from relprop.batch.explaining import Explaining
from relprop.batch.identity import environment_of, identity_of
from relprop.batch.loading import Inputs, Loaded, Loader, Task
from relprop.batch.locks import JobLock
from relprop.batch.manifest import FILE, Manifest, read_manifest, require_same, write_manifest
from relprop.batch.reduce import parse_reduction
from relprop.batch.spec import JobSpec
from relprop.batch.summaries import Summaries
from relprop.batch.tuning import best_batch_size
from relprop.errors import InputError
from relprop.explainer import Explainer
from relprop.io.files import printable
from relprop.io.loading import imported
from relprop.io.opening import method_options, open_inputs, output_key
from relprop.io.pictures import is_heif, require_heif
from relprop.io.sources import Numbered, Source

__all__ = [
    "Prepared",
    "join_job",
    "local_device",
    "made_manifest",
    "opened",
    "prepare",
    "readers_of",
]

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
    Summaries(spec.summary)
    threads = _threads(spec)
    loader, explaining = opened(spec, device)
    source, model = loader.source, explaining.model
    if not isinstance(source.names, Numbered):
        require_heif([name for name in source.names if is_heif(name)])
    example = _example(loader, spec.target == "label")
    trial = explaining.probe(example)
    identity = identity_of(spec, model, source, example, str(explaining.explainer.plan))
    samples = min(len(source), spec.limit or len(source))
    environment = environment_of(explaining.device, threads)
    wanted = Manifest(identity, environment, samples, spec.shard_size, 1)
    return Prepared(source, loader, explaining, wanted, trial)


def _threads(spec: JobSpec) -> int:
    """Threads of one worker on a CPU."""
    return spec.threads or max(1, torch.get_num_threads() // spec.workers)


def opened(
    spec: JobSpec, device: str | None = None, layers: Sequence[str] | None = None
) -> tuple[Loader, Explaining]:
    """The data and what explains them; nothing is explained yet.

    Args:
        spec: the job.
        device: instead of the job's, for one of several workers.
        layers: keep whole explanations, with the relevance of these hidden layers; None keeps what
            the job stores.

    Raises:
        InputError, FileFormatError: what is wrong with the job's words.
    """
    reduction = parse_reduction(spec.reduce)
    model, source, place = open_inputs(replace(spec, device=device) if device else spec)
    collate = imported(spec.collate, spec.trust, "--collate") if spec.collate is not None else None
    loader = Loader(source, collate)
    explainer = Explainer(
        model,
        spec.method,
        method_options=method_options(spec.method_option),
        layers=layers or (),
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
        spec.dtype if layers is None else None,
        spec.maps,
        bool(spec.summary),
        place,
    )
    if place.type == "cpu":
        torch.set_num_threads(_threads(spec))
    return loader, explaining


def local_device(spec: JobSpec, worker: int) -> str | None:
    """A GPU of its own for each worker of a machine, unless a device was named."""
    if spec.device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count()}"
    return None


def readers_of(spec: JobSpec, in_memory: bool) -> int:
    """How many processes read for one worker: none for arrays, else the cores' share."""
    if spec.readers is not None:
        return spec.readers
    return 0 if in_memory else max(1, (os.cpu_count() or 1) // spec.workers)


def made_manifest(prepared: Prepared, spec: JobSpec, folder: Path, lock: JobLock) -> Manifest:
    """The folder's manifest: the one that is there, if it is of this job, or a new one.

    Raises:
        InputError: the folder holds another job.
        FileFormatError: its manifest is damaged.
    """
    with lock.making():
        remove_leftovers(folder / FILE)
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
            manifest = replace(prepared.wanted, batch_size=size)
            write_manifest(folder, manifest)
    _fix_threads(prepared, manifest)
    return manifest


def join_job(spec: JobSpec, folder: Path, device: str | None = None) -> tuple[Prepared, Manifest]:
    """What a worker needs of a job whose manifest another process has made.

    Raises:
        InputError, FileFormatError, CaptureError, PlanningError: as `prepare`, or the folder holds
            another job.
    """
    prepared, manifest = prepare(spec, device), read_manifest(folder)
    require_same(manifest, prepared.wanted, folder, spec.accept_versions)
    _fix_threads(prepared, manifest)
    return prepared, manifest


def _fix_threads(prepared: Prepared, manifest: Manifest) -> None:
    """Compute with the threads that the job was begun with: last bits may depend on them."""
    if prepared.device.type == "cpu":
        torch.set_num_threads(int(manifest.environment["threads"]))


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


def _batch_size(prepared: Prepared) -> int:
    inputs, label = prepared.trial

    def explain(size: int) -> None:
        repeated: Inputs = inputs.map(lambda value: value.repeat(size, *[1] * (value.ndim - 1)))
        prepared.explaining.time(repeated, [label] * size)

    return best_batch_size(explain, min(prepared.wanted.shard_size, prepared.wanted.samples))
