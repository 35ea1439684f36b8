"""Direction and colour of hair strands: the photo's where seen, continued round the head elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from backend.human.head_view import HeadView, sample
from backend.human.head_warp import pixels

if TYPE_CHECKING:
    from backend.human.hair import Skull, Strands

SMOOTHING_ROUNDS = 25
TENSOR_SIGMA_PX = 6.0
FLOW_WEIGHT = 0.03  # pull towards the flow from the crown down where the photo shows no strands
SOURCES = 120  # seen points whose mean colours a hidden one
STRAND_LENGTH_M, STRAND_WIDTH_M = 0.012, 0.0022


@dataclass(frozen=True)
class HairLook:
    """colours [N, 3], confidence [N] 0..1, middle [3] the hair's median colour."""

    colours: np.ndarray
    confidence: np.ndarray
    middle: np.ndarray


def strand_directions(view: HeadView, skull: Skull, strands: Strands) -> np.ndarray:
    """Unit strand directions [N, 3] in rest space, tangential to the shell.

    The photo's structure tensor gives them where hair is seen; averaging of tensors over neighbours carries them round.
    """
    points = skull.to_camera(strands.positions_m)
    uv = pixels(points, view.camera)
    normals = strands.normals @ skull.turn.T
    facing = -(normals * points).sum(axis=1) / np.linalg.norm(points, axis=1)
    angle, coherence = _image_orientation(view, uv)
    coherence = coherence * (facing > 0.25)
    flat = np.c_[np.cos(angle), np.sin(angle), np.zeros(len(angle))]
    steep = np.where(abs(normals[:, 2]) < 0.2, np.where(normals[:, 2] < 0, -0.2, 0.2), normals[:, 2])
    flat[:, 2] = -(flat * normals).sum(axis=1) / steep
    seen = (flat / np.linalg.norm(flat, axis=1, keepdims=True)) @ skull.turn
    crown = skull.centre_m + skull.unit_m * np.array([0, 1.83, -0.75])
    flow = strands.positions_m - crown
    flow -= (flow * strands.normals).sum(axis=1, keepdims=True) * strands.normals
    flow /= np.linalg.norm(flow, axis=1, keepdims=True) + 1e-9
    tensor = np.einsum("ni,nj->nij", seen, seen) * coherence[:, None, None]
    tensor += FLOW_WEIGHT * np.einsum("ni,nj->nij", flow, flow)
    own = (0.15 + 0.85 * coherence)[:, None, None]
    _, near = cKDTree(strands.positions_m).query(strands.positions_m, k=12)
    smooth = tensor.copy()
    for _ in range(SMOOTHING_ROUNDS):
        smooth = own * tensor + (1 - own) * smooth[near].mean(axis=1)
    return _main_axis(smooth, strands.normals)


def _image_orientation(view: HeadView, uv_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle of the strands in the image [N] and its coherence [N] 0..1 from the structure tensor inside the hair."""
    grey = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY)
    gx, gy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    inside = cv2.erode((view.hair > 0.5).astype(np.float32), np.ones((7, 7), np.uint8))
    xx, yy, xy = (cv2.GaussianBlur(p * inside, (0, 0), TENSOR_SIGMA_PX) for p in (gx * gx, gy * gy, gx * gy))
    angle = 0.5 * np.arctan2(2 * xy, xx - yy) + np.pi / 2
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-6)
    at = [uv_px[:, 1] - 0.5, uv_px[:, 0] - 0.5]
    angle = map_coordinates(angle, at, order=0, mode="nearest")
    return angle, np.clip(sample(coherence, uv_px), 0, 1) * (sample(inside, uv_px) > 0.5)


def _main_axis(tensors: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """[N, 3] strongest direction of tensors [N, 3, 3] in the planes of unit normals [N, 3]."""
    flat = np.eye(3) - np.einsum("ni,nj->nij", normals, normals)
    projected = flat @ tensors @ flat
    axis = np.linalg.eigh(0.5 * (projected + projected.transpose(0, 2, 1)))[1][:, :, 2]
    axis -= (axis * normals).sum(axis=1, keepdims=True) * normals
    return axis / (np.linalg.norm(axis, axis=1, keepdims=True) + 1e-9)


def colour_hair(view: HeadView, skull: Skull, strands: Strands, along: np.ndarray) -> HairLook:
    """The photo on the seen outer shell, elsewhere the mean of matching seen points plus strands of their variation.

    Args:
        view: The head's crop.
        skull: The head.
        strands: Hair points.
        along: [N, 3] strand directions.
    """
    points = skull.to_camera(strands.positions_m)
    uv = pixels(points, view.camera)
    facing = -((strands.normals @ skull.turn.T) * points).sum(axis=1) / np.linalg.norm(points, axis=1)
    outer = strands.share > 0.9
    confidence = np.clip(facing, 0, 1) ** 1.5 * (sample(view.hair, uv) > 0.6) * sample(view.mask_inside, uv) * outer
    photo = sample(view.image, uv)
    source = np.flatnonzero(confidence > 0.25)
    if len(source) < 60:
        source = np.flatnonzero(outer & (sample(view.hair, uv) > 0.5))
    middle = np.median(photo[source], axis=0) if len(source) else np.median(view.image[view.hair > 0.5], axis=0)
    seen = confidence > 0.12
    colours = np.tile(middle, (len(photo), 1))
    colours[seen] = photo[seen]
    if len(source) > SOURCES:
        hidden = np.flatnonzero(~seen)
        colours[hidden] = _hidden_colours(skull, strands, along, photo, source, hidden, middle)
    deep = strands.share < 0.9
    colours[deep] *= np.where(strands.share[deep] < 0.5, 0.62, 0.82)[:, None]
    return HairLook(colours, confidence, middle)


def _hidden_colours(
    skull: Skull,
    strands: Strands,
    along: np.ndarray,
    photo: np.ndarray,
    source: np.ndarray,
    hidden: np.ndarray,
    middle: np.ndarray,
) -> np.ndarray:
    """[H, 3]: low-passed colours of seen points of the same height and side plus residuals smeared along strands."""
    key = np.stack(
        [
            0.4 * abs(strands.positions_m[:, 0] - skull.centre_m[0]),
            strands.positions_m[:, 1],
            0.15 * strands.positions_m[:, 2],
        ],
        1,
    )
    _, near = cKDTree(key[source]).query(key[hidden], k=SOURCES)
    smooth = photo[source][near].mean(axis=1)
    pick = near[np.arange(len(hidden)), np.random.default_rng(3).integers(0, SOURCES, len(hidden))]
    residual = np.zeros_like(photo)
    residual[hidden] = photo[source][pick] - smooth
    _, around = cKDTree(strands.positions_m).query(strands.positions_m[hidden], k=24)
    arm = strands.positions_m[around] - strands.positions_m[hidden][:, None]
    direction = along[hidden][:, None]
    length = (arm * direction).sum(axis=2)
    width = np.linalg.norm(np.cross(arm, direction), axis=2)
    weight = np.exp(-((length / STRAND_LENGTH_M) ** 2) - (width / STRAND_WIDTH_M) ** 2)
    weight /= weight.sum(axis=1, keepdims=True)
    grain = (residual[around] * weight[..., None]).sum(axis=1)
    back = np.clip((skull.centre_m[2] + 0.02 - strands.positions_m[hidden, 2]) / 0.08, 0, 1)[:, None]
    return smooth * (0.75 - 0.35 * back) + middle * (0.25 + 0.35 * back) + 1.3 * grain
