"""A job's explanations for other tools: one .npz file, one Parquet file, PNG heatmaps."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relprop import image
from relprop.atomic import replacing
from relprop.batch.reader import Job, open_job
from relprop.errors import InputError
from relprop.io.files import printable
from relprop.io.tables import pyarrow_parquet

__all__ = ["WRITERS", "export_job"]

CHUNK = 256
ZIP_DATE = (1980, 1, 1, 0, 0, 0)


def export_job(path: Path, kind: str, out: Path, first: int = 0, limit: int | None = None) -> int:
    """Write explanations of a job, a chunk at a time.

    Args:
        path: the job's folder.
        kind: "npz", "parquet" (needs pyarrow) or "png" (needs maps that are images; with several
            targets a file for each, which its class ends).
        out: the file; for "png" the folder.
        first, limit: which explanations; None is all after the first.

    Returns:
        How many there were.

    Raises:
        InputError: nothing to export, or of a shape that the kind cannot hold.
        FileFormatError: the job is damaged.
    """
    job = open_job(path)
    stop = len(job) if limit is None else min(len(job), first + limit)
    if not 0 <= first < stop:
        raise InputError(f"{printable(path)}: holds {len(job)} explanations, none from {first}")
    if kind not in WRITERS:
        raise InputError(f"export: {kind!r}; expected {', '.join(WRITERS)}")
    if kind != "png" and out.suffix != f".{kind}":
        raise InputError(f"--out {printable(out)}: expected a name that ends in .{kind}")
    WRITERS[kind](job, out, range(first, stop))
    return stop - first


def _chunks(job: Job, rows: range) -> Iterator[dict[str, Any]]:
    for start in range(rows.start, rows.stop, CHUNK):
        yield job[start : min(start + CHUNK, rows.stop)]


def _npz(job: Job, out: Path, rows: range) -> None:
    """One array a member, streamed: each column is one pass over the job."""
    head = job[rows.start : rows.start + 1]
    with replacing(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in head:
            member = zipfile.ZipInfo(f"{name}.npy", ZIP_DATE)
            with archive.open(member, "w", force_zip64=True) as stream:
                _npy(job, rows, name, stream)


def _npy(job: Job, rows: range, name: str, stream: Any) -> None:
    if name == "name":
        names = [word for chunk in _chunks(job, rows) for word in chunk["name"]]
        np.lib.format.write_array(stream, np.array(names), allow_pickle=False)
        return
    shape: tuple[int, ...] | None = None
    for chunk in _chunks(job, rows):
        array = _uniform(chunk[name], name)
        if shape is None:
            shape = array.shape[1:]
            header = {
                "descr": np.lib.format.dtype_to_descr(array.dtype),
                "fortran_order": False,
                "shape": (len(rows), *shape),
            }
            np.lib.format.write_array_header_2_0(stream, header)
        if array.shape[1:] != shape:
            raise InputError(f"export: {name} of several shapes fits no array; use --to parquet")
        stream.write(np.ascontiguousarray(array).tobytes())


def _uniform(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, Tensor):
        raise InputError(f"export: {name} of several shapes fits no array; use --to parquet")
    return value.numpy()


def _parquet(job: Job, out: Path, rows: range) -> None:
    import contextlib

    parquet = pyarrow_parquet()
    import pyarrow

    with replacing(out) as temporary, contextlib.ExitStack() as stack:
        writer = None
        for chunk in _chunks(job, rows):
            table = pyarrow.table({name: _column(value) for name, value in chunk.items()})
            if "relevance" in chunk:
                shapes = [list(row.shape) for row in chunk["relevance"]]
                table = table.append_column(
                    "shape", pyarrow.array(shapes, pyarrow.list_(pyarrow.int32()))
                )
            if writer is None:
                writer = stack.enter_context(
                    parquet.ParquetWriter(temporary, table.schema, compression="zstd")
                )
            writer.write_table(table, row_group_size=64)


def _column(value: Any) -> Any:
    """A column of numbers, of words, or of flat lists of numbers."""
    import pyarrow

    if isinstance(value, Tensor) and value.ndim == 1:
        return pyarrow.array(value.numpy())
    if isinstance(value[0], str):
        return pyarrow.array(value)
    return pyarrow.array([row.reshape(-1).numpy() for row in value])


def _png(job: Job, out: Path, rows: range) -> None:
    many = str(job.manifest.identity["target"]).startswith("top ")
    for chunk in _chunks(job, rows):
        if "relevance" not in chunk or "position" in chunk:
            raise InputError("export: the job keeps no maps to draw")
        for row, name in enumerate(chunk["name"]):
            maps = chunk["relevance"][row].float()
            # the place keeps names apart; no name can lead out of the folder
            stem = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[-80:]
            stem = f"{int(chunk['index'][row]):09d}-{stem}"
            if not many:
                image.save_png(out / f"{stem}.png", _drawn(maps))
                continue
            for target, own in zip(chunk["target"][row].tolist(), maps):
                image.save_png(out / f"{stem}-{target}.png", _drawn(own))


def _drawn(relevance: Tensor) -> Any:
    """A heatmap of one sample `[C, H, W]` or `[H, W]`, channels summed."""
    if relevance.ndim not in (2, 3) or not torch.isfinite(relevance).all():
        raise InputError(
            f"export: relevance of shape {list(relevance.shape)}; expected images to draw"
        )
    return image.heatmap(relevance.reshape(1, -1, *relevance.shape[-2:]).numpy())[0]


WRITERS = {"npz": _npz, "parquet": _parquet, "png": _png}
"""What `--to` may be, and what writes it."""
