"""Opening what the user names: a data set, a folder of images, an array, a table, a URL."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from relprop import data
from relprop.errors import FileFormatError, InputError
from relprop.io.arrays import open_idx, open_numpy, open_safetensors
from relprop.io.files import PICKLED_SUFFIXES, printable, require_file
from relprop.io.labels import folder_labels, named_labels
from relprop.io.pictures import IMAGE_SUFFIXES, is_image, require_pillow
from relprop.io.preprocess import Preprocess
from relprop.io.remote import named_dataset, open_url
from relprop.io.sources import Labelled, Numbered, Source, SourceOptions
from relprop.io.tables import is_arrow_folder, open_arrow_folder, open_parquet

__all__ = ["DATA_HELP", "KINDS", "open_source"]

SPLITS = "dataset_dict.json"
MODULE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

Opener = Callable[[Path, SourceOptions], Source]


@dataclass(frozen=True)
class Kind:
    """One kind of data.

    Attributes:
        title: what it is, for `--help`.
        names: whether a word of the command line names such data.
        open: opens what the word names.
        several: whether the data have several arrays or columns, of which `--array` picks one.
    """

    title: str
    names: Callable[[str], bool]
    open: Callable[[str, SourceOptions], Source]
    several: bool = False


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
    if options.array is not None and not any(k.several and k.names(spec) for k in KINDS):
        raise InputError(
            f"{printable(spec)}: there is nothing for --array to pick from: only "
            f"{', '.join(k.title for k in KINDS if k.several)} name their arrays; drop it"
        )
    if not spec:
        raise InputError("data '': expected a data set's name, a folder, a file or a URL")
    return next(kind for kind in KINDS if kind.names(spec)).open(spec, options)


def _file(
    title: str,
    told: Collection[str] | Callable[[Path], bool],
    opener: Opener,
    several: bool = False,
) -> Kind:
    """A kind of files, told by their suffix or otherwise."""

    def names(spec: str) -> bool:
        return told(Path(spec)) if callable(told) else Path(spec).suffix.lower() in told

    def opened(spec: str, options: SourceOptions) -> Source:
        path = Path(spec)
        if not os.path.lexists(path):
            known = ", ".join(data.names())
            raise FileFormatError(
                f"{printable(spec)}: no such file or folder, nor a data set; data sets are {known} "
                "(add :sample for the images that come with relprop)"
            )
        require_file(path)
        if path.suffix.lower() in PICKLED_SUFFIXES:
            raise FileFormatError(
                f"{printable(path)}: pickled files run code when they are read, so they are not; "
                "save the inputs with numpy.save or numpy.savez"
            )
        return opener(path, options)

    return Kind(title, names, opened, several)


def _folder_kind(title: str, names: Callable[[Path], bool], opener: Opener, several: bool) -> Kind:
    return Kind(
        title,
        lambda spec: Path(spec).is_dir() and names(Path(spec)),
        lambda spec, options: opener(Path(spec), options),
        several,
    )


def _data_set(spec: str, options: SourceOptions) -> Source:
    name, _, split = spec.partition(":")
    split = split or "test"
    if options.labels is not None or options.preprocess != Preprocess():
        raise InputError(
            f"{name}: a data set brings its own labels and normalisation; drop --labels, --mean, "
            "--std, --resize, --crop and --background"
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
    if (folder / SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/state.json"))
        raise InputError(
            f"{printable(folder)}: a data set of several splits; name one: "
            f"{printable(', '.join(str(folder / split) for split in splits))}"
        )
    paths, passed = [], []

    def unreadable(error: OSError) -> None:
        passed.append(f"{Path(error.filename).relative_to(folder)} ({error.strerror})")

    for parent, folders, files in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        links = [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
        passed += [f"{link.relative_to(folder)} (a link to a folder)" for link in links]
        for path in (Path(parent, file) for file in sorted(files) if not file.startswith(".")):
            if is_image(path):
                paths.append(path)
            else:
                passed.append(str(path.relative_to(folder)))
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise FileFormatError(f"{printable(folder)}: no image files in this folder ({kinds})")
    return replace(_images(paths, folder, options, printable(folder)), passed=passed)


def _image(path: Path, options: SourceOptions) -> Source:
    return _images([path], path.parent, options, printable(path))


def _images(paths: list[Path], root: Path, options: SourceOptions, title: str) -> Source:
    require_pillow()
    names = [path.relative_to(root).as_posix() for path in paths]
    labels: Sequence[int | None] | None = None
    if options.labels == "folders":
        labels = folder_labels(names)
    elif options.labels is not None:
        labels = named_labels(Path(options.labels), names)

    def read(index: int) -> Labelled:
        value, note = options.preprocess.read(paths[index], options.max_pixels)
        return Labelled(value, note=note)

    return Source(title, [printable(name) for name in names], read, labels)


KINDS = (
    Kind(
        f"{', '.join(data.names())}, each also with :test, :train, :sample (shipped with relprop)",
        lambda spec: spec.partition(":")[0] in data.names(),
        _data_set,
    ),
    Kind(
        "a URL that fsspec opens",
        lambda spec: "://" in spec,
        lambda spec, options: open_url(spec, options, open_source),
    ),
    _folder_kind(
        "a Hugging Face data set on disk, with a column of images or lists",
        is_arrow_folder,
        open_arrow_folder,
        several=True,
    ),
    _folder_kind("a folder of images", lambda folder: True, _folder, several=False),
    Kind(
        "package.module:name, a torch Dataset (runs code: needs --trust)",
        lambda spec: bool(MODULE.fullmatch(spec)) and not os.path.lexists(spec),
        named_dataset,
    ),
    _file("a .npy file, [N, ...]", (".npy",), open_numpy),
    _file("a .npz file", (".npz",), open_numpy, several=True),
    _file("a .safetensors file", (".safetensors",), open_safetensors, several=True),
    _file("a .parquet file", (".parquet",), open_parquet, several=True),
    _file("an image", is_image, _image),
    _file("an IDX file", lambda path: True, open_idx),
)
"""Every kind of data; the first that a word names opens it."""

DATA_HELP = textwrap.fill("; ".join(kind.title for kind in KINDS), 96)
