"""Figures of an avatar: how well it matches the photo, and whether it is whole from every side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from backend.human.camera import PinholeCamera
from backend.human.zbuffer import view_mesh
from backend.raster import Cameras
from backend.raster.cameras import orbit_cameras
from backend.splats.bound import PosedSplats
from backend.splats.render import render, to_cameras

AZIMUTHS_DEG = tuple(range(0, 360, 30))
OPAQUE_ALPHA = 0.98
SILHOUETTE_ALPHA = 0.5
CLOSE_PX = 4
"""The silhouette is closed over gaps of up to twice this: cracks count as holes, the gap under an arm does not."""
ERODE_PX = 3
SMALLEST_PART = 0.001
"""Parts below this share of the whole are specks and are counted apart."""


@dataclass(frozen=True)
class PhotoScores:
    """Agreement with the photo where neither a held object nor the frame's edge decides."""

    alpha_iou: float  # alpha > 0.5 against mask > 0.5
    psnr_db: float  # inside the mask, over the photo's own pixels
    psnr_eroded_db: float  # inside the mask eroded by 2 px


@dataclass(frozen=True)
class OrbitScores:
    """One value per azimuth of `AZIMUTHS_DEG`."""

    holes: tuple[float, ...]  # share 0..1 of the eroded, closed silhouette with alpha < 0.98
    components: tuple[int, ...]  # of the silhouette, specks excluded
    specks: tuple[int, ...]  # smaller parts

    @property
    def worst_hole(self) -> float:
        """The largest share of holes."""
        return max(self.holes)


def psnr_db(image: np.ndarray, target: np.ndarray, where: np.ndarray) -> float:
    """Peak signal-to-noise ratio of [H, W, 3] pictures 0..1 over the pixels `where` [H, W]; infinite if equal.

    Raises:
        ValueError: If no pixel is chosen.
    """
    if not where.any():
        raise ValueError("psnr_db needs at least one pixel")
    error = np.square(np.asarray(image, np.float64)[where] - np.asarray(target, np.float64)[where]).mean()
    return float(np.inf if error == 0 else -10.0 * np.log10(error))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boolean arrays; 1 if both are empty."""
    union = np.count_nonzero(a | b)
    return 1.0 if union == 0 else np.count_nonzero(a & b) / union


def photo_scores(
    splats: PosedSplats, camera: PinholeCamera, image: np.ndarray, mask: np.ndarray, held: np.ndarray
) -> PhotoScores:
    """Compare posed Gaussians with the photo.

    Args:
        splats: in the photo's pose.
        camera: of the photo.
        image: uint8 [H, W, 3].
        mask: float [H, W] 0..1.
        held: bool [H, W], left out.
    """
    (drawn,), (alpha,) = render(splats, to_cameras(camera))
    person, counts = np.asarray(mask) > 0.5, ~np.asarray(held, bool)
    eroded = ndimage.binary_erosion(person, iterations=2, border_value=1) & counts
    photo = np.asarray(image) / 255.0
    return PhotoScores(
        alpha_iou=iou((alpha > SILHOUETTE_ALPHA) & counts, person & counts),
        psnr_db=psnr_db(drawn, photo, person & counts),
        psnr_eroded_db=psnr_db(drawn, photo, eroded),
    )


def orbit_scores(
    splats: PosedSplats, size_px: int = 384, proxy: tuple[np.ndarray, np.ndarray] | None = None
) -> OrbitScores:
    """Holes and parts of the silhouette from 12 sides.

    Args:
        splats: in any pose.
        size_px: side of the square pictures.
        proxy: vertices [V, 3] in the same pose and triangles [T, 3] of the surface below: what it covers must be
            opaque, and daylight between two limbs is no hole. Without it cracks are found by closing the silhouette.
    """
    low, high = splats.positions_m.min(0), splats.positions_m.max(0)
    extent = float(np.linalg.norm(high - low))
    # At 2.5 extents the subject's sphere of diameter `extent` fills 0.9 of the frame.
    cameras = orbit_cameras((low + high) / 2, 2.5 * extent, AZIMUTHS_DEG, 0.0, 0.9 * 2.5 * size_px, size_px)
    _, alphas = render(splats, cameras)
    solid = [None] * len(alphas) if proxy is None else [_covered(*proxy, cameras, k) for k in range(len(alphas))]
    results = [(hole_share(a, s), *silhouette_parts(a)) for a, s in zip(alphas, solid, strict=True)]
    holes, components, specks = zip(*results, strict=True)
    return OrbitScores(holes, components, specks)


def _covered(vertices_m: np.ndarray, triangles: np.ndarray, cameras: Cameras, index: int) -> np.ndarray:
    """[H, W] bool: where the mesh is in one of the cameras."""
    intrinsics = cameras.K[index].numpy()
    camera = PinholeCamera(
        cameras.w2c[index].numpy(),
        *(float(intrinsics[place]) for place in ((0, 0), (1, 1), (0, 2), (1, 2))),
        cameras.width,
        cameras.height,
    )
    return view_mesh(vertices_m, triangles, camera).nearest.covered


def hole_share(alpha: np.ndarray, solid: np.ndarray | None = None) -> float:
    """Share of the eroded silhouette of alpha [H, W] that is not opaque.

    Args:
        alpha: 0..1.
        solid: [H, W] bool of what must be there; None closes the silhouette instead.
    """
    padded = np.pad(alpha, CLOSE_PX + 1)
    silhouette = padded > SILHOUETTE_ALPHA
    if solid is None:
        silhouette = ndimage.binary_closing(silhouette, _disc(CLOSE_PX))
    else:
        silhouette |= np.pad(solid, CLOSE_PX + 1)
    inner = ndimage.binary_erosion(silhouette, _disc(ERODE_PX))
    return float((padded[inner] < OPAQUE_ALPHA).mean()) if inner.any() else 0.0


def silhouette_parts(alpha: np.ndarray) -> tuple[int, int]:
    """Connected parts of the silhouette of alpha [H, W]: those that matter, and specks."""
    labels, count = ndimage.label(alpha > SILHOUETTE_ALPHA, np.ones((3, 3)))
    return _parts(np.bincount(labels.ravel(), minlength=count + 1)[1:])


def cloud_parts(splats: PosedSplats, reach: float = 2.0, neighbours: int = 12) -> tuple[int, int]:
    """Connected parts of the cloud itself: those that matter, and specks.

    Two Gaussians touch when their centres are nearer than `reach` times the sum of their largest standard deviations;
    only the nearest `neighbours` of each are tried.
    """
    count = len(splats.positions_m)
    if count == 0:
        return 0, 0
    size = splats.scales_m.max(1)
    distance, other = cKDTree(splats.positions_m).query(splats.positions_m, min(neighbours + 1, count))
    distance, other = distance.reshape(count, -1), other.reshape(count, -1)
    touching = distance <= reach * (size[:, None] + size[other])
    rows = np.repeat(np.arange(count), touching.sum(1))
    graph = coo_matrix((np.ones(len(rows), bool), (rows, other[touching])), (count, count))
    _, labels = connected_components(graph, directed=False)
    return _parts(np.bincount(labels))


def _parts(sizes: np.ndarray) -> tuple[int, int]:
    matters = int((sizes >= SMALLEST_PART * sizes.sum()).sum())
    return matters, len(sizes) - matters


def _disc(radius_px: int) -> np.ndarray:
    y, x = np.mgrid[-radius_px : radius_px + 1, -radius_px : radius_px + 1]
    return x * x + y * y <= radius_px * radius_px
