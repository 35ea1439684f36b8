"""A SOG encoder for the tests, version 1 and 2, one number at a time; members and entries can be spoiled."""

from __future__ import annotations

import io
import json
import math
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from blender_addon.shared.gaussians import GaussianCloud


def webp(pixels: list[tuple[int, ...]], width: int, lossless: bool = True) -> bytes:
    """A picture of these pixels, the last row filled with zeros."""
    channels = len(pixels[0])
    height = -(-len(pixels) // width)
    flat = np.zeros((height * width, channels), np.uint8)
    flat[: len(pixels)] = pixels
    buffer = io.BytesIO()
    image = Image.fromarray(flat.reshape(height, width, channels))
    image.save(buffer, "WEBP", lossless=lossless, exact=True)
    return buffer.getvalue()


def sog(cloud: GaussianCloud, version: int = 2, width: int = 4) -> tuple[dict[str, Any], dict[str, bytes]]:
    """meta.json's content and the pictures by name; limits of the cloud's own values."""
    logs = [[math.copysign(math.log(abs(x) + 1), x) for x in row] for row in cloud.positions_m.tolist()]
    mins, maxs = [min(c) for c in zip(*logs, strict=True)], [max(c) for c in zip(*logs, strict=True)]
    steps = [[step(x, mins[k], maxs[k], 65535) for k, x in enumerate(row)] for row in logs]
    scale_logs = np.log(cloud.scales_m.astype(np.float64)).tolist()
    meta: dict[str, Any] = {
        "means": {"mins": mins, "maxs": maxs, "files": ["means_l.webp", "means_u.webp"]},
        "quats": {"files": ["quats.webp"]},
    }
    if version == 2:
        meta |= {"version": 2, "count": len(cloud)}
    else:
        meta["means"]["shape"] = [len(cloud), 3]
    scales, meta["scales"] = table(scale_logs, version)
    base, meta["sh0"] = table(cloud.sh_dc.tolist(), version)
    alphas = [round(a * 255) for a in cloud.opacities.tolist()]
    if version == 1:
        meta["sh0"]["mins"] += [-8.0]
        meta["sh0"]["maxs"] += [8.0]
        alphas = [step(math.log(a / (1 - a)), -8, 8, 255) for a in cloud.opacities.tolist()]
    meta["scales"]["files"], meta["sh0"]["files"] = ["scales.webp"], ["sh0.webp"]
    files = {
        "means_l.webp": webp([tuple(x & 255 for x in row) for row in steps], width),
        "means_u.webp": webp([tuple(x >> 8 for x in row) for row in steps], width),
        "scales.webp": webp([tuple(row) for row in scales], width),
        "quats.webp": webp([quaternion(q) for q in cloud.rotations_wxyz.tolist()], width),
        "sh0.webp": webp([(*row, a) for row, a in zip(base, alphas, strict=True)], width),
    }
    if cloud.degree:
        add_harmonics(cloud, version, width, meta, files)
    return meta, files


def add_harmonics(
    cloud: GaussianCloud, version: int, width: int, meta: dict[str, Any], files: dict[str, bytes]
) -> None:
    """A palette with an entry for each Gaussian, in reverse order, so that the labels matter."""
    terms = cloud.sh_rest.shape[1]
    entries, meta["shN"] = table(cloud.sh_rest[::-1].reshape(-1, 3).tolist(), version, one=True)
    pixels: list[tuple[int, ...]] = [(0, 0, 0)] * (64 * terms * -(-len(cloud) // 64))
    pixels[: len(entries)] = [tuple(e) for e in entries]
    labels = [len(cloud) - 1 - i for i in range(len(cloud))]
    files["shN_centroids.webp"] = webp(pixels, 64 * terms)
    files["shN_labels.webp"] = webp([(n & 255, n >> 8, 0) for n in labels], width)
    meta["shN"]["files"] = ["shN_centroids.webp", "shN_labels.webp"]
    if version == 2:
        meta["shN"] |= {"bands": cloud.degree, "count": len(cloud)}


def table(values: list[list[float]], version: int, one: bool = False) -> tuple[list[list[int]], dict[str, Any]]:
    """Bytes and what they mean: a codebook (version 2), or limits of each channel or of all (version 1)."""
    columns = list(zip(*values, strict=True))
    low, high = min(map(min, columns)), max(map(max, columns))
    if version == 2 or one:
        codes = [[step(v, low, high, 255) for v in row] for row in values]
        book = [low + (high - low) * k / 255 for k in range(256)]
        return codes, {"codebook": book} if version == 2 else {"mins": low, "maxs": high}
    mins, maxs = list(map(min, columns)), list(map(max, columns))
    codes = [[step(v, mins[k], maxs[k], 255) for k, v in enumerate(row)] for row in values]
    return codes, {"mins": mins, "maxs": maxs}


def step(value: float, low: float, high: float, count: int) -> int:
    return round((value - low) / (high - low) * count) if high > low else 0


def quaternion(wxyz: list[float]) -> tuple[int, ...]:
    largest = max(range(4), key=lambda i: abs(wxyz[i]))
    sign = -1 if wxyz[largest] < 0 else 1
    small = [round((sign * v * math.sqrt(2) + 1) * 127.5) for i, v in enumerate(wxyz) if i != largest]
    return (*small, 252 + largest)


def archive(meta: Any, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """The .sog file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as packed:
        for name, content in files.items():
            packed.writestr(zipfile.ZipInfo(name), content, method)
        text = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
        packed.writestr(zipfile.ZipInfo("meta.json"), text, method)
    return buffer.getvalue()
