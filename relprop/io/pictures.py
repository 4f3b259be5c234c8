"""Image files of people: read upright, opaque, of 8 bits a channel, or refused in one sentence."""

from __future__ import annotations

import importlib
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relprop.errors import FileFormatError, RelpropError
from relprop.io.files import MAX_PIXELS, listed, printable, reading, require_file

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["IMAGE_SUFFIXES", "is_heif", "is_image", "load_image", "require_heif", "require_pillow"]

FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
HEIF_SUFFIXES = frozenset((".heic", ".heics", ".heif", ".heifs", ".hif"))
READ_SUFFIXES = HEIF_SUFFIXES | frozenset(
    (
        *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm"),
        *(".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
OTHER_SUFFIXES = frozenset(
    (
        *(".arw", ".cr2", ".cr3", ".dng", ".eps", ".ico", ".jp2", ".jxl", ".nef", ".orf", ".psd"),
        *(".raf", ".raw", ".rw2", ".svg", ".tga", ".xcf"),
    )
)
"""Pictures that are not read: each is named, and none taken for the thumbnail that it holds."""

IMAGE_SUFFIXES = READ_SUFFIXES | OTHER_SUFFIXES
GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
HEAD = 64
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def require_pillow() -> None:
    """Refuse where Pillow is not installed.  Raises: RelpropError, which says how to get it."""
    if importlib.util.find_spec("PIL") is None:
        raise RelpropError("reading image files needs Pillow: pip install 'relprop[figures]'")


def is_heif(name: str) -> bool:
    """Whether a name is that of a HEIC file."""
    return Path(name).suffix.lower() in HEIF_SUFFIXES


def require_heif(names: Sequence[object]) -> None:
    """Refuse HEIC files where nothing reads them.

    Args:
        names: theirs; none at all is well.

    Raises:
        FileFormatError: pillow-heif is not installed.
    """
    if names and _reader_of_heif() is None:
        raise FileFormatError(f"{listed(names)}: HEIC needs pillow-heif: pip install pillow-heif")


def _reader_of_heif() -> Any:
    try:
        pillow_heif: Any = importlib.import_module("pillow_heif")
    except ImportError:
        return None
    return pillow_heif


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or else by its first bytes."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        head = _head(path) if path.is_file() else b""  # nothing is read of a pipe
    except (FileFormatError, OSError, ValueError):
        return False
    web = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    return head.startswith(SIGNATURES) or web or bitmap or bool(_brand(head))


def _head(path: Path) -> bytes:
    with reading(path, "image"), path.open("rb") as stream:
        return stream.read(HEAD)


def _brand(head: bytes) -> str:
    """ "AVIF" or "HEIF" for a file of the ISO base format with pictures."""
    brands = head[8:] if head[4:8] == b"ftyp" else b""
    if b"avif" in brands or b"avis" in brands:
        return "AVIF"
    return "HEIF" if any(brand in brands for brand in HEIF_BRANDS) else ""


def load_image(
    path: Path,
    max_pixels: int = MAX_PIXELS,
    stored: bytes | None = None,
    background: str = "white",
) -> tuple[Image.Image, str]:
    """Decode one image file; its size is read from its header first.

    It is turned as its EXIF says, and what is transparent laid on the background.  With `stored`
    the file's content is these bytes, and `path` names it in messages alone.

    Returns:
        A Pillow image in mode L (grey, 16-bit grey scaled to 8) or RGB, and what a reader should
        know of it: that only the first of several frames was read; or nothing.

    Raises:
        FileFormatError: missing, not an image, truncated, or of more than `max_pixels` pixels.
        ImportError: Pillow is not installed.
    """
    from PIL import Image

    _require_readable(path, stored)
    opened = path if stored is None else io.BytesIO(stored)
    guard = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None  # ours is checked instead, before anything is decoded
    try:
        with reading(path, "image"), _identified(path, opened) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise FileFormatError(
                    f"{printable(path)}: {width} x {height} pixels, more than the cap of "
                    f"{max_pixels:,}; raise it with --max-pixels if you trust the file"
                )
            if min(width, height) < 1:
                raise FileFormatError(f"{printable(path)}: an image without pixels")
            notes = [_frames(image)]
            image.load()
            notes.append(_turn(image))
            return _grey_or_rgb(image, path, background), "; ".join(filter(None, notes))
    finally:
        Image.MAX_IMAGE_PIXELS = guard


def _require_readable(path: Path, stored: bytes | None) -> None:
    """Refuse what no decoder should see, or none that is here can read."""
    size = require_file(path) if stored is None else len(stored)
    if not size:
        raise FileFormatError(f"{printable(path)}: an empty file; expected an image")
    suffix = path.suffix.lower()
    if suffix in OTHER_SUFFIXES:
        raise FileFormatError(f"{printable(path)}: {suffix} is not read; save it as PNG or JPEG")
    if _brand(stored[:HEAD] if stored is not None else _head(path)) == "HEIF":
        require_heif([path])
        _reader_of_heif().register_heif_opener()


def _identified(path: Path, opened: Path | io.BytesIO) -> Image.Image:
    """An image of which the header alone was read."""
    from PIL import Image, UnidentifiedImageError

    Image.init()  # every decoder, since one that this Pillow lacks must not be asked for
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        return Image.open(opened, formats=formats)
    except UnidentifiedImageError:
        raise FileFormatError(
            f"{printable(path)}: not a readable image (damaged, or none of {', '.join(formats)})"
        ) from None


def _frames(image: Image.Image) -> str:
    """A word on further frames; those of a phone's MPO are previews."""
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    return "several frames; the first is read" if several else ""


def _turn(image: Image.Image) -> str:
    """Turn an image as its EXIF says; returns a word on EXIF that says nothing readable."""
    from PIL import ImageOps

    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # its decoder raises anything on damaged metadata
        return "its EXIF is damaged; read as it is stored, which may not be upright"
    return ""


def _grey_or_rgb(image: Image.Image, path: Path, background: str) -> Image.Image:
    from PIL import Image

    if image.mode in GREY_16_BIT or (image.mode == "I" and image.format == "PPM"):
        image = _of_8_bits(image)
    if image.mode in ("I", "F"):
        raise FileFormatError(
            f"{printable(path)}: pixels of 32 bits (mode {image.mode}); save it with 8 or 16"
        )
    if image.has_transparency_data:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, background), above)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _of_8_bits(image: Image.Image) -> Image.Image:
    from PIL import Image

    values = np.asarray(image)
    grey = Image.fromarray((values // 257).astype(np.uint8))
    if isinstance(key := image.info.get("transparency"), int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey
