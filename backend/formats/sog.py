"""SOG (PlayCanvas): reads version 2 and the older one without a number, as a zip or as the folder's `meta.json`.

Lossless WebP pictures hold one Gaussian a pixel, in reading order; `meta.json` names them and says what their bytes
mean. Own code on Pillow's WebP: the packages that read SOG in Python bring their own picture codecs and trust sizes.
The layout follows PlayCanvas's specification and splat-transform. The specification says Y up; splat-transform and
the engine treat the values as those of the PLY they were made from, so the axes here are a PLY's.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from backend.formats.sog_meta import Meta, parse_meta
from blender_addon.shared.formats.common import (
    FormatError,
    ReadResult,
    dropped_notes,
    normalised,
    refuse_damage,
    require_count,
    valid_rows,
)
from blender_addon.shared.gaussians import SH_REST_COUNTS, GaussianCloud

ZIP_MAGIC: Final = b"PK\x03\x04"

_MAX_META_BYTES = 1 << 20
_MAX_MEMBERS = 64
_MAX_DIRECTORY_BYTES = 1 << 16
_MAX_PICTURE_BYTES = 1 << 30
_FREE_BYTES = 120_000_000
_MAX_GROWTH = 100  # decoding may take this many times the size of the file, of which 10 to 20 bytes are a Gaussian
_PALETTE_COLUMNS = 64
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # the components beside the largest, of w x y z
_SIN_45 = float(np.sqrt(0.5))
_FIRST_TAG = 252  # alpha of the quaternion picture: this plus the index of the largest component

_Load = Callable[[str], bytes]


def is_sog(head: bytes) -> bool:
    """Whether a file's first bytes are those of a zip archive or of a `meta.json`."""
    return head.startswith(ZIP_MAGIC) or (head.lstrip()[:1] == b"{" and b'"means"' in head)


def read_sog(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> ReadResult:
    """Read SOG from a .sog archive or from the meta.json of an unpacked one.

    Args:
        path: The archive, or meta.json beside its pictures.
        drop_invalid: Leave damaged Gaussians out and count them instead of refusing the file.

    Raises:
        FormatError: If it is no SOG, damaged, or of a version that is not read here.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        packed = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if packed:
        data = path.read_bytes()
        load, size = _archive_loader(path, data), len(data)
    else:
        load, size = _folder_loader(path)
    meta = parse_meta(path, load("meta.json"))
    return _decode(meta, load, size, drop_invalid)


def _archive_loader(path: Path, data: bytes) -> _Load:
    _check_directory(path, data)

    def load(name: str) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if len(archive.infolist()) > _MAX_MEMBERS:
                    raise FormatError(path, f"has {len(archive.infolist())} members; a SOG has at most nine")
                return _read_member(path, archive, name, len(data))
        except FormatError:
            raise
        except KeyError:
            raise FormatError(path, f"has no {name[:40]} in it") from None
        # What zipfile, zlib and struct raise over damaged bytes; anything else is a defect of ours.
        except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, EOFError, OverflowError, OSError) as error:
            raise FormatError(path, f"the zip archive is damaged ({' '.join(str(error).split())[:80]})") from None

    return load


def _check_directory(path: Path, data: bytes) -> None:
    """Look at the size of the archive's directory before `zipfile` makes an object of each of its entries."""
    at = data.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(data):
        raise FormatError(path, "the zip archive is damaged (it has no end, so it is cut short)")
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    if size > _MAX_DIRECTORY_BYTES or data[max(at - 20, 0) : at].startswith(b"PK\x06\x07"):  # the latter: zip64
        raise FormatError(path, "the zip archive has a directory for far more than the nine files of a SOG")


def _read_member(path: Path, archive: zipfile.ZipFile, name: str, archive_bytes: int) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FormatError(path, f"{name[:40]} is packed in a way that SOG does not know")
    if info.flag_bits & 1:
        raise FormatError(path, f"{name[:40]} is encrypted")
    limit = min(2 * archive_bytes + _MAX_META_BYTES, _MAX_PICTURE_BYTES)  # pictures do not shrink when they are zipped
    if info.file_size > limit:
        raise FormatError(path, f"{name[:40]} unpacks to {info.file_size} bytes out of an archive of {archive_bytes}")
    with archive.open(info) as member:
        content = member.read(limit + 1)
    if len(content) != info.file_size:
        raise FormatError(path, f"{name[:40]} holds {len(content)} bytes, the archive says {info.file_size}")
    return content


def _folder_loader(path: Path) -> tuple[_Load, int]:
    folder = path.parent
    total = sum(entry.stat().st_size for entry in folder.glob("*.webp")) + path.stat().st_size

    def load(name: str) -> bytes:
        source = path if name == "meta.json" else folder / name
        limit = _MAX_META_BYTES if source is path else _MAX_PICTURE_BYTES
        try:
            size = source.stat().st_size  # asked first: reading up to a limit would set that much memory aside
            if size > limit:
                raise FormatError(path, f"{name[:40]} has {size} bytes, more than {limit} are not read")
            return source.read_bytes()
        except FileNotFoundError:
            raise FormatError(path, f"{name[:40]} is not beside it") from None

    return load, total


def _decode(meta: Meta, load: _Load, file_bytes: int, drop_invalid: bool) -> ReadResult:
    path, count = meta.path, meta.count
    require_count(path, count)
    terms = SH_REST_COUNTS[meta.bands]
    if count * (14 + 3 * terms) * 8 > max(_FREE_BYTES, _MAX_GROWTH * file_bytes):
        raise FormatError(path, f"announces {count} Gaussians, more than {file_bytes} bytes can hold")
    notes = list(meta.notes)

    def rows(name: str) -> np.ndarray:
        """[count, 4] bytes of the picture's first pixels."""
        picture, lossless = _picture(path, name, load(name), count)
        if not lossless:
            notes.append(f"{name} is packed with loss, so its values are damaged")
        return picture.reshape(-1, 4)[:count]

    positions = _positions(rows(meta.means_files[0]), rows(meta.means_files[1]), meta)
    rotations, without_tag = _rotations(rows(meta.quats_file))
    if without_tag:
        notes.append(f"{without_tag} Gaussians had no rotation; it was set to none")
    scales = meta.scales.look_up(path, rows(meta.scales_file)[:, :3])
    with np.errstate(over="ignore"):  # infinite is damage, which the check of the rows counts
        np.exp(scales, out=scales)
    base = rows(meta.sh0_file)
    opacities, sh_dc = meta.opacities(base[:, 3]), meta.sh0.look_up(path, base[:, :3])
    labels = rows(meta.shn_files[1]) if meta.shn_files else None
    good = valid_rows(positions, scales, rotations, opacities, sh_dc)
    dropped = count - int(np.count_nonzero(good))
    if dropped:
        refuse_damage(path, dropped, count, drop_invalid=drop_invalid)
        kept = (a[good] for a in (positions, scales, rotations, opacities, sh_dc))
        positions, scales, rotations, opacities, sh_dc = kept
        labels = None if labels is None else labels[good]
    # Last, and looked at no more: a palette's entries are finite, and this is by far the largest array.
    sh_rest = np.zeros((len(positions), 0, 3), np.float32)
    if labels is not None:
        sh_rest = _harmonics(meta, load, labels, file_bytes)
    cloud = GaussianCloud.of_checked(positions, scales, normalised(rotations), opacities, sh_dc, sh_rest)
    return ReadResult(cloud, "y_down", dropped=dropped, notes=(*dropped_notes(dropped), *notes))


def _positions(low: np.ndarray, high: np.ndarray, meta: Meta) -> np.ndarray:
    """[N, 3] from two bytes an axis: between the limits of sign(p) log(|p| + 1)."""
    positions = np.empty((len(low), 3), np.float32)
    for axis in range(3):
        steps = low[:, axis] + np.float64(256) * high[:, axis]
        span = meta.maxs[axis] - meta.mins[axis]
        logs = meta.mins[axis] + (span or 1.0) * (steps / 65535)
        positions[:, axis] = np.sign(logs) * np.expm1(np.abs(logs))
    return positions


def _rotations(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """[N, 4] wxyz from the three smaller components and the tag of the largest; how many have no tag."""
    tags = rows[:, 3].astype(np.intp) - _FIRST_TAG
    tagged = tags >= 0
    largest = np.where(tagged, tags, 0)
    values = (rows[:, :3] / np.float32(127.5) - np.float32(1)) * np.float32(_SIN_45)
    values[~tagged] = 0
    wxyz = np.empty((len(rows), 4), np.float32)
    np.put_along_axis(wxyz, _OTHERS[largest], values, axis=1)
    missing = np.sqrt(np.maximum(1 - np.einsum("ij,ij->i", values, values), 0))
    np.put_along_axis(wxyz, largest[:, None], missing[:, None], axis=1)
    return wxyz, int(len(rows) - np.count_nonzero(tagged))


def _harmonics(meta: Meta, load: _Load, labels: np.ndarray, file_bytes: int) -> np.ndarray:
    """[N, K, 3]: each Gaussian's label names an entry of a palette of 64 entries a row."""
    path = meta.path
    picture, _ = _picture(path, meta.shn_files[0], load(meta.shn_files[0]), 1)
    height, width = picture.shape[:2]
    terms = SH_REST_COUNTS[meta.bands] if meta.bands else width // _PALETTE_COLUMNS
    if terms not in SH_REST_COUNTS[1:4] or width != _PALETTE_COLUMNS * terms:
        raise FormatError(path, f"the palette of spherical harmonics is {width} pixels wide, which fits no degree")
    if len(labels) * (14 + 3 * terms) * 8 > max(_FREE_BYTES, _MAX_GROWTH * file_bytes):
        raise FormatError(path, f"announces {len(labels)} Gaussians, more than {file_bytes} bytes can hold")
    index = labels[:, 0].astype(np.intp) + 256 * labels[:, 1].astype(np.intp)
    entries = height * _PALETTE_COLUMNS
    if meta.palette_count:
        entries = min(entries, meta.palette_count)
    if int(index.max(initial=0)) >= entries:
        raise FormatError(path, f"names entry {int(index.max())} of a palette of {entries} spherical harmonics")
    palette = meta.shn.look_up(path, picture[:, :, :3].reshape(height * _PALETTE_COLUMNS, terms, 3))
    return np.ascontiguousarray(palette[index])


def _picture(path: Path, name: str, data: bytes, count: int) -> tuple[np.ndarray, bool]:
    """[H, W, 4] bytes, and whether they were packed without loss; sizes are checked before anything is unpacked."""
    width, height, lossless = _webp_size(path, name, data)
    if width * height < count:
        raise FormatError(path, f"{name} is {width} x {height} pixels, too few for {count} Gaussians")
    if width * height > 4 * max(count, 1 << 18):
        raise FormatError(path, f"{name} is {width} x {height} pixels, far too many for {count} Gaussians")
    try:
        with Image.open(io.BytesIO(data), formats=["WEBP"]) as image:
            if image.size != (width, height) or getattr(image, "n_frames", 1) != 1:
                raise FormatError(path, f"{name} is an animation, or lies about its size")
            return np.asarray(image.convert("RGBA")), lossless
    except FormatError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError) as error:  # what Pillow raises over damage
        raise FormatError(path, f"{name} is no readable picture ({' '.join(str(error).split())[:80]})") from None


def _webp_size(path: Path, name: str, data: bytes) -> tuple[int, int, bool]:
    """Width, height and whether the picture is packed without loss, from its first chunk."""
    kind, body = data[12:16], data[20:30]
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(body) < 10:
        raise FormatError(path, f"{name} is no WebP picture")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, True
    if kind == b"VP8X":
        width, height = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
        return width, height, b"VP8L" in data[30:4096]
    if kind == b"VP8 ":
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF, False
    raise FormatError(path, f"{name} is no WebP picture")
