"""Safe decoding of one photograph: limits before decoding, one form after it."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings as python_warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from backend.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
LONG_SIDE_PX = 1280  # of the working image: more adds nothing to 468 face landmarks and 33 joints
SHORT_SIDE_PX = 64  # below this no landmark network finds a person
MAX_PIXELS = 64_000_000
MAX_SIDE_PX = 16_384
MAX_FILE_BYTES = 512 * 1024**2
MID_GREY = 128  # behind transparent pixels: neither a bright nor a dark seam along hair
NEXT_STEP = "give a PNG, JPEG, WebP, TIFF or BMP picture"
_ORIENTATION = 0x0112
# What makes the stored picture upright, by EXIF orientation (CIPA DC-008, table 6).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Everything that Pillow's decoders raise on damaged data.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class Photo:
    """A decoded photograph, upright, in sRGB, long side at most 1280 px.

    Attributes:
        image: [H, W, 3] uint8 RGB, composed over mid grey where the file is transparent.
        alpha: [H, W] float32 0..1, or None where the file is opaque; a hint for the person's mask.
        original_size: (width, height) in px, upright, before the reduction.
        sha256: Hash of the file's bytes.
        path: The file.
        format: Lower-case name of the file's format, as found in its content.
        warnings: What people should know.
    """

    image: np.ndarray
    alpha: np.ndarray | None
    original_size: tuple[int, int]
    sha256: str
    path: Path
    format: str
    warnings: tuple[str, ...] = ()


def read_photo(path: Path) -> Photo:
    """Read and decode a picture from a file that may be anything.

    The size is taken from the header and checked before a pixel is decoded.

    Raises:
        UserError: With code 2 and one line, if the file is missing, empty, no picture, damaged, too large or too small.
    """
    data = _read_bytes(path)
    notes: list[str] = []
    with python_warnings.catch_warnings():
        # Pillow warns of odd tags, which change nothing, and of sizes, which are checked here.
        python_warnings.simplefilter("ignore")
        image = _open(data, path)
        _check_size(image.size, path)
        try:
            image.load()
        except _DAMAGE as error:
            reason = _first_line(error)
            raise UserError(f"{path.name} is damaged or cut off ({reason}); save or copy it again") from error
        upright = _upright(image, notes)
    file_format = (image.format or "").lower()
    size = upright.size
    rgb, alpha = _to_rgb(upright, notes)
    if alpha is not None and not alpha.getextrema()[1]:
        raise UserError(f"{path.name} is fully transparent; {NEXT_STEP} that shows a person")
    pixels, opacity = _reduce(rgb, alpha)
    digest = hashlib.sha256(data).hexdigest()
    return Photo(pixels, opacity, size, digest, path, file_format, tuple(notes))


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; name one picture")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(f"{path.name} has {size / 1e6:.0f} MB; give a picture of at most {MAX_FILE_BYTES >> 20} MB")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if not data:
        raise UserError(f"{path.name} is empty; {NEXT_STEP}")
    return data


def _open(data: bytes, path: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"{path.name} is too large: {_limit()}") from error
    except _DAMAGE as error:
        if data[4:8] == b"ftyp":
            raise UserError(f"{path.name} is a HEIC, AVIF or video file; save it as JPEG or PNG") from error
        raise UserError(f"{path.name} is not a picture that can be read; {NEXT_STEP}") from error


def _limit() -> str:
    return f"at most {MAX_SIDE_PX} px a side and {MAX_PIXELS // 1_000_000} megapixels are read; make it smaller"


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if max(size) > MAX_SIDE_PX or width * height > MAX_PIXELS:
        raise UserError(f"{path.name} has {width} x {height} px: {_limit()}")
    if min(size) < SHORT_SIDE_PX:
        raise UserError(f"{path.name} has {width} x {height} px; give a picture of at least {SHORT_SIDE_PX} px a side")


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGE:
        notes.append("The picture's EXIF data is damaged and was ignored.")
        return image
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info  # the colour profile
    return turned


def _to_rgb(image: Image.Image, notes: list[str]) -> tuple[Image.Image, Image.Image | None]:
    """8-bit sRGB and, where the file has transparency, its alpha."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image).convert("RGB"), None
    if image.mode in ("RGBa", "La"):
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    alpha = None
    if "A" in image.getbands() or "transparency" in image.info:
        with_alpha = image.convert("RGBA")
        alpha = with_alpha.getchannel("A")
        image = image.convert("L") if image.mode == "LA" else with_alpha.convert("RGB")
        if alpha.getextrema()[0] == 255:
            alpha = None
    elif image.mode in ("P", "1"):
        image = image.convert("RGB")
    return _to_srgb(image, profile, notes), alpha


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point, to 8 bits."""
    values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = values.max(initial=0.0)
    # Integers of these modes hold 16 bits in practice; floats are 0..1 unless they say otherwise.
    white = (1.0 if top <= 1.0 else top) if image.mode == "F" else max(65535.0, top)
    return Image.fromarray(np.clip(values / white * 255.0 + 0.5, 0, 255).astype(np.uint8), "L")


def _to_srgb(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            core: Any = source.profile  # Pillow's stub does not know it
            space = core.xcolor_space.strip()
            if image.mode in ("RGB", "CMYK", "L") and space == {"L": "GRAY"}.get(image.mode, image.mode):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                assert converted is not None  # only None with inPlace
                return converted
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.append("The picture's colour profile is damaged and was ignored; it was read as sRGB.")
    return image.convert("RGB")


def _reduce(rgb: Image.Image, alpha: Image.Image | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Compose over mid grey, then shrink, so that the colours of transparent pixels do not bleed in."""
    if alpha is not None:
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, (MID_GREY,) * 3), alpha)
    factor = LONG_SIDE_PX / max(rgb.size)
    if factor < 1:
        size = (max(1, round(rgb.width * factor)), max(1, round(rgb.height * factor)))
        rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
        alpha = alpha.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) if alpha else None
    pixels = np.array(rgb, np.uint8)
    return pixels, None if alpha is None else np.asarray(alpha, np.float32) / 255.0


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:80]
