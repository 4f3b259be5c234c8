"""Photos as people have them: turned, transparent, odd, damaged; what is read, drawn and said."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import lines_of, png_of, run, summary

from relprop import image
from relprop.batch import JobSpec
from relprop.errors import FileFormatError, InputError
from relprop.io.classes import class_names
from relprop.io.inputs import open_source
from relprop.io.pictures import load_image
from relprop.io.preprocess import Preprocess
from relprop.io.sources import Item, SourceOptions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf" + bytes(80)
NETS = """
import functools
import torch
from torch import nn

@functools.cache
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def pixels():
    return [torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2) * 20]
"""


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("photo_nets.py").write_text(NETS)
    monkeypatch.delitem(sys.modules, "photo_nets", raising=False)
    return tmp_path


@pytest.fixture
def photos(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten ordinary pictures and files that are none, or hostile, and two that are passed over."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    folder = home / "photos"
    folder.mkdir()
    plain = Image.fromarray(pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    turned.save(folder / "a_turned.png", exif=exif)
    Image.new("RGB", (7, 5)).save(folder / "b_black.png")
    clear = plain.copy()
    clear.putalpha(Image.new("L", (7, 5), 0))
    clear.save(folder / "c_clear.png")
    plain.save(folder / "d_png.jpg", "PNG")
    plain.quantize(4).save(folder / "e.gif", save_all=True, append_images=[plain.rotate(180)])
    whole = (folder / "d_png.jpg").read_bytes()
    (folder / "f_cut.png").write_bytes(whole[:-40])
    (folder / "g_empty.png").write_bytes(b"")
    (folder / "h_bomb.png").write_bytes(png_of(60_000, 60_000))
    (folder / "i.heic").write_bytes(HEIC)
    plain.save(folder / "scan", "PNG")
    (folder / "notes.txt").write_text("BM, a list")
    (folder / "link").symlink_to(home)
    return folder


def test_each_is_drawn_as_it_was_or_named(
    photos: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn: list[list[image.Panel]] = []
    save = image.save_sheet
    keep: Callable[..., Path] = lambda strips, path: (drawn.extend(strips), save(strips, path))[1]  # noqa: E731
    monkeypatch.setattr(image, "save_sheet", keep)
    Path("names.json").write_text(json.dumps({str(i): [f"n{i}", f"kind ${i}"] for i in range(4)}))
    words = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--trust")
    words += ("--classes", "names.json", "--out", "out")
    assert run("explain", "photo_nets:net", "photos", *words) == 1
    out, (said, errors) = home / "out", capsys.readouterr()
    assert "no images, passed over: link (a link to a folder), notes.txt" in said
    assert "6 in heatmaps" in said and "sheet.png" in said

    rows, good = summary(out), ["a_turned.png", "b_black.png", "c_clear.png", "d_png.jpg", "e.gif"]
    bad = ["f_cut.png", "g_empty.png", "h_bomb.png", "i.heic"]
    assert [row["name"] for row in rows] == [*good, "scan", *bad]
    reasons = ["not a readable image (", "an empty file", "more than the cap of 50,000,000"]
    reasons.append("pip install pillow-heif")
    for row, reason in zip(rows[6:], reasons, strict=True):
        assert reason in row["error"] and row["name"] in row["error"] and row["error"] in errors
    assert [row["note"] for row in rows[:6]].count("") == 5
    assert rows[4]["note"] == "several frames; the first is read"
    assert "relprop: e.gif: several frames; the first is read" in errors.splitlines()

    white, black = np.full((5, 7, 3), 255, np.uint8), np.zeros((5, 7, 3), np.uint8)
    first = np.asarray(Image.open(photos / "e.gif").convert("RGB"))
    shown = [pixels(), black, white, pixels(), first, pixels()]
    for row, strip, photo in zip(rows, drawn, shown, strict=False):
        np.testing.assert_array_equal(strip[0].picture, photo)
        left = np.asarray(Image.open(out / row["heatmap"]).convert("RGB"))[4:164, 4:228]
        np.testing.assert_array_equal(left, photo.repeat(32, axis=0).repeat(32, axis=1))
        assert strip[0].title == row["name"]
        assert row["class"] == f"kind ${row['target']}"
        assert strip[1].title == f"{row['class']}\n{float(row['score']):.4g}"
    assert len(drawn) == 6 and Image.open(out / "sheet.png").width > 600


def test_pixels_of_every_mode(tmp_path: Path) -> None:
    """Depth, palettes, inks and transparency; the background is white, or what is asked for."""
    rgb, path = pixels(), tmp_path / "x.png"
    grey = rgb[..., 0]
    alpha = np.where(np.arange(35).reshape(5, 7) % 3, 255, 0).astype(np.uint8)
    half = np.full((5, 7), 128, np.uint8)
    flat = Image.fromarray(rgb // 64 * 64).quantize(64)

    def read(picture: Image.Image, suffix: str = ".png", channels: int = 3, **more: str) -> list:
        path = tmp_path / f"x{suffix}"
        picture.save(path, **({"transparency": 0} if more.pop("key", "") else {}))
        value, note = Preprocess(channels=channels, **more).read(path, 100)
        assert not note
        return (value * 255).round().long().movedim(0, 2).squeeze(2).tolist()

    def over(alpha: np.ndarray, below: tuple[int, int, int]) -> list:
        share = alpha[..., None] / 255
        return np.rint(rgb * share + np.array(below) * (1 - share)).astype(int).tolist()

    with_alpha = [Image.fromarray(np.dstack([rgb, a])) for a in (alpha, half)]
    assert read(with_alpha[0]) == over(alpha, (255, 255, 255))
    assert read(with_alpha[0], background="#0080ff") == over(alpha, (0, 128, 255))
    found = np.array(read(with_alpha[1], background="black"))
    assert np.abs(found - over(half, (0, 0, 0))).max() <= 1  # a half is rounded either way
    two = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
    assert read(two, channels=1) == np.where(alpha, grey, 255).tolist()
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert read(deep, channels=1) == read(deep, ".tif", 1) == grey.tolist()
    assert read(flat) == np.asarray(flat.convert("RGB")).tolist()
    assert read(Image.new("P", (2, 1)), key="yes") == [[[255] * 3] * 2]
    inks = Image.fromarray(rgb).convert("CMYK")
    assert read(inks, ".tif") == np.asarray(inks.convert("RGB")).tolist()
    keyed = Image.fromarray(np.array([[0, 65535, 257]], np.uint16))
    assert read(keyed, channels=1, key="yes") == [[255, 255, 1]]
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 2 1 65535\n" + np.array([257, 65535], ">u2").tobytes())
    assert (Preprocess(channels=1).load(path, 100) * 255).round().tolist() == [[[1, 255]]]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_every_orientation(suffix: str, tmp_path: Path) -> None:
    """An image stored in each of the eight ways that EXIF knows is read upright."""
    plain = Image.fromarray(np.kron(pixels(), np.ones((8, 8, 1), np.uint8)))
    way = Image.Transpose
    stored = {1: None, 2: way.FLIP_LEFT_RIGHT, 3: way.ROTATE_180, 4: way.FLIP_TOP_BOTTOM}
    stored |= {5: way.TRANSPOSE, 6: way.ROTATE_90, 7: way.TRANSVERSE, 8: way.ROTATE_270}
    best = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}
    for number, undone in stored.items():
        exif = Image.Exif()
        exif[0x0112] = number
        path = tmp_path / f"{number}{suffix}"
        (plain if undone is None else plain.transpose(undone)).save(
            path, exif=exif, **best.get(suffix, {})
        )
        found = np.asarray(load_image(path)[0]).astype(int)
        slack = 4 if suffix == ".jpg" else 0
        assert found.shape == (40, 56, 3) and np.abs(found - np.asarray(plain)).max() <= slack


def test_damage_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format cut short; words, a camera's raw file, HEIC under another name, broken EXIF."""
    plain, files = Image.fromarray(pixels()), []
    for suffix in (".bmp", ".gif", ".jpg", ".png", ".ppm", ".tif", ".webp"):
        plain.save(tmp_path / f"whole{suffix}")
        files.append((tmp_path / f"cut{suffix}", "not a readable image"))
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        files[-1][0].write_bytes(whole[: len(whole) * 2 // 3])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name, content, said in (
        ("words.png", b"no picture", "damaged, or none of"),
        ("raw.dng", b"II*\0" + bytes(60), ".dng is not read; save it as PNG or JPEG"),
        ("phone.jpg", HEIC, "HEIC needs pillow-heif: pip install pillow-heif"),
        ("none.tiff", b"", "an empty file"),
    ):
        (tmp_path / name).write_bytes(content)
        files.append((tmp_path / name, said))
    for path, said in files:
        with pytest.raises(FileFormatError, match=re.escape(said)) as caught:
            load_image(path)
        assert f"{path.name}: " in str(caught.value)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\xff\xff\0\0\0\0"
    plain.save(tmp_path / "odd.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "odd.png")[0]), pixels())


def test_heic_where_it_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.fromarray(np.kron(pixels(), np.ones((16, 16, 1), np.uint8)))
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    turned.info["exif"] = exif.tobytes()  # the encoder writes what turns it, as phones do
    turned.save(tmp_path / "phone.heic", quality=100)
    found = np.asarray(load_image(tmp_path / "phone.heic")[0]).astype(int)
    assert found.shape == (80, 112, 3)
    assert np.abs(found - np.asarray(plain)).mean() < 8


def test_a_dataset_is_normalised_and_undone(home: Path) -> None:
    """What `--mean` and `--std` do, `undo` undoes, whatever the source; tokens are left alone."""
    np.save("x.npy", (np.arange(12, dtype=np.uint8) * 20).reshape(1, 3, 2, 2))
    np.save("f.npy", (np.arange(12) * 20 / 255).reshape(1, 3, 2, 2))
    scale = Preprocess(mean=MEAN, std=STD)
    options = SourceOptions(scale, trust=True)
    photo = torch.arange(12).double().reshape(3, 2, 2) * 20 / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(3, 1, 1) for v in (MEAN, STD))
    for spec in ("photo_nets:pixels", "x.npy", "f.npy"):
        item = open_source(spec, options).item(0)
        assert isinstance(item, Item)
        torch.testing.assert_close(item.value.double(), (photo - mean) / std, rtol=0, atol=1e-6)
        torch.testing.assert_close(scale.undo(item.value).double(), photo, rtol=0, atol=1e-6)


def test_names_of_classes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {
        "lines.txt": "\ufeffcat\ndog, or hound\n\n",
        "list.json": '["cat", "dog, or hound"]',
        "rows.json": '{"0": ["n1", "cat"], "1": ["n2", "dog, or hound"]}',
        "dict.json": '{"1": "dog, or hound", "0": "cat"}',
        "turned.json": '{"cat": 0, "dog, or hound": 1}',
    }
    for name, text in files.items():
        Path(name).write_text(text)
        assert class_names(name, "my:net") == {0: "cat", 1: "dog, or hound"}
    for name, text in {"a.json": "{", "b.json": '{"x": "y"}', "c.json": "[3]", "d.txt": ""}.items():
        Path(name).write_text(text)
        with pytest.raises(InputError, match=f"--classes {name}: "):
            class_names(name, "my:net")
    with pytest.raises(FileFormatError, match=r"gone\.txt: no such file"):
        class_names("gone.txt", "my:net")
    assert class_names(None, "my:net") == {} and class_names(None, "mnist_cnn")[3] == "Digit 3"
    words = ("explain", "mnist_cnn", "mnist:sample", "--limit", 2, "--classes", "lines.txt")
    assert run(*words, "--out", "out") == 2
    (line,) = lines_of(capsys)
    assert "--classes: 2 names" in line and "for an output of 10" in line
    assert run(*words, "--job", "job") == 2
    assert "drop --classes or --job" in lines_of(capsys)[-1]


def test_a_job_without_a_reader_of_its_photos_is_refused(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("explain", "photo_nets:net", "photos", "--trust", "--job", "job")
    assert run(*words) == 2
    (line,) = lines_of(capsys)
    assert "i.heic" in line and "pip install pillow-heif" in line
    assert not list(Path("job").rglob("*.safetensors"))
    assert JobSpec("a", "b", "c").background == "white"
    assert run(*words, "--background", "whitish") == 2
    assert "'whitish' is not a colour" in capsys.readouterr().err


def test_a_table_of_failures_alone(photos: Path, home: Path) -> None:
    for path in photos.iterdir():
        if path.name not in ("g_empty.png", "i.heic"):
            path.unlink()
    assert run("explain", "photo_nets:net", "photos", "--trust", "--out", "out") == 2
    with (home / "out" / "summary.csv").open() as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["g_empty.png", "i.heic"]
    assert not (home / "out" / "sheet.png").exists()
