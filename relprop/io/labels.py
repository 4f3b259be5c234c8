"""Labels of the command line's inputs: by file name, by folder, or listed in order."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relprop.data import read_idx
from relprop.errors import FileFormatError, InputError
from relprop.io.files import open_npy, printable, require_file

__all__ = ["folder_labels", "listed_labels", "named_labels", "text_lines"]

MAX_TEXT_BYTES = 256 * 1024**2


def folder_labels(names: Sequence[str]) -> list[int]:
    """Number the sub-folders of images `folder/file` in alphabetical order."""
    folders = [name.rpartition("/")[0] for name in names]
    if "" in folders:
        stray = printable(names[folders.index("")])
        raise InputError(f"--labels folders: {stray} lies in no sub-folder")
    numbers = {folder: index for index, folder in enumerate(sorted(set(folders)))}
    return [numbers[folder] for folder in folders]


def named_labels(path: Path, names: Sequence[str]) -> list[int | None]:
    """Labels from lines `file name,label` of a CSV file; None for a name that it does not list."""
    labels: dict[str, int] = {}
    for number, row in enumerate(csv.reader(text_lines(path)), start=1):
        if not row:
            continue
        try:
            labels[row[0].strip()] = int(row[1])
        except (IndexError, ValueError):
            if number == 1:
                continue  # a header
            raise InputError(
                f"{printable(path)}: line {number} is {printable(','.join(row), 80)!r}; "
                "expected a file name, a comma, a whole number"
            ) from None
    if not any(name in labels for name in names):
        raise InputError(
            f"{printable(path)}: lists none of the {len(names)} images; the first is "
            f"{printable(names[0])!r}, by its path inside the folder"
        )
    return [labels.get(name) for name in names]


def listed_labels(path: Path, count: int) -> list[int]:
    """`count` labels in order, from a .npy file, a text file (one a line) or an IDX file."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        array = np.asarray(open_npy(path))
    elif suffix in (".txt", ".csv"):
        try:
            array = np.array([int(line) for line in text_lines(path) if line.strip()])
        except ValueError as error:
            raise InputError(
                f"{printable(path)}: expected one whole number a line ({printable(error)})"
            ) from None
    else:
        require_file(path)
        array = read_idx(path).numpy()
    if array.shape != (count,) or array.dtype.kind not in "iu":
        raise InputError(
            f"{printable(path)}: {array.dtype} labels of shape {list(array.shape)}; "
            f"expected {count} whole numbers, one for each input"
        )
    return [int(label) for label in array]


def text_lines(path: Path) -> list[str]:
    """The lines of a text file of a sane size.  Raises: FileFormatError."""
    if require_file(path) > MAX_TEXT_BYTES:
        raise FileFormatError(f"{printable(path)}: too large for a list of words")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{printable(path)}: not a text file ({printable(error)})") from None
