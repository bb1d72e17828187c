"""Reading any still image as upright 8-bit sRGB."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps

from af.data.container import STILL_BRANDS, MediaError, Notes
from af.data.video import on_white

_FORMATS: Final = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "PPM", "JPEG2000")
#: Suffixes of images (files with other suffixes may be videos). TGA files have no other mark.
_ENDINGS: Final = frozenset(
    f".{name}"
    for name in "jpg jpeg jpe jfif png bmp webp tif tiff avif ppm pgm jp2 heic heif hif tga".split()  # noqa: SIM905
)


def read_image(path: Path, notes: Notes | None = None) -> UInt8[np.ndarray, "Y X 3"] | None:
    """Read a still image (the first of several, as in an animation); None for files of another kind.

    It is rotated upright, converted to sRGB, and blended with white where transparent. Raises `MediaError` when it is
    missing, truncated, damaged, too large to be read safely (Pillow's limit), or needs an extra.
    """
    if not path.is_file():
        raise MediaError(path, "absent", "is a folder" if path.is_dir() else "no such file")
    with path.open("rb") as file:
        return decode_image(file, path, notes)


def decode_image(
    file: BinaryIO, path: Path, notes: Notes | None = None, most_pixels: int | None = None
) -> UInt8[np.ndarray, "Y X 3"] | None:
    """`read_image` of an open file, called `path` in messages, with at most `most_pixels` (default: Pillow's limit)."""
    notes = Notes() if notes is None else notes
    ending = path.suffix.lower()
    Image.init()  # loads all of Pillow's formats
    formats = [f for f in (*_FORMATS, *(["TGA"] if ending == ".tga" else [])) if f in Image.OPEN]
    head = file.read(64)
    file.seek(0)
    if head[4:8] == b"ftyp" and head[8:12].decode("latin-1") in STILL_BRANDS and b"avif" not in head:
        _need_heif(path)
        formats.append("HEIF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats) as image:
                if most_pixels is not None and image.width * image.height > most_pixels:
                    raise _too_large(path, image.width * image.height, most_pixels)
                image.load()
                return _plain(path, image, notes)
    except Image.UnidentifiedImageError:
        if ending in _ENDINGS:
            raise MediaError(path, "unreadable", "not an image that can be read") from None
        return None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(path, int(pixels[1]) if pixels else None, Image.MAX_IMAGE_PIXELS or 0) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(path, "damaged", f"the image is damaged or cut off ({error})") from None


def _too_large(path: Path, pixels: int | None, most: int) -> MediaError:
    size = "too many pixels" if pixels is None else f"{pixels / 1e6:.0f} million pixels"
    text = f"{size}; at most {most / 1e6:.0f} million are read: scale it down, or cut out the face"
    return MediaError(path, "too_large", text)


def _need_heif(path: Path) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise MediaError(
            path,
            "needs_extra",
            "is a HEIC image: pip install 'avatar-forcing[heic]', or save it as JPEG or PNG",
        ) from None
    pillow_heif.register_heif_opener()


def _plain(path: Path, image: Image.Image, notes: Notes) -> UInt8[np.ndarray, "Y X 3"]:
    """The pixels of a loaded image, as RGB on white."""
    profile = image.info.get("icc_profile")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _of_whole_numbers(path, image)
    opaque = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    if image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGBA" if opaque else "RGB").convert("RGB")
    if profile:
        image = _in_srgb(path, image, profile, notes)
    rgb = np.asarray(image.convert("RGB"))
    if opaque is None:
        return np.array(rgb)
    return on_white(np.dstack([rgb, np.asarray(opaque)]))


def _of_whole_numbers(path: Path, image: Image.Image) -> UInt8[np.ndarray, "Y X 3"]:
    """16-bit grey, which Pillow also stores in 32 bits."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise MediaError(path, "unreadable", "its pixels have neither 8 nor 16 bits: save it as 8-bit PNG or JPEG")
    grey = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2)


def _in_srgb(path: Path, image: Image.Image, profile: bytes, notes: Notes) -> Image.Image:
    """Convert by the colour profile; a profile that does not fit the image is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()
        if "srgb" in name.lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        notes.add("colour", f"{path}: its colour profile does not fit and was ignored")
        return image
    assert converted is not None
    notes.add("colour", f"{path}: {name} converted to sRGB")
    return converted
