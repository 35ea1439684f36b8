"""From where a stylised head is looked at while it is optimised. The paper prints none of this.

Lengths are head heights (`head_start.HeadFrame`). What is chosen, and why:

- Size before distance: radius and field of view drawn apart would change the head's size in the picture threefold, and
  portraits have one size. So the share of the picture that the head's height fills is drawn, and the field of view,
  and the distance follows. Fields of 18 to 32 degrees are those of portrait lenses, which the models were shown; wider
  ones make noses large.
- Elevation -10 to 30 degrees: people are photographed at eye level and from a little above. MVDream was trained on 0
  to 30, so its groups stay there.
- Azimuth: a share of the views comes from the front, spread as a normal distribution, since identity is only there;
  the rest is uniform all round, so that the sides and the back get half of the steps.
- Four views: any beginning, 90 degrees apart, one elevation, size and field for the group, as MVDream was trained.
- Resolution: the head begins with Gaussians of 0.02, 6 px of a 512 px picture. While the time steps are the large ones
  (the first third) pictures are drawn at half the size and enlarged: there is no finer detail to lose, a quarter to
  draw, and noise of single pixels cannot be taken for detail.
- Background: plain, since the style's pictures are, and drawn from two greys in turn: over one of them alone something
  half transparent of the background's colour would do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from backend.raster import Cameras
from backend.raster.cameras import orbit_camera

GROUP = 4
"""Views of one object at once."""


@dataclass(frozen=True)
class Views:
    """Cameras around the head.

    Attributes:
        cameras: [B] square pictures, unit frame.
        azimuths_deg: float32 [B], 0 the front, 90 the subject's left; on the CPU.
        elevations_deg: float32 [B], positive from above; on the CPU.
    """

    cameras: Cameras
    azimuths_deg: Tensor
    elevations_deg: Tensor

    def __len__(self) -> int:
        """How many."""
        return len(self.azimuths_deg)

    @property
    def size_px(self) -> int:
        """Side of the pictures."""
        return self.cameras.width

    def resized(self, size_px: int) -> Views:
        """The same views in another resolution."""
        if size_px == self.size_px:
            return self
        scale = torch.tensor([size_px / self.size_px, size_px / self.size_px, 1.0]).to(self.cameras.K)
        cameras = Cameras(self.cameras.w2c, scale[:, None] * self.cameras.K, size_px, size_px)
        return Views(cameras, self.azimuths_deg, self.elevations_deg)

    def to(self, device: str | torch.device) -> Views:
        """Cameras on a device, in float32, as they are drawn."""
        w2c, intrinsics = self.cameras.w2c.to(device).float(), self.cameras.K.to(device).float()
        cameras = Cameras(w2c, intrinsics, self.cameras.width, self.cameras.height)
        return Views(cameras, self.azimuths_deg, self.elevations_deg)


@dataclass(frozen=True)
class CameraSampling:
    """Ranges of random views; see the module.

    Attributes:
        fill: Share of the picture that one head height fills, lowest and highest.
        fov_deg: Vertical field of view.
        elevation_deg: Of single views.
        group_elevation_deg: Of groups of four.
        front_share: Part of the single views that comes from the front.
        front_spread_deg: Standard deviation of their azimuth.
        around: Whether the others come from all round; False: all are from the front.
        target: [3] point in the middle of the picture, unit frame; a little below the head's middle shows the neck.
        jitter: [3] largest distance of the middle from the target, along each axis.
    """

    fill: tuple[float, float] = (0.48, 0.62)
    fov_deg: tuple[float, float] = (18.0, 32.0)
    elevation_deg: tuple[float, float] = (-10.0, 30.0)
    group_elevation_deg: tuple[float, float] = (0.0, 30.0)
    front_share: float = 0.5
    front_spread_deg: float = 35.0
    around: bool = True
    target: tuple[float, float, float] = (0.0, -0.1, 0.0)
    jitter: tuple[float, float, float] = (0.04, 0.04, 0.04)

    def __post_init__(self) -> None:
        """Refuse what cannot be looked from.

        Raises:
            ValueError: With the range that is wrong.
        """
        for name, lowest, highest in (
            ("fill", 0.01, 10.0),
            ("fov_deg", 1.0, 120.0),
            ("elevation_deg", -80.0, 80.0),
            ("group_elevation_deg", -80.0, 80.0),
        ):
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"{name} is a range within {lowest}..{highest}, not {low}..{high}")
        if not 0 <= self.front_share <= 1:
            raise ValueError(f"front_share is a share, 0 to 1, not {self.front_share}")


FACE_CAMERAS = CameraSampling(
    fill=(1.0, 1.3),
    elevation_deg=(-10.0, 15.0),
    front_share=1.0,
    front_spread_deg=25.0,
    around=False,
    target=(0.0, -0.08, 0.25),
    jitter=(0.12, 0.16, 0.0),
)
"""Of the last stage: a 512 px window of a picture of about 1024 px, anywhere on the face, from the front and its
sides. The models know 512 px; the whole head at 1024 would be two heads to them."""

PREVIEW_CAMERAS = (0.0, 35.0, 180.0)
"""Azimuths of the picture that is shown meanwhile."""


def draw_views(sampling: CameraSampling, count: int, size_px: int, generator: torch.Generator) -> Views:
    """Random single views.

    Args:
        sampling: Ranges.
        count: How many.
        size_px: Of the square pictures.
        generator: On the CPU; always draws as many numbers, whatever the ranges are.
    """
    uniform = torch.rand(count, 8, generator=generator, dtype=torch.float64)
    spread = torch.randn(count, generator=generator, dtype=torch.float64)
    views = []
    for row, normal in zip(uniform.tolist(), spread.tolist(), strict=True):
        front = not sampling.around or row[0] < sampling.front_share
        azimuth = normal * sampling.front_spread_deg if front else 360.0 * row[1] - 180.0
        azimuth = (azimuth + 180.0) % 360.0 - 180.0
        low, high = sampling.elevation_deg
        views.append((azimuth, low + (high - low) * row[2], row))
    return _views(sampling, views, size_px)


def draw_groups(sampling: CameraSampling, groups: int, size_px: int, generator: torch.Generator) -> Views:
    """Groups of four views, 90 degrees apart; see `draw_views`."""
    uniform = torch.rand(groups, 8, generator=generator, dtype=torch.float64)
    low, high = sampling.group_elevation_deg
    views = []
    for row in uniform.tolist():
        for k in range(GROUP):
            azimuth = (360.0 * row[1] + 360.0 / GROUP * k) % 360.0 - 180.0
            views.append((azimuth, low + (high - low) * row[2], row))
    return _views(sampling, views, size_px)


def views_at(
    azimuths_deg: list[float] | tuple[float, ...],
    size_px: int,
    *,
    sampling: CameraSampling = CameraSampling(),  # noqa: B008  frozen
    elevation_deg: float = 5.0,
) -> Views:
    """Fixed views with the middle of the ranges: for pictures that people look at, and for measuring."""
    middle = [0.5] * 8
    return _views(sampling, [(azimuth, elevation_deg, middle) for azimuth in azimuths_deg], size_px)


def _views(sampling: CameraSampling, views: list[tuple[float, float, list[float]]], size_px: int) -> Views:
    """Cameras for (azimuth, elevation, numbers 0..1): 3 the size, 4 the field of view, 5 to 7 the middle."""
    cameras = []
    for azimuth, elevation, row in views:
        fill = sampling.fill[0] + (sampling.fill[1] - sampling.fill[0]) * row[3]
        field = math.radians(sampling.fov_deg[0] + (sampling.fov_deg[1] - sampling.fov_deg[0]) * row[4])
        per_distance = 0.5 / math.tan(field / 2)  # focal length in picture heights
        middle = np.array(sampling.target) + np.array(sampling.jitter) * (2 * np.array(row[5:8]) - 1)
        cameras.append(orbit_camera(middle, per_distance / fill, azimuth, elevation, per_distance * size_px, size_px))
    w2c, intrinsics = torch.cat([c.w2c for c in cameras]), torch.cat([c.K for c in cameras])
    azimuths, elevations = (torch.tensor([view[k] for view in views], dtype=torch.float32) for k in (0, 1))
    return Views(Cameras(w2c, intrinsics, size_px, size_px), azimuths, elevations)
