"""Opening what the user names: a data set, a folder of images, an array, a table, a URL."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from relprop import data
from relprop.cli.arrays import open_idx, open_numpy, open_safetensors
from relprop.cli.files import PICKLED_SUFFIXES, printable, require_file
from relprop.cli.labels import folder_labels, named_labels
from relprop.cli.preprocess import Preprocess
from relprop.cli.sources import IMAGE_SUFFIXES, Numbered, Source, SourceOptions
from relprop.errors import FileFormatError, InputError, RelpropError

__all__ = ["open_source"]

NAMED_SUFFIXES = (".npz", ".safetensors", ".parquet")
"""Files of several arrays or columns, of which `--array` picks one."""

MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def open_source(spec: str, options: SourceOptions) -> Source:
    """The source that a word of the command line names.

    Args:
        spec: `NAME` or `NAME:test|train|sample` of a data set, else a folder or a file (a path
            with a separator is never a name: `./mnist`).
        options: how to read it.

    Raises:
        FileFormatError: nothing there, of another kind, damaged, or larger than the caps.
        InputError: options that do not fit.
    """
    if options.array is not None and not _names_arrays(spec):
        raise InputError(
            f"{printable(spec)}: there is nothing for --array to pick from: only "
            f"{', '.join(NAMED_SUFFIXES)} and folders of tables name their arrays; drop it"
        )
    name, _, split = spec.partition(":")
    if name in data.names():
        return _data_set(name, split or "test", options)
    if "://" in spec:
        from relprop.batch.sources import open_url

        return open_url(spec, options, open_source)
    if not spec:
        raise InputError("data '': expected a data set's name, a folder, a file or a URL")
    path = Path(spec)
    if path.is_dir():
        return _folder(path, options)
    if MODULE.fullmatch(spec) and not os.path.lexists(path):
        from relprop.batch.sources import named_dataset

        return named_dataset(spec, options)
    if not os.path.lexists(path):
        known = ", ".join(data.names())
        raise FileFormatError(
            f"{printable(spec)}: no such file or folder, nor a data set; data sets are {known} "
            "(add :sample for the images that come with relprop)"
        )
    require_file(path)
    suffix = path.suffix.lower()
    if suffix in PICKLED_SUFFIXES:
        raise FileFormatError(
            f"{printable(path)}: pickled files run code when they are read, so they are not; "
            "save the inputs with numpy.save or numpy.savez"
        )
    if suffix in (".npy", ".npz"):
        return open_numpy(path, options)
    if suffix == ".safetensors":
        return open_safetensors(path, options)
    if suffix == ".parquet":
        from relprop.batch.tables import open_parquet

        return open_parquet(path, options)
    if suffix in IMAGE_SUFFIXES:
        return _images([path], path.parent, options, printable(path))
    return open_idx(path, options)


def _names_arrays(spec: str) -> bool:
    """Whether the data have several arrays or columns, each with a name."""
    from relprop.batch.tables import is_arrow_folder

    path = Path(spec)
    return path.suffix.lower() in NAMED_SUFFIXES or (path.is_dir() and is_arrow_folder(path))


def _data_set(name: str, split: str, options: SourceOptions) -> Source:
    if options.labels is not None or options.preprocess != Preprocess():
        raise InputError(
            f"{name}: a data set brings its own labels and normalisation; drop --labels, --mean, "
            "--std, --resize and --crop"
        )
    if split not in ("sample", "test", "train"):
        raise InputError(
            f"{name}:{printable(split)}: expected {name}:test, {name}:train, or, of what is "
            f"shipped, {name}:sample"
        )
    images, labels = data.sample(name) if split == "sample" else data.load(name, split)
    names = Numbered(f"{name}-{split}", len(images))
    each, together = images.__getitem__, lambda start, stop: images[start:stop]
    return Source(f"{name}:{split}", names, each, labels.tolist(), together)


def _folder(folder: Path, options: SourceOptions) -> Source:
    from relprop.batch.tables import is_arrow_folder, open_arrow_folder

    if is_arrow_folder(folder):
        return open_arrow_folder(folder, options)
    paths = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        paths += [
            Path(parent, file)
            for file in sorted(files)
            if Path(file).suffix.lower() in IMAGE_SUFFIXES and not file.startswith(".")
        ]
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise FileFormatError(f"{printable(folder)}: no image files in this folder ({kinds})")
    return _images(paths, folder, options, printable(folder))


def _images(paths: list[Path], root: Path, options: SourceOptions, title: str) -> Source:
    if importlib.util.find_spec("PIL") is None:
        raise RelpropError("reading image files needs Pillow: pip install 'relprop[figures]'")
    names = [path.relative_to(root).as_posix() for path in paths]
    labels: Sequence[int | None] | None = None
    if options.labels == "folders":
        labels = folder_labels(names)
    elif options.labels is not None:
        labels = named_labels(Path(options.labels), names)

    def read(index: int) -> Tensor:
        return options.preprocess.load(paths[index], options.max_pixels)

    return Source(title, [printable(name) for name in names], read, labels)
