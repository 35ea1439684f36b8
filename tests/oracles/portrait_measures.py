"""Who is that, and how many faces has it: measures of a stylised head that are known to be right on known heads.

Both are linear in the brightness of a small picture, one set of numbers per style, learnt from renders of people who
are in no bank, with blur, gain and noise as optimised heads have them. `python -m tests.oracles.portrait_measures`
makes the file; tests hold both to people, blends and two-faced heads that were not learnt from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from tests.oracles.portrait_heads import (
    STYLES,
    TRAITS,
    Head,
    colours,
    draw_traits,
    make_head,
    over_ground,
    picture,
)

FILE = Path(__file__).with_name("data") / "portrait_measures.safetensors"
SMALL_PX = 32
IDENTITY_DEG = (-20.0, -10.0, 0.0, 10.0, 20.0)
"""Azimuths from which a person is recognised; all at the front, so that a face elsewhere changes nothing."""

FACE_STEP_DEG = 10
"""Faces are looked for from all sides, this far apart."""

RUN_DEG = 110.0
"""A face is seen over about 90 degrees; a longer run of sides that show one has more than one."""

LEARN_SEED, PEOPLE = 7000, 260


def brightness(images: Tensor) -> Tensor:
    """Small grey pictures, flattened [B, 1024], of pictures [B, 3, 64, 64] before the plain ground."""
    grey = torch.einsum("k,bkhw->bhw", images.new_tensor([0.30, 0.59, 0.11]), images.clamp(0, 1))
    return functional.adaptive_avg_pool2d(grey[:, None], SMALL_PX).flatten(1)


def _even(rows: Tensor) -> Tensor:
    """Of equal mean and contrast inside the head's middle: gain and offset do not matter."""
    inner = rows.unflatten(1, (SMALL_PX, SMALL_PX))[:, 4:28, 8:24].flatten(1)
    return (rows - inner.mean(1, keepdim=True)) / inner.std(1, keepdim=True).clamp_min(0.02)


@dataclass(frozen=True)
class Faces:
    """Where a head shows a face.

    Attributes:
        scores: float [A], above 0 where a face is seen, from the azimuths 0, 10, 20 ...; about 1 for a clear one. Each
            is the median of three neighbours.
        count: How many.
    """

    scores: np.ndarray
    count: int


class Measures:
    """The learnt numbers."""

    def __init__(self, path: Path = FILE) -> None:
        """Read them."""
        self._parts = load_file(path)

    def traits(self, images: Tensor, style: str) -> Tensor:
        """The ten numbers of the person [10], read from front pictures [B, 3, 64, 64] in a style."""
        k = STYLES.index(style)
        rows = torch.cat([_even(brightness(images.float())), torch.ones(len(images), 1)], 1)
        return (rows @ self._parts["traits"][k].float()).mean(0)

    def identity(self, images: Tensor, style: str, wanted: Tensor) -> float:
        """Cosine, -1..1, of the numbers read from front pictures and those of a person [10]."""
        return float(functional.cosine_similarity(self.traits(images, style), wanted.float(), dim=0))

    def recognised(self, images: Tensor, style: str, wanted: int, people: Tensor) -> bool:
        """Whether of `people` [K, 10] the `wanted` one is nearest."""
        read = self.traits(images, style)
        return int((people.float() - read).square().sum(1).argmin()) == wanted

    def faces(self, images: Tensor, style: str) -> Faces:
        """Look for faces in pictures [A, 3, 64, 64] from all sides, `FACE_STEP_DEG` apart, beginning at the front."""
        k = STYLES.index(style)
        rows = brightness(images.float())
        rows = torch.cat([rows - 0.5, torch.ones(len(rows), 1)], 1)
        scores = (rows @ self._parts["face"][k].float()).numpy()
        scores = np.median([np.roll(scores, shift) for shift in (-1, 0, 1)], 0)
        return Faces(scores, count_runs(scores > 0))


def count_runs(seen: np.ndarray) -> int:
    """Faces in a circle of sides [A]: runs of at least two sides; a run longer than `RUN_DEG` counts as several."""
    if seen.all():
        lengths = [len(seen)]
    else:
        turned = np.roll(seen, -int(np.argmin(seen)))  # begins with a side that shows none
        edges = np.flatnonzero(np.diff(np.r_[0, turned.astype(int), 0]))
        lengths = [int(n) for n in edges[1::2] - edges[0::2]]
    step = 360.0 / len(seen)
    return sum(max(1, round(n * step / RUN_DEG)) for n in lengths if n >= 2)


# ---- learning --------------------------------------------------------------------------------------------------------


def worn(images: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] as an optimisation leaves them: blurred, lumpy, too strong or too weak."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    result = images.clone()
    for rows, factor in zip(
        (rand(len(images)) * 4).long()[None] == torch.arange(4)[:, None], (1, 2, 3, 4), strict=True
    ):
        if factor > 1 and rows.any():
            small = functional.interpolate(images[rows], size=64 // factor, mode="area")
            result[rows] = functional.interpolate(small, size=64, mode="bilinear", align_corners=False)
    lumps = torch.randn(len(images), 1, 16, 16, generator=generator) * 0.06 * rand(len(images), 1, 1, 1)
    result = result + functional.interpolate(lumps, size=64, mode="bicubic", align_corners=False)
    gain = torch.exp(0.7 * (rand(len(images), 1, 1, 1) - 0.4))
    return ((result - 0.5) * gain + 0.5 + 0.1 * (rand(len(images), 1, 1, 1) - 0.5)).clamp(0, 1)


def shots(head: Head, azimuths_deg: Sequence[float] | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures [A, S, 3, 64, 64] of a head in all styles, at elevations as they come."""
    painted = np.concatenate([colours(head, style) for style in STYLES], 1)
    rows = []
    for azimuth in azimuths_deg:
        straight, cover = picture(head, painted, azimuth, rng.uniform(-2, 14))
        rows.append(over_ground(straight.reshape(len(STYLES), 3, 64, 64), cover))
    return np.stack(rows)


def two_faced(head: Head) -> Head:
    """The same head whose back is painted and lit like its front: two faces."""
    flip = np.where(head.points[:, 2:] < 0, [1.0, 1.0, -1.0], 1.0)
    return Head(head.traits, head.points * flip, head.triangles, head.normals * flip)


def two_faced_shots(
    head: Head, azimuths_deg: Sequence[float] | np.ndarray, styles: Sequence[str], share: float = 1.0
) -> np.ndarray:
    """Pictures [A, S, 3, 64, 64] of a head whose back shows a face with strength `share`."""
    double = two_faced(head)
    painted = np.concatenate(
        [(1 - share) * colours(head, style) + share * colours(double, style) for style in styles], 1
    )
    rows = []
    for azimuth in azimuths_deg:
        straight, cover = picture(head, painted, azimuth, 5.0)
        rows.append(over_ground(straight.reshape(len(styles), 3, 64, 64), cover))
    return np.stack(rows)


def learn(people: int = PEOPLE) -> dict[str, Tensor]:
    """The numbers, by ridge regression; takes a minute."""
    rng, generator = np.random.default_rng(LEARN_SEED), torch.Generator().manual_seed(LEARN_SEED)
    faces, fronts, values, labels = [], [], [], []
    every = np.arange(0, 360, 15.0)
    for row in draw_traits(people, LEARN_SEED):
        head = make_head(row)
        near = shots(head, rng.uniform(-22, 22, 4), rng)
        fronts.append(near)
        values.append(np.tile(row, (4, 1)))
        turned = (every + rng.uniform(-7, 7)) % 360
        off = np.abs((turned + 180) % 360 - 180)
        kept = (off < 25) | (off > 65)
        around = shots(head, turned[kept], rng)
        share = rng.uniform(0, 1)
        backs = rng.uniform(165, 195, 2)
        doubled = two_faced_shots(head, backs, STYLES, share)
        between = two_faced_shots(head, rng.choice([65, 80, 90, 100, 115, 245, 260, 270, 280, 295], 3), STYLES, share)
        faces += [near, around, doubled, between]
        labels += [np.ones(4), np.where(off[kept] < 25, 1.0, -1.0), np.full(2, 2 * share - 1), np.full(3, -1.0)]
    parts: dict[str, list[Tensor]] = {"traits": [], "face": []}
    front, face = np.concatenate(fronts), np.concatenate(faces)
    target = torch.from_numpy(np.concatenate(values)).float()
    label = torch.from_numpy(np.concatenate(labels)).float()[:, None]
    for k in range(len(STYLES)):
        some = torch.from_numpy(np.ascontiguousarray(front[:, k]))
        rows = torch.cat([_even(brightness(worn(some, generator))) for _ in range(3)])
        parts["traits"].append(_ridge(rows, target.repeat(3, 1), 30.0))
        some = torch.from_numpy(np.ascontiguousarray(face[:, k]))
        rows = torch.cat([brightness(worn(some, generator)) - 0.5 for _ in range(2)])
        parts["face"].append(_ridge(rows, label.repeat(2, 1), 3.0)[:, 0])
    return {name: torch.stack(rows).half() for name, rows in parts.items()}


def _ridge(rows: Tensor, target: Tensor, weight: float) -> Tensor:
    """[D + 1, T]: what times a row and a one comes nearest to the target."""
    wide = torch.cat([rows, torch.ones(len(rows), 1)], 1).double()
    system = wide.T @ wide + weight * torch.eye(wide.shape[1], dtype=torch.float64)
    return torch.linalg.solve(system, wide.T @ target.double()).float()


if __name__ == "__main__":
    save_file(learn(), FILE)
    print(f"{FILE}: {FILE.stat().st_size / 1e6:.2f} MB, {len(TRAITS)} traits")
