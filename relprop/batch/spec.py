"""What a job is asked to do, in plain values: it travels to other processes as it is."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from relprop.batch.options import ENGINES, FORMATS, MAX_SHARD_SIZE, SHARD_SIZE, STORED
from relprop.errors import InputError
from relprop.io.files import MAX_BYTES, MAX_PIXELS

__all__ = ["JobSpec"]

LARGEST = {
    "shard_size": MAX_SHARD_SIZE,
    "batch_size": MAX_SHARD_SIZE,
    "workers": 2**16,
    "threads": 2**10,
}


@dataclass(frozen=True)
class JobSpec:
    """A job; the attributes are the options of `relprop explain`, which explains them.

    Attributes:
        model, weights, trust, device: the model, where it runs, and whether code may run.
        data, labels, array, resize, crop, mean, std, channels, max_pixels, max_bytes, collate,
            limit: the inputs.
        method, method_option, target, top, output, backend, precision: the explanation; `top`
            explains that many of the largest outputs of each input.
        job: the folder.
        shard_size: samples a file.
        batch_size: None finds it.
        format: "safetensors" or "parquet".
        dtype: of stored relevance, "float32" or "float16".
        reduce: what is stored of a map, see `relprop.batch.reduce`; None is all of it.
        summary: what is summed up while streaming, see `relprop.batch.summaries`.
        maps: whether relevance is stored at all.
        engine, workers: "local", "torchrun" or "ray", and how many processes.
        readers: processes that read and decode for one worker; None chooses; 0 reads
            in a thread beside a GPU, between the batches on a CPU.
        threads: of one worker on a CPU; None shares the cores out.
        quick: on a rerun trust the size of a shard that is there, not its checksum.
        accept_versions: go on in a folder that other versions began.
        quiet: print neither progress nor summary.
    """

    model: str
    data: str
    job: str
    weights: str | None = None
    trust: bool = False
    device: str = "auto"
    labels: str | None = None
    array: str | None = None
    resize: tuple[int, ...] | None = None
    crop: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    collate: str | None = None
    limit: int | None = None
    method: str = "epsilon_plus"
    method_option: tuple[tuple[str, Any], ...] = ()
    target: str | int | tuple[int, ...] = "predicted"
    top: int | None = None
    output: str | None = None
    backend: str = "auto"
    precision: str = "highest"
    shard_size: int = SHARD_SIZE
    batch_size: int | None = None
    format: str = "safetensors"
    dtype: str = "float32"
    reduce: str | None = None
    summary: tuple[str, ...] = ()
    maps: bool = True
    engine: str = "local"
    workers: int = 1
    readers: int | None = None
    threads: int | None = None
    quick: bool = False
    accept_versions: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("engine", ENGINES),
            ("format", FORMATS),
            ("dtype", STORED),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name}: {getattr(self, name)!r}; expected {', '.join(allowed)}")
        for name, largest in LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= largest:
                raise InputError(f"{name}: {value}; expected 1 to {largest}")
        if self.top is not None and self.target != "predicted":
            raise InputError("--top explains the largest outputs; drop --target")
        if self.summary and self.format == "parquet":
            raise InputError("--summary is kept in safetensors shards; drop --format parquet")
        if not self.maps and not self.summary:
            raise InputError("--no-maps without --summary would keep nothing of the relevance")

    @classmethod
    def of(cls, arguments: Any) -> JobSpec:
        """The job of parsed arguments."""
        names = [field.name for field in fields(cls) if hasattr(arguments, field.name)]
        values = {name: getattr(arguments, name) for name in names}
        values["method_option"] = tuple(values.get("method_option", ()))
        return cls(**values)
