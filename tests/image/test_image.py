"""Colours by hand, normalisation, grids, PNG bytes read back by Pillow, the labelled figure."""

import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from relprop import image
from relprop.errors import InputError, RelpropError

GREY, DARK_RED, DARK_BLUE = [230, 230, 230], [128, 0, 0], [0, 0, 128]


def test_colours_at_the_ends_and_in_between():
    relevance = np.array([[-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0]])
    assert image.colours(relevance).tolist() == [
        [
            DARK_BLUE,
            [0, 0, 255],
            [115, 115, 242],
            GREY,
            [242, 115, 115],
            [255, 0, 0],
            [191, 0, 0],
            DARK_RED,
        ]
    ]


def test_colours_are_symmetric():
    relevance = torch.linspace(-1, 1, 501).reshape(3, 167)
    np.testing.assert_array_equal(image.colours(relevance), image.colours(-relevance)[..., ::-1])


def test_colours_darken_with_magnitude():
    luminance = image.colours(np.linspace(0, 1, 65)[None])[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < 0).all()


def test_colours_beyond_one_are_those_of_one():
    assert image.colours(np.array([[-7.0, 7.0]])).tolist() == [[DARK_BLUE, DARK_RED]]


def test_negative_zero_is_grey():
    assert image.colours(np.array([[-0.0]])).tolist() == [[GREY]]


def test_normalise_per_image_and_batch():
    relevance = torch.tensor([[[1.0, -4.0]], [[0.5, 0.25]], [[0.0, 0.0]]])
    assert image.normalise(relevance).tolist() == [[[0.25, -1]], [[1, 0.5]], [[0, 0]]]
    assert image.normalise(relevance, per="batch").tolist() == [
        [[0.25, -1]],
        [[0.125, 0.0625]],
        [[0, 0]],
    ]


def test_normalise_takes_channels_together():
    relevance = np.zeros((1, 2, 1, 1))
    relevance[0, :, 0, 0] = [1, -2]
    assert image.normalise(relevance).ravel().tolist() == [0.5, -1]
    # Without a batch axis the last two are an image's.
    assert image.normalise(relevance[0]).ravel().tolist() == [1, -1]


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1e300])
def test_normalise_extreme_scales(tiny):
    assert image.normalise(np.array([[tiny, -tiny, 0]])).tolist() == [[1, -1, 0]]


def test_normalise_does_not_touch_its_input():
    relevance = np.array([[2.0, 1.0]])
    image.normalise(relevance)
    assert relevance.tolist() == [[2, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_tensors_of_any_type_with_gradients(dtype):
    relevance = torch.tensor([[2, -4]]).to(dtype)
    if dtype.is_floating_point:
        relevance.requires_grad_()
    assert image.normalise(relevance).tolist() == [[0.5, -1]]


def test_empty_batch():
    assert image.normalise(np.zeros((0, 1, 4, 4))).shape == (0, 1, 4, 4)
    assert image.normalise(np.zeros((0, 1, 4, 4)), per="batch").shape == (0, 1, 4, 4)
    assert image.heatmap(torch.zeros(0, 3, 4, 5)).shape == (0, 4, 5, 3)


@pytest.mark.parametrize("function", [image.colours, image.normalise, image.sum_channels])
def test_not_finite(function):
    with pytest.raises(InputError, match="2 of 3 values are NaN or Inf"):
        function(np.array([[[np.nan, 1.0, -np.inf]]]))


def test_bad_arguments():
    with pytest.raises(InputError, match="'pixel'; expected 'image' or 'batch'"):
        image.normalise(np.zeros((2, 2)), per="pixel")
    with pytest.raises(InputError, match=r"\(3,\); expected \[\.\.\., H, W\]"):
        image.colours(np.zeros(3))
    with pytest.raises(InputError, match=r"\[\.\.\., C, H, W\]"):
        image.sum_channels(np.zeros((2, 2)))
    with pytest.raises(InputError, match="low < high"):
        image.grey(np.zeros((1, 2, 2)), 1, 1)


def test_heatmap_sums_channels_first():
    relevance = torch.zeros(1, 3, 1, 2)
    relevance[0, :, 0, 0] = torch.tensor([3.0, -1.0, 0.0])
    relevance[0, :, 0, 1] = torch.tensor([-5.0, 1.0, 2.0])
    assert image.sum_channels(relevance).tolist() == [[[2, -2]]]
    assert image.heatmap(relevance).tolist() == [[[DARK_RED, DARK_BLUE]]]


def test_grey():
    images = torch.tensor([-1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 4)
    assert image.grey(images)[0, :, 0].tolist() == [0, 128, 255, 255]
    assert (image.grey(images)[..., :1] == image.grey(images)).all()
    colour = torch.tensor([0.0, 0.2, 1.0]).reshape(3, 1, 1)
    assert image.grey(colour, 0, 1).tolist() == [[[0, 51, 255]]]


def test_grid_places():
    pictures = np.stack([np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)])
    sheet = image.grid(pictures, columns=2, pad=1)
    assert sheet.shape == (7, 9, 3)
    rows = [
        "www www w",
        "wAAAwBBBw",
        "wAAAwBBBw",
        "www www w",
        "wCCCwwwww",
        "wCCCwwwww",
        "wwwwwwwww",
    ]
    letters = {"w": 255, " ": 255, "A": 10, "B": 20, "C": 30}
    assert sheet[..., 0].tolist() == [[letters[letter] for letter in row] for row in rows]


def test_grid_edges():
    assert image.grid(np.zeros((0, 2, 2, 3), np.uint8), 4, pad=1).shape == (1, 13, 3)
    assert image.grid(np.zeros((1, 2, 2, 3), np.uint8), 1, pad=0).shape == (2, 2, 3)
    with pytest.raises(InputError, match="at least one column"):
        image.grid(np.zeros((1, 2, 2, 3), np.uint8), 0)


def test_legend():
    strip = image.legend(length=257, thickness=3)
    assert strip.shape == (3, 257, 3)
    assert strip[0, [0, 128, 256]].tolist() == [DARK_BLUE, GREY, DARK_RED]


def test_fade():
    assert image.fade(np.array([[[0, 128, 255]]], np.uint8)).tolist() == [[[170, 213, 255]]]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (28, 84)])
def test_png_read_back(tmp_path, shape):
    pillow = pytest.importorskip("PIL.Image")
    rgb = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    path = image.save_png(tmp_path / "new" / "a.png", rgb)
    with pillow.open(path) as picture:
        picture.load()
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), rgb)


def test_png_bytes(tmp_path):
    path = image.save_png(tmp_path / "a.png", np.array([[[1, 2, 3]]], np.uint8))
    content = path.read_bytes()
    assert content[:16] == b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
    assert content[16:29] == bytes([0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0, 0, 0])
    start = content.index(b"IDAT") + 4
    assert zlib.decompressobj().decompress(content[start:]) == bytes([0, 1, 2, 3])
    assert content[-12:] == b"\0\0\0\0IEND\xae\x42\x60\x82"


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)],
)
def test_png_bad_input_leaves_the_old_file(tmp_path, wrong):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match=r"expected uint8 \[H, W, 3\]"):
        image.save_png(path, wrong)
    assert path.read_bytes() == b"old"


# The figure.


@pytest.fixture
def draw(tmp_path):
    pytest.importorskip("matplotlib")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(3, 1, 4, 4, generator=generator) * 2 - 1
    rows = [(label, torch.randn(3, 1, 4, 4, generator=generator)) for label in ("first", "second")]

    def call(**changes):
        arguments = {"rows": rows, "columns": ["a", "b", "c"], "inputs": inputs} | changes
        return image.heatmap_figure(path=tmp_path / "out" / "figure.v1", dpi=100, **arguments)

    return call


def pixels_of(path):
    from PIL import Image

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_figure_files(draw):
    pdf, png = draw(row_groups=[("One", 1), ("Two", 1)], column_groups=[("Left", 1), ("Right", 2)])
    assert pdf.name == "figure.v1.pdf"
    assert png.name == "figure.v1.png"
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert b"/FontFile2" in pdf.read_bytes()  # text is text, in an embedded TrueType font
    assert sorted(path.name for path in pdf.parent.iterdir()) == [pdf.name, png.name]
    sheet = pixels_of(png)
    border = np.concatenate([sheet[0], sheet[-1], sheet[:, 0], sheet[:, -1]])
    assert (border == 255).all()  # nothing touches the edge: no text is cut
    assert (sheet < 255).any()


def test_figure_is_reproducible(draw):
    first = [path.read_bytes() for path in draw()]
    assert b"CreationDate" not in first[0]
    assert [path.read_bytes() for path in draw()] == first


def test_figure_grows_for_long_labels(draw):
    narrow = pixels_of(draw()[1]).shape[1]
    rows = [("A method with a very long name indeed", torch.ones(3, 1, 4, 4))] * 2
    sheet = pixels_of(draw(rows=rows)[1])
    assert sheet.shape[1] > narrow + 100
    assert (sheet[:, :5] == 255).all()


def test_figure_shows_the_colours(draw):
    relevance = torch.zeros(3, 1, 4, 4)
    relevance[0, 0, 0] = 1
    relevance[1, 0, 0] = -1
    count = {
        name: int((pixels_of(draw(rows=[("one", relevance)])[1]) == rgb).all(-1).sum())
        for name, rgb in {"red": DARK_RED, "blue": DARK_BLUE, "grey": GREY}.items()
    }
    # A cell is 68 dots wide at 100 dpi, a quarter of it is coloured: 68 * 17 dots.
    assert count["red"] == pytest.approx(68 * 17, rel=0.1)
    assert count["blue"] == pytest.approx(68 * 17, rel=0.1)
    assert count["grey"] == pytest.approx(68 * 68 * 2.5, rel=0.1)


def test_figure_has_its_legend(draw):
    sheet = pixels_of(draw(rows=[("none", torch.zeros(3, 1, 4, 4))])[1]).astype(int)
    red, green, blue = np.moveaxis(sheet, -1, 0)
    warm, cold = (red > green + 100) & (green == blue), (blue > green + 100) & (green == red)
    # The scale is 2.5 x 0.18 cells of 68 dots, a half of it red, 0.78 of that this red.
    for colour in (warm, cold):
        assert colour.sum() == pytest.approx(68**2 * 2.5 * 0.18 / 2 * 0.78, rel=0.15)
    assert np.nonzero(cold)[1].max() < np.nonzero(warm)[1].min()


def test_misclassified_samples_are_faint(draw):
    relevance = torch.ones(3, 1, 4, 4)
    rows = [("one", relevance), ("two", relevance)]
    faint_red = image.fade(np.array([[DARK_RED]], np.uint8))[0, 0]

    def cells(rgb, **changes):
        sheet = pixels_of(draw(rows=rows, **changes)[1])
        return int((sheet == rgb).all(-1).sum()) / 68**2

    assert cells(faint_red) == 0
    assert cells(faint_red, faint=[False, True, False]) == pytest.approx(2, rel=0.05)
    assert cells(DARK_RED, faint=[False, True, False]) == pytest.approx(4, rel=0.05)
    each = torch.tensor([[True, True, True], [False, False, False]])
    assert cells(faint_red, faint=each) == pytest.approx(3, rel=0.05)


def test_colour_images_that_are_not_square(draw):
    wide = torch.zeros(3, 3, 4, 12)
    sheet = pixels_of(draw(rows=[("one", wide)], inputs=wide)[1])
    assert sheet.shape[1] > sheet.shape[0] * 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["a", "b"]}, "for 2 columns"),
        ({"columns": [], "inputs": torch.zeros(0, 1, 4, 4)}, "one or more"),
        ({"rows": [("odd", torch.zeros(3, 1, 5, 4))]}, r"'odd' has relevance \(3, 1, 5, 4\)"),
        ({"faint": [True]}, r"faint has shape \(1,\); expected \(3,\) or \(2, 3\)"),
        ({"row_groups": [("x", 3)]}, "row_groups .* do not add up to 2"),
        ({"column_groups": [("x", 1)]}, "column_groups .* do not add up to 3"),
    ],
)
def test_figure_bad_input(draw, changes, message):
    with pytest.raises(InputError, match=message):
        draw(**changes)


def test_without_matplotlib(draw, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RelpropError, match=r"pip install 'relprop\[figures\]'"):
        draw()


def test_import_is_light():
    script = (
        "import sys, relprop.image, relprop.data, relprop.models\n"
        "print([m for m in ('matplotlib', 'PIL', 'torchvision', 'triton') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
