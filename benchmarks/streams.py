"""Streams: a data set from the disk to written relevance, by a job and by loops in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import GRADIENT, Cell, Variant, Workload
from benchmarks.comparison import gate
from benchmarks.needed import work
from benchmarks.peers import Explain, gradient, ours, zennit
from benchmarks.subjects import Subject
from relprop import data, models

__all__ = ["cells"]

MODEL, METHOD = "fashion_mnist_cnn", "epsilon_plus"
BATCH = 256


def cells(device: str = "cpu", count: int = 4096) -> Iterator[Cell]:
    """A shipped network over an array of images on the disk."""
    for dtype in ("float32", "float16"):
        yield Cell(
            f"stream/{MODEL}/{METHOD}/{count}/{dtype}",
            "stream",
            {"workload": MODEL, "method": METHOD, "batch": BATCH,
             "size": f"{count} images, maps in {dtype}"},
            partial(_stream, device, count, dtype),
            frozenset({"full", "window"} if dtype == "float32" else {"full"}),
            rounds=5,
            limit=20.0,
        )  # fmt: skip


def _stream(device: str, count: int, dtype: str) -> Workload:
    from benchmarks.jobs import fresh_job  # late: older versions have no jobs
    from relprop.batch import JobSpec
    from relprop.batch.preparing import prepare
    from relprop.batch.status import stages

    folder = tempfile.TemporaryDirectory(prefix="relprop-stream-")
    path = Path(folder.name) / "images.npy"
    images = _images(count)
    np.save(path, images.numpy())
    model: Any = models.load(MODEL).eval().requires_grad_(False).to(device)
    with torch.no_grad():
        target = torch.cat([model(part.to(device)).argmax(1) for part in images.split(BATCH)])
    subject = Subject(model, [(images[:BATCH].to(device), target[:BATCH])])
    passes = gate(subject, METHOD, device)
    note = {"note": ""}
    spec = JobSpec(
        model=MODEL, data=str(path), job="", method=METHOD, dtype=dtype, device=device,
        batch_size=BATCH, threads=torch.get_num_threads(), readers=0,
    )  # fmt: skip
    prepared = prepare(spec)

    def whole_job() -> Any:
        with fresh_job(prepared, spec, Path(folder.name)) as job:
            tally = job.run(range(job.manifest.count))
        note["note"] = stages(tally.busy, tally.seconds)
        return folder  # which lives as long as this variant

    loops: dict[str, Explain | None] = {
        GRADIENT: gradient(model),
        "relprop frozen": ours(model, METHOD, frozen=True),
        "zennit": zennit(model, METHOD),
    }
    variants = [
        Variant(
            library,
            partial(_loop, explain, images, target, device),
            partial(explain, *subject.sample),
            gate(subject, GRADIENT, device) if library == GRADIENT else passes,
            count,
            measured={"note": "in memory, nothing written"},
        )
        for library, explain in loops.items()
        if explain is not None
    ]
    answer = partial(_answer, prepared, spec, Path(folder.name))
    # stored in float16 the maps are no nearer than its rounding
    precision = "highest" if dtype == "float32" else "medium"
    variants.append(Variant("relprop job", whole_job, answer, passes, count, precision, note))
    return Workload(variants, partial(work, subject, METHOD), BATCH)


def _images(count: int) -> Tensor:
    """The shipped sample, over and over, each time a little different."""
    sample, _ = data.sample("fashion_mnist")
    generator = torch.Generator().manual_seed(0)
    copies = -(-count // len(sample))
    noise = torch.rand(copies, *sample.shape, generator=generator) / 16
    return (sample + noise).flatten(0, 1)[:count].clamp(-1, 1)


def _loop(explain: Explain, images: Tensor, target: Tensor, device: str) -> None:
    for x, t in zip(images.split(BATCH), target.split(BATCH), strict=True):
        explain(x.to(device), t)


def _answer(prepared: Any, spec: Any, folder: Path) -> Tensor:
    """Relevance of the first image, read from a job's files."""
    from benchmarks.jobs import fresh_job
    from relprop.batch import open_job

    with fresh_job(prepared, spec, folder, samples=1) as job:
        job.run([0])
        found: Tensor = open_job(job.folder)[0]["relevance"]
        return found.unsqueeze(0).clone()
