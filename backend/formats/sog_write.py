"""SOG version 2: what `sog` reads, and what PlayCanvas's tools and SuperSplat open.

Neighbours in space become neighbours in the pictures (Morton order), which is what makes WebP small. Scales and colours
get codebooks of 256 values that fit the cloud; harmonics a palette of whole rows, found by k-means.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from blender_addon.shared.formats.common import FormatError, atomic_file, limit_degree
from blender_addon.shared.gaussians import GaussianCloud

_CODES = 256
_FIRST_TAG = 252
_SQRT_2 = float(np.sqrt(2.0))
_OTHERS = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # the components beside the largest, of w x y z
_PALETTE_COLUMNS = 64

_MOST_ENTRIES: Final = 4096
"""Of the palette of harmonics; the format allows 65536, whose search takes a graphics card."""

_TRAINING_ROWS = 32768
_ROUNDS = 8
_BLOCK = 8192


def write_sog(path: str | os.PathLike[str], cloud: GaussianCloud) -> tuple[str, ...]:
    """Write a cloud; the file appears under its name only when it is whole.

    Args:
        path: A .sog file, or meta.json in a folder for the pictures.
        cloud: In the axes of a PLY (Y down), as `read_sog` gives it; degree 3 at most is kept.

    Returns:
        What was lost beyond quantisation, one line each.

    Raises:
        FormatError: If there are no Gaussians.
        OSError: If the file cannot be written.
    """
    path = Path(path)
    if not len(cloud):
        raise FormatError(path, "there are no Gaussians to write", "choose another source")
    cloud, lost = limit_degree(cloud, 3)
    cloud = cloud.select(_morton_order(cloud.positions_m))
    shape = _picture_shape(len(cloud))
    low, high, limits = _positions(cloud.positions_m)
    scale_book, scale_codes = _codebook(np.log(cloud.scales_m))
    colour_book, colour_codes = _codebook(cloud.sh_dc)
    alpha = np.rint(cloud.opacities * 255).astype(np.uint8)
    files = {
        "means_l.webp": _picture(low, None, shape),
        "means_u.webp": _picture(high, None, shape),
        "quats.webp": _picture(*_rotations(cloud.rotations_wxyz), shape),
        "scales.webp": _picture(scale_codes, None, shape),
        "sh0.webp": _picture(colour_codes, alpha, shape),
    }
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "Effigy"},
        "count": len(cloud),
        "means": {**limits, "files": ["means_l.webp", "means_u.webp"]},
        "scales": {"codebook": scale_book, "files": ["scales.webp"]},
        "quats": {"files": ["quats.webp"]},
        "sh0": {"codebook": colour_book, "files": ["sh0.webp"]},
    }
    if cloud.sh_rest.any():
        meta["shN"], pictures = _harmonics(cloud, shape)
        files |= pictures
        lost = (*lost, f"spherical harmonics: the nearest of {meta['shN']['count']} kinds")
    _save(path, files, json.dumps(meta).encode())
    return lost


def _save(path: Path, files: dict[str, bytes], meta: bytes) -> None:
    """One archive, or meta.json beside its pictures: last, so that it never names what is not there."""
    if path.name.lower() == "meta.json":
        for name, data in {**files, path.name: meta}.items():
            with atomic_file(path.with_name(name)) as file:
                file.write(data)
        return
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {"meta.json": meta, **files}.items():
            archive.writestr(name, data)


def _morton_order(positions_m: np.ndarray) -> np.ndarray:
    """[N] indices along a Z-order curve of 2^20 cells a side."""
    low, high = positions_m.min(axis=0), positions_m.max(axis=0)
    cells = ((positions_m - low) / np.maximum(high - low, 1e-30) * ((1 << 20) - 1)).astype(np.uint64)
    code = np.zeros(len(cells), np.uint64)
    for axis in range(3):
        spread = cells[:, axis]
        # Two zero bits after each bit.
        for shift, mask in (
            (32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):  # fmt: skip
            spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
        code |= spread << np.uint64(axis)
    return np.argsort(code, kind="stable")


def _picture_shape(count: int) -> tuple[int, int]:
    """Height and width of the pictures, multiples of four."""
    width = 4 * int(np.ceil(np.sqrt(count) / 4))
    return 4 * int(np.ceil(count / width / 4)), width


def _picture(colours: np.ndarray, alpha: np.ndarray | None, shape: tuple[int, int]) -> bytes:
    """Lossless WebP of bytes [N, 3] and [N]; what is left over is opaque black."""
    pixels = np.zeros((shape[0] * shape[1], 4), np.uint8)
    pixels[:, 3] = 255
    pixels[: len(colours), :3] = colours
    if alpha is not None:
        pixels[: len(alpha), 3] = alpha
    buffer = io.BytesIO()
    # `exact`: colours of transparent pixels are data here.
    Image.fromarray(pixels.reshape(*shape, 4)).save(buffer, "WEBP", lossless=True, exact=True, quality=75, method=4)
    return buffer.getvalue()


def _positions(positions_m: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, list[float]]]:
    """Low and high bytes [N, 3] of sign(p) log(|p| + 1) between its limits, and the limits."""
    logs = np.sign(positions_m) * np.log1p(np.abs(positions_m.astype(np.float64)))
    low, high = logs.min(axis=0), logs.max(axis=0)
    steps = np.rint((logs - low) / np.maximum(high - low, 1e-30) * 65535).astype(np.uint16)
    limits = {"mins": low.tolist(), "maxs": high.tolist()}
    return (steps & 255).astype(np.uint8), (steps >> 8).astype(np.uint8), limits


def _rotations(rotations_wxyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes [N, 3] of the three smaller components and [N] the tag of the largest."""
    largest = np.abs(rotations_wxyz).argmax(axis=1)
    sign = np.sign(np.take_along_axis(rotations_wxyz, largest[:, None], axis=1))
    others = np.take_along_axis(rotations_wxyz * sign, _OTHERS[largest], axis=1) * _SQRT_2
    codes = np.clip(np.rint((others + 1) * 127.5), 0, 255).astype(np.uint8)
    return codes, (_FIRST_TAG + largest).astype(np.uint8)


def _codebook(values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """256 rising values that fit best, and the code of the nearest for each, uint8 of the same shape.

    One-dimensional k-means on the sorted values, from a start half by mass, half by range: tails get codes too.
    """
    ordered = np.sort(values.ravel().astype(np.float64))
    total = np.concatenate([[0.0], np.cumsum(ordered)])
    share = (np.arange(_CODES) + 0.5) / _CODES
    by_mass = ordered[(share * len(ordered)).astype(int)]
    book = np.sort(0.5 * by_mass + 0.5 * (ordered[0] + share * (ordered[-1] - ordered[0])))
    for _ in range(2 * _ROUNDS):
        edges = np.searchsorted(ordered, (book[1:] + book[:-1]) / 2)
        starts, ends = np.concatenate([[0], edges]), np.concatenate([edges, [len(ordered)]])
        number = ends - starts
        book = np.where(number > 0, (total[ends] - total[starts]) / np.maximum(number, 1), book)
    book = np.sort(book).astype(np.float32)
    codes = np.searchsorted((book[1:] + book[:-1]) / 2, values.ravel())
    return book.tolist(), codes.reshape(values.shape).astype(np.uint8)


def _harmonics(cloud: GaussianCloud, shape: tuple[int, int]) -> tuple[dict[str, Any], dict[str, bytes]]:
    terms = cloud.sh_rest.shape[1]
    flat = cloud.sh_rest.reshape(len(cloud), -1)
    palette, labels = _palette(flat, min(_MOST_ENTRIES, len(flat)))
    book, codes = _codebook(palette)
    rows = -(-len(palette) // _PALETTE_COLUMNS)
    centroids = np.zeros((rows * _PALETTE_COLUMNS, terms, 3), np.uint8)
    centroids[: len(palette)] = codes.reshape(-1, terms, 3)
    low_high = np.stack([labels & 255, labels >> 8, np.zeros_like(labels)], axis=1).astype(np.uint8)
    names = ["shN_centroids.webp", "shN_labels.webp"]
    pictures = {
        names[0]: _picture(centroids.reshape(-1, 3), None, (rows, _PALETTE_COLUMNS * terms)),
        names[1]: _picture(low_high, None, shape),
    }
    return {"count": len(palette), "bands": cloud.degree, "codebook": book, "files": names}, pictures


def _palette(rows: np.ndarray, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means of rows [N, C]: [entries, C] and the nearest entry [N] of each; exact where they are few."""
    if len(rows) == entries:
        return rows, np.arange(entries)
    rng = np.random.default_rng(0)  # the same cloud gives the same file
    training = rows[rng.permutation(len(rows))[:_TRAINING_ROWS]]
    palette = training[:entries].copy()
    for _ in range(_ROUNDS):
        labels = _nearest(training, palette)
        number = np.bincount(labels, minlength=entries)
        used = number > 0
        for column in range(rows.shape[1]):
            sums = np.bincount(labels, training[:, column], entries)
            palette[used, column] = (sums[used] / number[used]).astype(np.float32)
    return palette, _nearest(rows, palette)


def _nearest(rows: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Index [N] of the nearest entry of each row."""
    half = 0.5 * np.einsum("ij,ij->i", palette, palette)
    blocks = [rows[start : start + _BLOCK] @ palette.T for start in range(0, len(rows), _BLOCK)]
    return np.concatenate([(block - half).argmax(axis=1) for block in blocks])
