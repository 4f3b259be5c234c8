"""What the command line explains: named inputs, read one at a time by position.

A source is opened once (headers, file lists); an input that cannot be read is handed on as
`Failed`, and the rest goes on.  `relprop.io.inputs.open_source` opens what the user named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from relprop.errors import FileFormatError, InputError
from relprop.io.files import MAX_BYTES, MAX_PIXELS, printable
from relprop.io.preprocess import Preprocess

__all__ = ["Failed", "Item", "Labelled", "Numbered", "Source", "SourceOptions"]

AS_IT_IS = Preprocess()


@dataclass(frozen=True)
class Item:
    """One input, without a batch axis."""

    name: str
    value: Tensor
    label: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Labelled:
    """What a source read that finds more than an input: its label, a remark on what was read."""

    value: Any
    label: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Failed:
    """An input that could not be read or explained, and why, in one sentence."""

    name: str
    reason: str


@dataclass(frozen=True)
class SourceOptions:
    """How data is read.

    Attributes:
        preprocess: size and normalisation of images.
        labels: a file of labels, or "folders": the sub-folder that an image lies in.
        array: which array of a .npz or safetensors file, or column of a table, holds the inputs;
            None looks for the usual names.
        max_pixels, max_bytes: caps checked on headers, before anything is read.
        trust: whether the data's own code may run.
    """

    preprocess: Preprocess = AS_IT_IS
    labels: str | None = None
    array: str | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    trust: bool = False


class Numbered(Sequence[str]):
    """The names `stem-00000`, `stem-00001`, … made when asked for."""

    def __init__(self, stem: str, count: int) -> None:
        self.stem, self.size = stem, count

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return f"{self.stem}-{index % self.size:05d}"


@dataclass(frozen=True)
class Source:
    """Named inputs, read one at a time by position.

    Attributes:
        title: for messages.
        names: one an input.
        read: the input at a position, perhaps with its label; a `RelpropError` that it raises is
            that input's failure.
        labels: one an input, or None.
        read_slice: inputs `[start, stop)` together, `[stop - start, ...]`, where all lie in memory.
        passed: what a folder holds beside its images, which are all that is explained.
    """

    title: str
    names: Sequence[str]
    read: Callable[[int], Any]
    labels: Sequence[int | None] | None = None
    read_slice: Callable[[int, int], Tensor] | None = None
    passed: Sequence[str] = ()

    def item(self, index: int) -> Item | Failed:
        """One input, or why it cannot be read."""
        name = self.names[index]
        try:
            value = self.read(index)
        except (FileFormatError, InputError) as error:
            return Failed(name, printable(error))
        found = value if isinstance(value, Labelled) else Labelled(value)
        label = found.label
        if label is None and self.labels is not None:
            label = self.labels[index]
        return Item(name, found.value, label, found.note)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Item | Failed]:
        return (self.item(index) for index in range(len(self)))
