"""Every kind of picture becomes the same upright sRGB array; everything else becomes one clear line."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from backend.errors import UserError
from backend.perception.photo import LONG_SIDE_PX, MAX_PIXELS, MID_GREY, read_photo


def picture(width: int = 96, height: int = 128) -> np.ndarray:
    """Smooth in both directions, another colour in each corner: no turn or flip leaves it as it is."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height - 1, width - 1]).reshape(2, 1, 1)
    return np.stack([40 + 180 * x, 30 + 200 * y, 60 + 100 * (1 - x) * y], axis=-1).round().astype(np.uint8)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises a size and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_photo(path)
    assert caught.value.code == 2
    assert "\n" not in caught.value.message and len(caught.value.message) < 300
    return caught.value.message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(picture()), **options)
    photo = read_photo(path)
    assert np.array_equal(photo.image, picture()) and photo.image.dtype == np.uint8
    assert photo.alpha is None and photo.original_size == (96, 128) and photo.format == suffix
    assert photo.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    path = save(tmp_path / "really_a_png.jpg", Image.fromarray(picture()), format="PNG")
    assert read_photo(path).format == "png"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int, suffix: str) -> None:
    # What a camera stores so that a viewer, following the EXIF tag, shows the upright picture (rows, columns swapped
    # for 5 to 8); written out here as array operations, independent of Pillow's names.
    upright = picture()
    stored = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: a.transpose(1, 0, 2)[::-1],
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2), 8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    }[orientation](upright)  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if suffix == "jpg" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(np.ascontiguousarray(stored)), exif=exif, **options)
    photo = read_photo(path)
    assert photo.original_size == (96, 128)
    assert np.abs(photo.image.astype(int) - upright).max() <= (6 if suffix == "jpg" else 0)


def test_alpha_is_kept_and_composed_over_mid_grey(tmp_path: Path) -> None:
    alpha = np.zeros((128, 96), np.uint8)
    alpha[32:96] = 255
    alpha[0:8] = 128
    rgba = np.dstack([picture(), alpha])
    rgba[alpha == 0, :3] = (255, 0, 255)  # what editors leave under transparent pixels
    photo = read_photo(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert photo.alpha is not None and photo.alpha.dtype == np.float32
    assert np.allclose(photo.alpha, alpha / 255)
    assert np.array_equal(photo.image[32:96], picture()[32:96])
    assert (photo.image[alpha == 0] == MID_GREY).all()
    half = (picture()[0:8] * (128 / 255) + MID_GREY * (127 / 255)).round()
    assert np.abs(photo.image[0:8] - half).max() <= 1


def test_hidden_colours_do_not_bleed_when_a_large_picture_shrinks(tmp_path: Path) -> None:
    rgba = np.zeros((1600, 2000, 4), np.uint8)
    rgba[..., 0] = 255
    rgba[400:1200, 500:1500] = (0, 0, 0, 255)
    photo = read_photo(save(tmp_path / "a.png", Image.fromarray(rgba)))
    assert photo.image.shape == (1024, LONG_SIDE_PX, 3) and photo.original_size == (2000, 1600)
    assert photo.alpha is not None and photo.alpha.shape == (1024, LONG_SIDE_PX)
    assert np.ptp(photo.image.astype(int), axis=-1).max() <= 1  # grey everywhere: nothing of the hidden red


def test_opaque_and_fully_transparent_alpha(tmp_path: Path) -> None:
    opaque = np.dstack([picture(), np.full((128, 96), 255, np.uint8)])
    assert read_photo(save(tmp_path / "a.png", Image.fromarray(opaque))).alpha is None
    opaque[..., 3] = 0
    assert "transparent" in refused(save(tmp_path / "b.png", Image.fromarray(opaque)))


def test_grey_palette_bilevel_and_deep_pictures(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=-1)
    sixteen = grey.astype(np.uint16) * 257
    cases = {
        "l.png": Image.fromarray(grey),
        "la.png": Image.merge("LA", (Image.fromarray(grey), Image.new("L", (96, 128), 255))),
        "p.png": Image.fromarray(grey).convert("P"),
        "16.png": Image.fromarray(sixteen),
        "16.tiff": Image.fromarray(sixteen),
        "f.tiff": Image.fromarray(grey.astype(np.float32) / 255),
    }
    for name, image in cases.items():
        assert np.array_equal(read_photo(save(tmp_path / name, image)).image, expected), name
    bilevel = read_photo(save(tmp_path / "1.png", Image.fromarray(grey > 128)))
    assert set(np.unique(bilevel.image)) == {0, 255}


def test_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (64, 64), 0)
    image.putpalette([255, 0, 255, 10, 20, 30])
    image.paste(1, (0, 0, 64, 32))
    photo = read_photo(save(tmp_path / "a.png", image, transparency=0))
    assert photo.alpha is not None and photo.alpha[:32].min() == 1 and photo.alpha[32:].max() == 0
    assert (photo.image[:32] == (10, 20, 30)).all() and (photo.image[32:] == MID_GREY).all()


def test_cmyk_is_near_the_colour_it_was_made_from(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(picture()).convert("CMYK"), quality=98, subsampling=0)
    assert np.abs(read_photo(path).image.astype(int) - picture()).max() <= 6


def test_a_colour_profile_is_followed(tmp_path: Path) -> None:
    # Linear-light profile: the same stored number is a lighter colour in sRGB, by sRGB's transfer function.
    linear = ImageCms.ImageCmsProfile(io.BytesIO(linear_srgb_profile()))
    path = save(tmp_path / "a.png", Image.new("RGB", (64, 64), (55, 55, 55)), icc_profile=linear.tobytes())
    expected = 255 * (1.055 * (55 / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(read_photo(path).image - expected).max() <= 2
    plain = save(tmp_path / "b.png", Image.new("RGB", (64, 64), (55, 55, 55)))
    assert (read_photo(plain).image == 55).all()


def linear_srgb_profile() -> bytes:
    """sRGB's primaries with a gamma of 1: Pillow's own sRGB profile with its curve tags replaced."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    for index in range(count):
        name, offset, size = struct.unpack_from(">4sII", data, 132 + 12 * index)
        if name in (b"rTRC", b"gTRC", b"bTRC"):
            identity = b"curv" + bytes(4) + struct.pack(">I", 0)  # no entries: the identity
            data[offset : offset + size] = identity.ljust(size, b"\0")
    return bytes(data)


def test_a_damaged_profile_is_a_warning(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(picture()), icc_profile=b"not a profile" * 20)
    photo = read_photo(path)
    assert np.array_equal(photo.image, picture()) and "profile" in photo.warnings[0]


def test_large_pictures_shrink_to_the_working_size(tmp_path: Path) -> None:
    image = Image.fromarray(picture()).resize((3000, 4000), Image.Resampling.BICUBIC)
    photo = read_photo(save(tmp_path / "a.jpg", image, quality=90))
    assert photo.image.shape == (LONG_SIDE_PX, 960, 3) and photo.original_size == (3000, 4000)
    small = np.asarray(Image.fromarray(picture()).resize((960, LONG_SIDE_PX), Image.Resampling.BICUBIC))
    assert np.abs(photo.image.astype(int) - small).mean() < 2


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (20_000, 100), (9000, 8000)])
def test_a_header_that_promises_too_much_is_refused_undecoded(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "a.png").write_bytes(png_header(*size))
    assert "megapixels" in refused(tmp_path / "a.png")
    assert size[0] * size[1] > MAX_PIXELS or max(size) > 16_384


def test_what_is_no_picture_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("this is not a picture\n" * 20)
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    save(tmp_path / "a.gif", Image.fromarray(picture()))
    save(tmp_path / "tiny.png", Image.fromarray(picture()[:20, :20]))
    expected = {"empty.png": "empty", "text.jpg": "not a picture", "phone.heic": "HEIC", "a.gif": "not a picture"}
    expected |= {"tiny.png": "at least 64 px", "missing.png": "cannot be read", ".": "folder"}
    for name, words in expected.items():
        assert words in refused(tmp_path / name), name


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "bmp"])
def test_every_truncation_ends_in_one_line(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 96, 3), np.uint8)
    whole = save(tmp_path / f"a.{suffix}", Image.fromarray(noise)).read_bytes()
    cut = tmp_path / f"cut.{suffix}"
    for share in (0.001, 0.02, 0.3, 0.7, 0.97):
        cut.write_bytes(whole[: max(1, int(len(whole) * share))])
        refused(cut)


@pytest.mark.filterwarnings("error")
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in ("png", "jpg", "webp", "tiff", "bmp"):
        whole = save(tmp_path / f"a.{suffix}", Image.fromarray(picture())).read_bytes()
        for _ in range(40):
            damaged = bytearray(whole)
            for position in rng.integers(0, min(len(whole), 300), 4):
                damaged[position] = rng.integers(0, 256)
            (tmp_path / "damaged").write_bytes(damaged)
            try:
                assert read_photo(tmp_path / "damaged").image.shape[2] == 3
            except UserError as error:
                assert error.code == 2
