"""What each training frame is compared with: mask, depth, normals, labels, seams, colours without light, the face.

Every target has a model that makes it best and a fallback that needs none; `TargetNotes` says which one it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar, overload

import cv2
import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from backend.diffusion.interfaces import FaceIdentity, Generator, SurfaceEstimator
from backend.human.camera import PinholeCamera
from backend.human.frame_checks import KeypointDetector, MediapipeKeypoints
from backend.human.video_camera import Subject
from backend.human.zbuffer import MeshView, view_mesh
from backend.perception.labels import Label
from backend.raster import Cameras
from backend.splats.light import find_light, relit
from backend.splats.persona_losses import TrainingFrame
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.context import Context

DEPTH_STEP_M = 1e-4
"""Depth is kept in steps of a tenth of a millimetre."""

SEAM_JUMP_M = 0.02
"""Neighbouring pixels that lie further apart on the body show a border of what the photo sees (the paper's threshold of
its Sobel filter on canonical places)."""

SEAM_SHARE = 0.015
"""Half width of the band about it, of the person's size (released code)."""

FACE_SEAM_SHARE = 0.06
"""The same on the face patch, of the patch's part of the person (released code)."""

SHADE_SMOOTH = 0.02
"""Over which light is averaged before it is taken out, of the root of the person's area."""

WHITE_TOLERANCE = 0.035
"""Least difference from the background's colour that is the person, 0..1; noise of the background raises it."""


class Matting(Generator, Protocol):
    """Soft edges."""

    def alpha(self, image: np.ndarray, mask: np.ndarray, context: Context) -> np.ndarray:
        """Float32 [H, W] of uint8 [H, W, 3] and what is known of the mask [H, W]."""
        ...


class Parser(Generator, Protocol):
    """Labels of pixels."""

    def parse(self, image: np.ndarray, context: Context, mask: np.ndarray | None = None) -> np.ndarray:
        """Uint8 [H, W] of `Label`."""
        ...


class AlbedoModel(Generator, Protocol):
    """Colours without light."""

    def albedo(self, image: np.ndarray, context: Context) -> np.ndarray:
        """Uint8 [H, W, 3] of uint8 [H, W, 3]."""
        ...


class FaceModel(Generator, Protocol):
    """A face with more detail."""

    def restore(self, image: np.ndarray, landmarks_px: np.ndarray, strength: float, context: Context) -> np.ndarray:
        """Uint8 [H, W, 3] of uint8 [H, W, 3] and five landmarks [5, 2]."""
        ...


Made = TypeVar("Made")
Maker = Callable[[], Made | None]


def _none() -> None:
    return None


@dataclass(frozen=True)
class Helpers:
    """Models that look at frames. Each is made when its turn comes, so that one at a time is in memory.

    Attributes:
        detector: Of keypoints.
        identity, surface, matting, parsing, albedo, face: Give the model, or None where it is not installed.
    """

    detector: KeypointDetector = field(default_factory=MediapipeKeypoints)
    identity: Maker[FaceIdentity] = _none
    surface: Callable[[], Sequence[SurfaceEstimator]] = tuple
    matting: Maker[Matting] = _none
    parsing: Maker[Parser] = _none
    albedo: Maker[AlbedoModel] = _none
    face: Maker[FaceModel] = _none


class TargetNotes:
    """Which model or which fallback made each kind of target, for the result's record."""

    def __init__(self) -> None:
        """Nothing is made yet."""
        self.made_by: dict[str, str] = {}

    def by(self, target: str, model: Generator | None, fallback: str) -> None:
        """Remember what made a target: a model, or the fallback in words."""
        words = fallback if model is None else ", ".join(str(source) for source in model.sources)
        self.made_by[target] = words

    def lines(self) -> tuple[str, ...]:
        """One line per target."""
        return tuple(f"{target}: {words}" for target, words in self.made_by.items())


@dataclass(frozen=True)
class PackedFrame:
    """A `TrainingFrame` at a fifth of its size, with what later losses may ask for.

    Attributes:
        image: uint8 [H, W, 3]. mask: uint8 [H, W]. labels: uint8 [H, W] of `Label`.
        depth_steps: uint16 [H, W] in `DEPTH_STEP_M` beyond `nearest_m`; 0 unknown.
        nearest_m: Where depth begins.
        normals: int8 [H, W, 3] world axes, 127 is one; zero where unknown.
        seam: bool [H, W], or None for generated frames.
        pose: float32 [55, 3]. translation_m: float32 [3]. actions: float32 [A].
        camera: Of this picture. captured: A photograph.
    """

    image: np.ndarray
    mask: np.ndarray
    labels: np.ndarray
    depth_steps: np.ndarray
    nearest_m: float
    normals: np.ndarray
    seam: np.ndarray | None
    pose: np.ndarray
    translation_m: np.ndarray
    actions: np.ndarray
    camera: PinholeCamera
    captured: bool

    def unpack(self, device: str = "cpu") -> TrainingFrame:
        """The frame as the optimiser takes it; bytes become numbers on the device."""

        def sent(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        def small(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(np.ascontiguousarray(values, np.float32), device=device)

        steps = sent(self.depth_steps.astype(np.int32)).float()
        w2c, intrinsics = small(self.camera.w2c[None]), small(self.camera.intrinsics_px[None])
        return TrainingFrame(
            image=unpacked_colours(self.image, device),
            mask=sent(self.mask).float() / 255,
            pose=small(self.pose),
            translation_m=small(self.translation_m),
            actions=small(self.actions),
            cameras=Cameras(w2c, intrinsics, self.camera.width, self.camera.height),
            captured=self.captured,
            depth=torch.where(steps > 0, self.nearest_m + DEPTH_STEP_M * steps, 0.0),
            normals=(sent(self.normals).float() / 127).permute(2, 0, 1).contiguous(),
            seam=None if self.seam is None else sent(self.seam).float(),
            labels=sent(self.labels),
        )


def unpacked_colours(image: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """float32 [3, H, W] 0..1 of bytes [H, W, 3]."""
    sent = torch.from_numpy(np.ascontiguousarray(image)).to(device)
    return (sent.float() / 255).permute(2, 0, 1).contiguous()


class Packed(Protocol):
    """What becomes a training frame."""

    def unpack(self, device: str = "cpu") -> TrainingFrame:
        """The frame, its tensors on `device`."""
        ...


P = TypeVar("P", bound=Packed)


class FrameStore(Sequence[TrainingFrame], Generic[P]):
    """Frames that are unpacked when they are looked at: 900 of them unpacked fill 15 GB."""

    def __init__(self, packed: Sequence[P], device: str = "cpu") -> None:
        """Keep them; `device` is where they are unpacked."""
        self.packed, self._device = tuple(packed), device

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> TrainingFrame: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> TrainingFrame | Self:
        """A frame, or a part of the store."""
        if isinstance(index, slice):
            return type(self)(self.packed[index], self._device)
        return self.packed[index].unpack(self._device)

    def __iter__(self) -> Iterator[TrainingFrame]:
        """All frames in turn."""
        return (frame.unpack(self._device) for frame in self.packed)


@dataclass(frozen=True)
class Pictured:
    """A picture with what is known of the pose in it; of a crop all at once.

    Attributes:
        image: uint8 [H, W, 3]. mask: float32 [H, W]. camera: Of the picture.
        pose: [55, 3]. translation_m: [3]. actions: [A]. captured: A photograph.
    """

    image: np.ndarray
    mask: np.ndarray
    camera: PinholeCamera
    pose: np.ndarray
    translation_m: np.ndarray
    actions: np.ndarray
    captured: bool

    def framed(self, margin: float = 0.04, longest_px: int = 0) -> Pictured:
        """Cropped to the mask with a margin of its larger side; shrunk to `longest_px` where longer (0: never)."""
        rows, columns = np.flatnonzero((self.mask > 0.5).any(1)), np.flatnonzero((self.mask > 0.5).any(0))
        if not len(rows):
            return self
        grow = margin * max(np.ptp(rows), np.ptp(columns)) + 2
        top, left = (max(int(v - grow), 0) for v in (rows[0], columns[0]))
        bottom = min(int(rows[-1] + grow) + 1, self.mask.shape[0])
        right = min(int(columns[-1] + grow) + 1, self.mask.shape[1])
        image, mask = self.image[top:bottom, left:right], self.mask[top:bottom, left:right]
        scale = min(1.0, longest_px / max(image.shape[:2])) if longest_px else 1.0
        width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
        sx, sy = width / image.shape[1], height / image.shape[0]
        if scale < 1:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
            mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA)
        c = self.camera
        camera = PinholeCamera(c.w2c, c.fx * sx, c.fy * sy, (c.cx - left) * sx, (c.cy - top) * sy, width, height)
        return Pictured(image, mask, camera, self.pose, self.translation_m, self.actions, self.captured)

    def proxy(self, subject: Subject) -> MeshView:
        """The body's outside as this picture's camera sees it."""
        posed = subject.posed_m(self.pose, self.translation_m, self.actions)
        return view_mesh(posed, outside(subject), self.camera)


def outside(subject: Subject) -> np.ndarray:
    """Triangles [T, 3] that can be seen from outside."""
    body = subject.body
    return body.triangles[body.outer[body.triangles].all(1)]


def pack(
    picture: Pictured,
    subject: Subject,
    labels: np.ndarray,
    estimators: Sequence[SurfaceEstimator],
    parser: Parser | None,
    context: Context,
    seam_share: float = SEAM_SHARE,
) -> PackedFrame:
    """All targets of one picture.

    Args:
        picture: Cropped.
        subject: Who is in it.
        labels: [V] of the proxy, see `vertex_labels`; also those of the photo's own pixels where there is no parser.
        estimators: Of normals and depth; empty takes both from the proxy.
        parser: Of labels; None takes the proxy's.
        context: For cancelling.
        seam_share: Half width of the seam band, see `seam_band`.
    """
    context.raise_if_cancelled()
    view = picture.proxy(subject)
    depth, normals = surface_targets(picture, view, estimators, context)
    if parser is None:
        shown = spread_labels(labels, view, picture.mask)
    else:
        shown = parser.parse(picture.image, context, picture.mask)
    known = depth > 0
    nearest = float(depth[known].min()) - DEPTH_STEP_M if known.any() else 0.0
    steps = np.where(known, np.clip(np.round((depth - nearest) / DEPTH_STEP_M), 1, 65535), 0).astype(np.uint16)
    return PackedFrame(
        image=picture.image,
        mask=np.round(255 * picture.mask).astype(np.uint8),
        labels=shown.astype(np.uint8),
        depth_steps=steps,
        nearest_m=nearest,
        normals=np.round(127 * normals).astype(np.int8),
        seam=seam_band(view, subject, labels, picture.mask, seam_share) if picture.captured else None,
        pose=np.asarray(picture.pose, np.float32),
        translation_m=np.asarray(picture.translation_m, np.float32),
        actions=np.asarray(picture.actions, np.float32),
        camera=picture.camera,
        captured=picture.captured,
    )


def surface_targets(
    picture: Pictured, view: MeshView, estimators: Sequence[SurfaceEstimator], context: Context
) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] in metres along the camera's axis and unit normals [H, W, 3] in world axes; 0 where unknown.

    An estimator's disparity is known up to scale and shift: they are fitted to the proxy's inverse depth.
    """
    depth, normals = proxy_surface(view, picture.camera)
    inside = picture.mask > 0.5
    for estimator in estimators:
        found = estimator.estimate(picture.image, context)
        if found.normals is not None:
            normals = np.where(inside[..., None], found.normals @ picture.camera.w2c[:3, :3], 0)
        if found.disparity is not None:
            depth = _metres(found.disparity, depth, inside)
    return np.where(inside, depth, 0), np.where(inside[..., None], normals, 0)


def _metres(disparity: np.ndarray, proxy_m: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Depth of a disparity [H, W] by a robust line through the proxy's inverse depth; the proxy's where none fits."""
    both = inside & (proxy_m > 0)
    if both.sum() < 50:
        return proxy_m
    d, inverse = disparity[both].astype(np.float64), 1 / proxy_m[both]
    weight = np.ones_like(d)
    line = np.zeros(2)
    for _ in range(5):
        rows = np.stack([d, np.ones_like(d)], 1) * weight[:, None]
        line = np.linalg.lstsq(rows, inverse * weight, rcond=None)[0]
        off = np.abs(inverse - line[0] * d - line[1])
        weight = np.sqrt(1 / (1 + (off / max(1.5 * float(np.median(off)), 1e-9)) ** 2))
    near = line[0] * disparity + line[1]
    if line[0] <= 0 or (near[both] <= 0.3 * inverse.min()).mean() > 0.01:
        return proxy_m
    return np.where(inside & (near > 0.3 * inverse.min()), 1 / np.maximum(near, 1e-6), 0)


def proxy_surface(view: MeshView, camera: PinholeCamera) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] and smooth unit normals [H, W, 3] in world axes of a mesh; 0 where it is not."""
    depth = np.where(view.nearest.covered, view.nearest.depth_m, 0)
    corners = view.points_camera_m[view.triangles]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    vertices = np.zeros_like(view.points_camera_m)
    for corner in range(3):
        np.add.at(vertices, view.triangles[:, corner], faces)
    rows, columns = np.nonzero(view.nearest.covered)
    shares = view.barycentric(rows, columns)
    found = np.einsum("nk,nkc->nc", shares, vertices[view.triangles[view.nearest.triangle[rows, columns]]])
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    found = np.where(found[:, 2:] > 0, -found, found)  # a visible surface faces the camera
    normals = np.zeros((*depth.shape, 3))
    normals[rows, columns] = found @ camera.w2c[:3, :3]
    return depth, normals


def vertex_labels(subject: Subject) -> np.ndarray:
    """Label of every vertex [V] of the proxy: the photo's where it shows the vertex, else that of the nearest seen one.

    Hands that the photo does not show are skin.
    """
    personal, person = subject.personal, subject.person
    posed = subject.posed_m(personal.pose, personal.translation_m, personal.actions)
    view = view_mesh(posed, outside(subject), personal.camera)
    height, width = person.labels.shape
    column, row = (np.floor(view.uv_px[:, axis]).astype(int) for axis in (0, 1))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    row, column = np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)
    near = view.points_camera_m[:, 2] < view.nearest.depth_m[row, column] + 0.012
    labels = person.labels[row, column]
    seen = inside & near & (labels != Label.NONE) & subject.body.outer
    if not seen.any():
        return np.full(len(posed), Label.OTHER, np.uint8)
    rest = np.asarray(subject.rest_m, np.float64)
    nearest = cKDTree(rest[seen]).query(rest)[1]
    made = np.where(seen, labels, labels[seen][nearest]).astype(np.uint8)
    first = subject.body.skin_weights.argmax(1)
    hands = np.isin(first, [JOINT_NAMES.index("left_wrist"), JOINT_NAMES.index("right_wrist"), *range(25, 55)])
    made[hands & ~seen] = Label.SKIN
    return made


def spread_labels(labels: np.ndarray, view: MeshView, mask: np.ndarray) -> np.ndarray:
    """Labels [H, W] of a mask: the proxy's, beyond its outline those of the nearest pixel that it covers."""
    made = np.zeros(mask.shape, np.uint8)
    covered = view.nearest.covered
    made[covered] = labels[view.triangles[view.nearest.triangle[covered], 0]]
    if covered.any():
        nearest = distance_transform_edt(~covered, return_distances=False, return_indices=True)
        made = made[tuple(np.asarray(nearest))]
    return np.where(mask > 0.5, made, np.uint8(Label.NONE))


def seam_band(
    view: MeshView, subject: Subject, labels: np.ndarray, mask: np.ndarray, share: float = SEAM_SHARE
) -> np.ndarray:
    """Bool [H, W]: a band about the borders of what the photo sees of the body, without the face.

    Args:
        view: The proxy in the picture.
        subject: Who it is.
        labels: [V] of the proxy.
        mask: [H, W] of the person.
        share: Half width of the band, of the height that the proxy covers.
    """
    covered = view.nearest.covered
    rows, columns = np.nonzero(covered)
    place = np.full((*covered.shape, 3), 1e3)  # far from any body, so that the outline is a border too
    shares = view.barycentric(rows, columns)
    corners = np.asarray(subject.rest_m, np.float64)[view.triangles[view.nearest.triangle[rows, columns]]]
    place[rows, columns] = np.einsum("nk,nkc->nc", shares, corners)
    border = np.zeros(covered.shape, bool)
    for axis in (0, 1):
        jump = np.linalg.norm(np.diff(place, axis=axis), axis=-1) > SEAM_JUMP_M
        front = [slice(None)] * 2
        back = [slice(None)] * 2
        front[axis], back[axis] = slice(None, -1), slice(1, None)
        border[tuple(front)] |= jump
        border[tuple(back)] |= jump
    face = np.zeros(covered.shape, bool)
    face[covered] = face_vertices(subject, labels)[view.triangles[view.nearest.triangle[covered], 0]]
    radius = max(1, round(share * float(np.ptp(rows)))) if len(rows) else 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    band = cv2.dilate((border & ~face).astype(np.uint8), disc) > 0
    return band & ~face & (mask > 0)


def face_vertices(subject: Subject, labels: np.ndarray) -> np.ndarray:
    """Bool [V]: the front of the head where the photo shows skin."""
    body, rest = subject.body, np.asarray(subject.rest_m, np.float64)
    on_head = body.skin_weights[:, [JOINT_NAMES.index(name) for name in ("head", "jaw")]].sum(1) > 0.5
    middle = subject.personal.joints_m[JOINT_NAMES.index("head")]
    eyes = [JOINT_NAMES.index(f"{side}_eye_smplhf") for side in ("left", "right")]
    ahead = rest[:, 2] > (middle[2] + subject.personal.joints_m[eyes, 2].mean()) / 2
    return on_head & ahead & body.outer & (labels == Label.SKIN)


def plain_mask(image: np.ndarray) -> tuple[np.ndarray, bool]:
    """What differs from a plain background, and whether the background is plain.

    Background is what has the border's colour and is connected to the border: a white shirt is not.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        float32 [H, W] 0..1 with soft edges, and whether nearly all of the border has one colour.
    """
    rgb = image.astype(np.float32) / 255
    border = np.concatenate([rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), rgb[:, :2].reshape(-1, 3),
                             rgb[:, -2:].reshape(-1, 3)])  # fmt: skip
    colour = np.median(border, axis=0)
    spread = np.abs(border - colour).max(1)
    noise = 1.4826 * float(np.median(spread))
    limit = max(WHITE_TOLERANCE, 4 * noise)
    plain = float((spread < 3 * limit).mean()) > 0.9 and limit < 0.1
    away = np.abs(rgb - colour).max(-1)
    parts = cv2.connectedComponents((away < limit).astype(np.uint8), connectivity=4)[1]
    edge = np.unique(np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]]))
    outer = np.isin(parts, edge[edge > 0])
    hard = _largest(~outer)
    soft = np.clip(away / (3 * limit), 0, 1)
    inner = cv2.erode(hard.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.where(inner, 1, np.where(hard, np.maximum(soft, 0.34), 0)).astype(np.float32), plain


def _largest(mask: np.ndarray) -> np.ndarray:
    """A mask without specks of less than a hundredth of its largest piece."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 3:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return np.isin(parts, np.flatnonzero(areas >= 0.01 * areas.max()))


def unlit(picture: Pictured, view: MeshView, labels: np.ndarray, to_camera: np.ndarray, seed: int) -> np.ndarray:
    """The picture with the fitted light taken out, uint8 [H, W, 3]; its mean brightness stays.

    Args:
        picture: Of the photo.
        view: The proxy in it.
        labels: [H, W], surfaces of one colour.
        to_camera: [3] from the person to the camera.
        seed: Of the samples.
    """
    _, normals = proxy_surface(view, picture.camera)
    known = view.nearest.covered & (picture.mask > 0.9)
    if not known.any():
        return picture.image
    rgb = picture.image / 255.0
    light = find_light(normals[known], rgb[known], labels[known], np.ones(int(known.sum())), to_camera, seed)
    nearest = distance_transform_edt(~known, return_distances=False, return_indices=True)
    shade = light.at(normals[tuple(np.asarray(nearest))].reshape(-1, 3)).reshape(known.shape)
    # clothes round off what the body under them turns; beyond its outline the nearest normal is a guess
    shade = cv2.GaussianBlur(shade, (0, 0), SHADE_SMOOTH * float(np.sqrt(known.sum())))
    factor = float(shade[known].mean()) / shade
    made = relit(rgb.reshape(-1, 3), factor.ravel()).reshape(picture.image.shape)
    share = np.clip(2 * picture.mask - 1, 0, 1)[..., None]  # the outline's pixels show the background too
    return np.clip((share * made + (1 - share) * rgb) * 255 + 0.5, 0, 255).astype(np.uint8)


__all__ = [
    "FrameStore",
    "Helpers",
    "PackedFrame",
    "Pictured",
    "TargetNotes",
    "pack",
    "plain_mask",
    "proxy_surface",
    "seam_band",
    "surface_targets",
    "unlit",
    "vertex_labels",
]
