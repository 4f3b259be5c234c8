"""Columns of images or sequences: Parquet files, and Hugging Face data sets on disk.

Needs pyarrow (`pip install 'relprop[parquet]'`); the library `datasets` is not needed, its folders
are Arrow files.  Files that a table only names, and does not hold, are never opened.
"""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from relprop.errors import FileFormatError, InputError, RelpropError
from relprop.io.arrays import INPUT_NAMES, LABEL_NAMES, native
from relprop.io.files import printable, reading, require_file
from relprop.io.pictures import require_pillow
from relprop.io.sources import Labelled, Numbered, Source, SourceOptions

__all__ = ["is_arrow_folder", "open_arrow_folder", "open_parquet", "pyarrow_parquet"]

COLUMN_NAMES = ("image", "img", "pixel_values", "input_ids", "sequence", *INPUT_NAMES)
LABELS = ("label", *LABEL_NAMES)
STATE = "state.json"
MAX_STATE = 2**24
CACHED = 2
ITEM_BYTES = 4


def pyarrow_parquet() -> Any:
    """The module pyarrow.parquet, or an error that says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise RelpropError("Parquet files need pyarrow: pip install 'relprop[parquet]'") from None
    return pyarrow.parquet


def open_parquet(path: Path, options: SourceOptions) -> Source:
    """A column of a Parquet file, a row group in memory at a time.

    Raises:
        FileFormatError: damaged, or a row group unpacks to more than `options.max_bytes`.
        InputError: no column that could hold inputs.
    """
    require_file(path)
    parquet = pyarrow_parquet()
    with reading(path, "Parquet file"):
        file = parquet.ParquetFile(path)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        names = file.schema_arrow.names
        largest = max(map(_unpacked, groups), default=0)
        bytes_columns = _bytes_columns(file.schema)
        starts = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
    if largest > options.max_bytes:
        raise FileFormatError(
            f"{printable(path)}: a row group unpacks to {largest:,} bytes, more than the cap of "
            f"{options.max_bytes:,}"
        )
    column, label = _columns(path, names, file.schema_arrow, options)
    wanted = [column] if label is None else [column, label]
    # One value that many rows repeat stays one: else a small file could unpack to any size.
    repeated = [found for found in bytes_columns if found.partition(".")[0] in wanted]
    lean = parquet.ParquetFile(path, read_dictionary=repeated)

    @lru_cache(CACHED)
    def group(number: int) -> Any:
        with reading(path, "Parquet file"):
            return lean.read_row_group(number, wanted, use_threads=False)

    def cell(name: str, index: int) -> Any:
        number = bisect.bisect_right(starts, index) - 1
        return group(number)[name][index - starts[number]]

    return _source(path, starts[-1], column, label, cell, options)


def _bytes_columns(schema: Any) -> list[str]:
    """The paths of the columns of bytes, nested ones too."""
    columns = [schema.column(i) for i in range(len(schema))]
    return [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]


def _unpacked(group: Any) -> int:
    """At least what a row group takes in memory: its pages, or its numbers where pages repeat."""
    columns = [group.column(i) for i in range(group.num_columns)]
    numbers = sum(c.num_values for c in columns if c.physical_type != "BYTE_ARRAY")
    return max(int(group.total_byte_size), ITEM_BYTES * numbers)


def is_arrow_folder(folder: Path) -> bool:
    """Whether a folder is what `datasets.Dataset.save_to_disk` writes."""
    return (folder / STATE).is_file()


def open_arrow_folder(folder: Path, options: SourceOptions) -> Source:
    """A column of a Hugging Face data set on disk, mapped into memory.

    Raises:
        FileFormatError: damaged, or naming files outside of the folder.
        InputError: no column that could hold inputs.
    """
    pyarrow_parquet()
    import pyarrow

    batches: list[Any] = []
    for path in _arrow_files(folder):
        require_file(path)
        with reading(path, "Arrow file"):
            batches += list(pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))))
    if not batches:
        raise FileFormatError(f"{printable(folder)}: a data set without rows")
    with reading(folder, "data set"):
        table = pyarrow.Table.from_batches(batches)
        table.validate()
    column, label = _columns(folder, table.column_names, table.schema, options)
    return _source(
        folder, len(table), column, label, lambda name, index: table[name][index], options
    )


def _arrow_files(folder: Path) -> list[Path]:
    state = folder / STATE
    if require_file(state) > MAX_STATE:
        raise FileFormatError(f"{printable(state)}: too large")
    try:
        words = json.loads(state.read_text(encoding="utf-8"))
        names = [entry["filename"] for entry in words["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"{printable(state)}: damaged ({printable(error)})") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".arrow"):
            raise FileFormatError(
                f"{printable(state)}: names the file {printable(name, 80)!r}; expected .arrow "
                "files in the folder itself"
            )
    return [folder / name for name in names]


def _columns(path: Path, names: list[str], schema: Any, options: SourceOptions) -> tuple[str, Any]:
    wanted = (options.array,) if options.array else COLUMN_NAMES
    column = next((name for name in wanted if name in names), None)
    if column is None:
        raise InputError(
            f"{printable(path)}: no column named {' or '.join(wanted)}; it holds "
            f"{printable(', '.join(names), 500)}; pick one with --array"
        )
    found = (name for name in LABELS if name in names and name != column)
    whole = (name for name in found if "int" in str(schema.field(name).type))
    return column, next(whole, None)


def _source(
    path: Path,
    count: int,
    column: str,
    label: str | None,
    cell: Callable[[str, int], Any],
    options: SourceOptions,
) -> Source:
    if options.labels is not None:
        raise InputError("--labels: a table brings its own, in a column named label")
    title = Numbered(printable(path.stem), count)

    def read(index: int) -> Labelled:
        with reading(Path(title[index]), "cell"):
            value, note = _value(cell(column, index), title[index], options)
            own = None if label is None else cell(label, index).as_py()
        return Labelled(value, None if own is None else int(own), note)

    return Source(printable(path), title, read)


def _value(scalar: Any, name: str, options: SourceOptions) -> tuple[Tensor, str]:
    """An image of stored bytes, with a note on it, or a number array of nested lists."""
    import pyarrow

    if not scalar.is_valid:
        raise FileFormatError(f"{name}: empty")
    if isinstance(scalar, pyarrow.DictionaryScalar | pyarrow.ExtensionScalar):
        scalar = scalar.value
    kind = scalar.type
    if pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind]:
        scalar = scalar["bytes"]
        if not scalar.is_valid:
            raise FileFormatError(f"{name}: an image in another file, which is not opened")
        if isinstance(scalar, pyarrow.DictionaryScalar):
            scalar = scalar.value
        kind = scalar.type
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        require_pillow()
        return options.preprocess.read(Path(name), options.max_pixels, scalar.as_py())
    return options.preprocess.normalise(native(_nested(scalar, name))), ""


def _nested(scalar: Any, name: str) -> np.ndarray:
    """The array of a cell of lists of lists of numbers."""
    shape: list[int] = []
    values = getattr(scalar, "values", None)
    if values is None:
        raise FileFormatError(f"{name}: a cell of type {scalar.type}; expected an image or lists")
    shape.append(len(values))
    while hasattr(values, "value_lengths") or hasattr(values.type, "list_size"):
        inner = values.flatten()
        if not len(values) or len(inner) % len(values) or _uneven(values):
            raise FileFormatError(f"{name}: lists of several lengths are no array")
        shape.append(len(inner) // len(values))
        values = inner
    if values.null_count or math.prod(shape) != len(values):
        raise FileFormatError(f"{name}: lists with holes are no array")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "fiub":
        raise FileFormatError(f"{name}: lists of {values.type}; expected numbers")
    return np.array(array).reshape(shape)


def _uneven(values: Any) -> bool:
    lengths = getattr(values, "value_lengths", None)
    return lengths is not None and len(set(lengths().to_pylist())) > 1
