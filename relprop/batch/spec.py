"""What a job is asked to do, in plain values: it travels to other processes as it is."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from relprop.errors import InputError
from relprop.io import words
from relprop.io.files import MAX_BYTES, MAX_PIXELS

__all__ = ["ENGINES", "FORMATS", "MAX_SHARD_SIZE", "JobSpec"]

ENGINES = ("local", "torchrun", "ray")
FORMATS = ("safetensors", "parquet")
STORED = ("float32", "float16")
MAX_SHARD_SIZE = 2**24
LARGEST = {
    "shard_size": MAX_SHARD_SIZE,
    "batch_size": MAX_SHARD_SIZE,
    "workers": 2**16,
    "threads": 2**10,
}


def _of(group: str, help: str | None, default: Any = None, **word: Any) -> Any:
    """A field with its option of `relprop explain`: group, help and other arguments of argparse."""
    return field(default=default, metadata={"group": group, "help": help, **word})


@dataclass(frozen=True)
class JobSpec:
    """A job; the attributes are the options of `relprop explain`, each with its help.

    Attributes:
        model, data, job: the words for the model and the data; the folder.
        batch_size, readers, threads: None finds or chooses them; without readers a worker reads in
            a thread beside a GPU, between the batches on a CPU.
        reduce, summary: see `relprop.batch.reduce`, `relprop.batch.summaries`.
    """

    model: str
    data: str
    job: str

    weights: str | None = _of("model", "its weights, a .safetensors file", metavar="FILE")
    trust: bool = _of("model", "let the model's own code run", False)
    device: str = _of("model", "cpu, cuda, cuda:1, …; cuda where it is", "auto")

    resize: tuple[int, ...] | None = _of(
        "data", "shorter side, or both sides", type=words.size, metavar="N|HxW"
    )
    crop: tuple[int, ...] | None = _of(
        "data", "cut from the centre", type=words.size, metavar="N|HxW"
    )
    mean: tuple[float, ...] | None = _of(
        "data", "subtracted, each channel's", type=words.numbers, metavar="M[,M,M]"
    )
    std: tuple[float, ...] | None = _of(
        "data", "divided by, each channel's", type=words.spread, metavar="S[,S,S]"
    )
    channels: int | None = _of("data", "of image files: grey or RGB", type=int, choices=(1, 3))
    background: str = _of(
        "data",
        "what transparent pixels lie on, a name or #rrggbb (%(default)s)",
        "white",
        type=words.colour,
        metavar="COLOUR",
    )
    labels: str | None = _of(
        "data",
        "for images a CSV file of lines name,label, or 'folders': the sub-folder they lie in; "
        "for arrays a .npy, IDX or text file in their order",
        metavar="FILE|folders",
    )
    array: str | None = _of("data", "the array or column to explain", metavar="NAME")
    limit: int | None = _of("data", "explain the first N inputs", type=words.count, metavar="N")
    max_pixels: int = _of(
        "data", "refuse larger images (%(default)s)", MAX_PIXELS, type=words.count, metavar="N"
    )
    max_bytes: int = _of(
        "data",
        "refuse files that unpack to more (%(default)s)",
        MAX_BYTES,
        type=words.count,
        metavar="N",
    )

    method: str = _of("method", "see above (%(default)s)", "epsilon_plus")
    method_option: tuple[tuple[str, Any], ...] = _of(
        "method",
        "an argument of the method, such as low=-1; v,v,v is one value a channel; repeatable",
        (),
        type=words.option,
        action="append",
        metavar="NAME=VALUE",
    )
    target: str | int | tuple[int, ...] = _of(
        "method",
        "the class to explain, 'predicted' (the default) or 'label'; i,j indexes an output of "
        "several dimensions",
        "predicted",
        type=words.target,
        metavar="T",
    )
    top: int | None = _of(
        "method", "explain the K largest outputs of each input", type=words.count, metavar="K"
    )
    output: str | None = _of("method", "which of several outputs, by name or index", metavar="KEY")
    backend: str = _of("method", None, "auto", choices=("auto", "triton", "aten", "reference"))
    precision: str = _of("method", None, "highest", choices=("highest", "high", "medium"))
    batch_size: int | None = _of(
        "method", "(32; a job finds the fastest itself)", type=words.count, metavar="N"
    )
    quiet: bool = _of("output", "no progress bar, no table", False)

    shard_size: int = _of("job", "samples (%(default)s)", 4096, type=words.count, metavar="N")
    format: str = _of("job", "of shards (%(default)s)", "safetensors", choices=FORMATS)
    dtype: str = _of("job", "(%(default)s)", "float32", choices=STORED)
    reduce: str | None = _of(
        "job",
        "store less of a map: pool:14x14 (sums of cells), channel-sum, topk:K, or a chain "
        "such as channel-sum,topk:100",
        metavar="CHAIN",
    )
    summary: tuple[str, ...] = _of(
        "job",
        "sum up while streaming: channel, class, time",
        (),
        type=words.list_of(str, "kinds"),
        metavar="KIND[,KIND]",
    )
    maps: bool = _of("job", "keep summaries, not maps", True)
    engine: str = _of("job", "(%(default)s)", "local", choices=ENGINES)
    workers: int = _of("job", "processes that explain", 1, type=words.count, metavar="N")
    readers: int | None = _of(
        "job", "processes that read, for each; 0: none", type=words.count_or_zero, metavar="N"
    )
    threads: int | None = _of("job", "of one worker on a CPU", type=words.count, metavar="N")
    collate: str | None = _of(
        "job", "makes a list of samples the model's inputs", metavar="MODULE:NAME"
    )
    quick: bool = _of("job", "on a rerun check sizes, not checksums", False)
    accept_versions: bool = _of("job", "go on with what other versions began", False)

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
