"""The head's part of the photo: an enlarged square crop with mask, hair label and landmarks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from scipy.ndimage import map_coordinates

from backend.human.camera import PinholeCamera
from backend.perception.people import Label, Person

CROP_PX = 768
CROP_FACE_HEIGHTS = 2.35
FOREHEAD = (10, 151, 109, 338, 108, 337)
BEARDLESS = (4, 5, 195, 197, 8, 117, 346)
BALD_LAB = 10.0  # a crown pixel this near to a colour of the face counts as skin
BALD_SHARE = 0.5  # fewer pixels unlike skin than this share of the crown: no hair is seeded
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
LEFT_LIDS = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
RIGHT_LIDS = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
CHEEKS_AND_NOSE = (50, 280, 205, 425, 117, 346, 4, 195)


@dataclass(frozen=True)
class HeadView:
    """A square crop round the head, `CROP_PX` a side; pixel centres at +0.5.

    Attributes:
        image: [S, S, 3] float32 0..1 display sRGB.
        mask: [S, S] float32 0..1, the person.
        hair: [S, S] float32 0..1.
        labels: [S, S] uint8 `Label`.
        landmarks_px: [478, 3] in px of the crop, or [0, 3].
        camera: Of the crop.
        face_height_px: Height of the face in the crop.
        zoom: Crop px per working-image px.
    """

    image: np.ndarray
    mask: np.ndarray
    hair: np.ndarray
    labels: np.ndarray
    landmarks_px: np.ndarray
    camera: PinholeCamera
    face_height_px: float
    zoom: float

    @cached_property
    def skin_colour(self) -> np.ndarray:
        """[3] median colour of cheeks and nose, or of the skin label without landmarks."""
        if len(self.landmarks_px):
            return np.median(sample(self.image, self.landmarks_px[list(CHEEKS_AND_NOSE), :2]), axis=0)
        skin = self.image[self.labels == Label.SKIN]
        return np.median(skin, axis=0) if len(skin) > 50 else np.array([0.72, 0.55, 0.46])

    @cached_property
    def skin_distance(self) -> np.ndarray:
        """[S, S] Lab distance to `skin_colour`; lightness counts half, since the neck lies in shadow."""
        return lab_distance(self.image, self.skin_colour, lightness=0.5)

    @cached_property
    def mask_inside(self) -> np.ndarray:
        """[S, S] mask eroded by about 6 px: no background in the colours."""
        return cv2.erode(self.mask, np.ones((13, 13), np.uint8))

    def polygon(self, indices: tuple[int, ...], shrink: float = 1.0, blur_px: float = 0.0) -> np.ndarray:
        """[S, S] float32 mask of a landmark polygon, shrunk about its mean and blurred."""
        points = self.landmarks_px[list(indices), :2]
        points = (points - points.mean(axis=0)) * shrink + points.mean(axis=0)
        out = np.zeros(self.mask.shape, np.float32)
        cv2.fillPoly(out, [np.round(points).astype(np.int32)], 1.0)
        return cv2.GaussianBlur(out, (0, 0), blur_px) if blur_px > 0 else out


OPEN_MOUTH = 0.012
"""Lips farther apart than this share of the face height show the inside of the mouth."""


def mouth_opening(view: HeadView) -> np.ndarray | None:
    """[S, S] bool mask of what the photo shows between the lips, or None where the mouth is closed."""
    if not len(view.landmarks_px):
        return None
    gap = np.linalg.norm(view.landmarks_px[13, :2] - view.landmarks_px[14, :2])
    if gap < OPEN_MOUTH * view.face_height_px:
        return None
    return cv2.erode(view.polygon(INNER_LIPS), np.ones((3, 3), np.uint8)) > 0


def teeth_edge_row(view: HeadView) -> float | None:
    """Row (px) of the lower edge of the teeth that a smile shows in its middle third, or None."""
    mouth = mouth_opening(view)
    if mouth is None or mouth.sum() < 100:
        return None
    light = view.image.mean(axis=2)
    bright = mouth & (light > max(0.45, 0.62 * np.percentile(light[mouth], 90)))
    columns = np.flatnonzero(mouth.any(axis=0))
    middle = slice(columns[len(columns) // 3], columns[2 * len(columns) // 3])
    rows = [np.flatnonzero(c).max() for c in bright[:, middle].T if c.any()]
    return float(np.median(rows) + 1) if len(rows) > 5 else None


def sample(field: np.ndarray, uv_px: np.ndarray) -> np.ndarray:
    """Bilinear values of an image [H, W] or [H, W, C] at points [N, 2] (pixel centres at +0.5)."""
    at = [uv_px[:, 1] - 0.5, uv_px[:, 0] - 0.5]
    if field.ndim == 2:
        return map_coordinates(field, at, order=1, mode="nearest")
    return np.stack([map_coordinates(field[..., c], at, order=1, mode="nearest") for c in range(field.shape[2])], 1)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """CIE Lab of sRGB colours [..., 3] in 0..1."""
    flat = np.clip(colours, 0, 1).astype(np.float32).reshape(1, -1, 3)
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(colours.shape)


def lab_distance(colours: np.ndarray, reference: np.ndarray, lightness: float) -> np.ndarray:
    """Lab distance of colours [..., 3] to a reference [3] (or [..., 3]), lightness weighted by `lightness`."""
    delta = to_lab(np.asarray(colours)) - to_lab(np.asarray(reference))
    return np.linalg.norm(delta * [lightness, 1, 1], axis=-1)


def head_view(person: Person, camera: PinholeCamera, model_landmarks_px: np.ndarray) -> HeadView:
    """Cut the head out of the photo and label its hair.

    Args:
        person: The person on the photo.
        camera: The photo's camera.
        model_landmarks_px: [468, 2] the body fit's face landmarks, which stand in where no face was found.
    """
    known = person.face_px[:468, :2] if len(person.face_px) else model_landmarks_px
    low, high = known.min(axis=0), known.max(axis=0)
    height = float(high[1] - low[1])
    side = CROP_FACE_HEIGHTS * height
    corner = (low + high) / 2 - [0, 0.12 * height] - side / 2
    zoom = CROP_PX / side
    crop_camera = camera.cropped(float(corner[0]), float(corner[1]), side, CROP_PX)
    image = np.clip(_crop(person.image.astype(np.float32) / 255, corner, zoom, cv2.INTER_CUBIC), 0, 1)
    mask = np.clip(_crop(person.mask.astype(np.float32), corner, zoom, cv2.INTER_CUBIC, outside=0.0), 0, 1)
    labels = _crop(person.labels, corner, zoom, cv2.INTER_NEAREST, outside=0.0)
    landmarks = person.face_px.astype(np.float64)
    if len(landmarks):
        landmarks = np.c_[(landmarks[:, :2] - corner) * zoom, landmarks[:, 2] * zoom]
    hair = face_hair(image, mask, labels == Label.HAIR, (known - corner) * zoom, height * zoom)
    return HeadView(image, mask, hair, labels, landmarks, crop_camera, height * zoom, zoom)


def _crop(
    image: np.ndarray, corner_px: np.ndarray, zoom: float, interpolation: int, outside: float | None = None
) -> np.ndarray:
    shift = zoom * (0.5 - corner_px) - 0.5  # cv2 puts pixel centres at integers
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    border = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT
    return cv2.warpAffine(image, matrix, (CROP_PX, CROP_PX), flags=interpolation, borderMode=border)


def paste(crop: np.ndarray, view: HeadView, camera: PinholeCamera) -> np.ndarray:
    """A crop field [S, S] back in the working image [H, W], 0 outside the crop."""
    zoom = view.zoom
    corner = np.array([camera.cx - view.camera.cx / zoom, camera.cy - view.camera.cy / zoom])
    shift = zoom * (0.5 - corner) - 0.5
    matrix = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    smooth = cv2.GaussianBlur(crop, (0, 0), max(0.5 * zoom - 0.5, 0.3))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(smooth, matrix, (camera.width, camera.height), flags=flags, borderValue=0.0)


def face_hair(
    image: np.ndarray, mask: np.ndarray, labelled: np.ndarray, landmarks_px: np.ndarray, face_height_px: float
) -> np.ndarray:
    """Hair label by graph cut inside the person's mask, seeded by the face's landmarks.

    Everything outside the person is painted in the skin's colour first, else the background enters the colour model.

    Args:
        image: [S, S, 3] 0..1.
        mask: [S, S] 0..1.
        labelled: [S, S] bool, hair by the whole photo's labels: candidates below the chin.
        landmarks_px: [478, 3].
        face_height_px: Face height.

    Returns:
        [S, S] float32 0..1.
    """
    size, half = image.shape[0], image.shape[0] // 2
    inside = mask > 0.5
    seeds, face, below_brow = _hair_seeds(image, inside, labelled, landmarks_px, face_height_px)
    skin = np.median(image[face & below_brow], axis=0)
    # everything that is surely not hair looks like skin to the cut: no background, clothes, eyes or lips in its model
    unlike = lab_distance(image, skin, lightness=0.5) > 20
    painted = np.where((~inside | ((seeds == cv2.GC_BGD) & (unlike | ~face)))[..., None], skin, image)
    small = cv2.resize((painted * 255).astype(np.uint8), (half, half), interpolation=cv2.INTER_AREA)
    cut = cv2.resize(seeds, (half, half), interpolation=cv2.INTER_NEAREST)
    if (cut == cv2.GC_FGD).sum() <= 50:
        return np.zeros((size, size), np.float32)
    model = [np.zeros((1, 65)), np.zeros((1, 65))]
    cv2.setRNGSeed(0)
    cv2.grabCut(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), cut, None, *model, 5, cv2.GC_INIT_WITH_MASK)
    hair = np.isin(cut, [cv2.GC_FGD, cv2.GC_PR_FGD]).astype(np.uint8)
    hair = cv2.morphologyEx(hair, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11)))
    hair = cv2.morphologyEx(hair, cv2.MORPH_OPEN, np.ones((5, 5), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(hair)
    if count < 2:
        return np.zeros((size, size), np.float32)
    eye_row = landmarks_px[[33, 263], 1].mean() / 2  # the cut runs at half size; collars begin lower
    keep = [i for i in range(1, count) if stats[i, 4] > 0.08 * stats[1:, 4].max() and stats[i, 1] < eye_row]
    hair = cv2.resize(np.isin(parts, keep).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    return (cv2.GaussianBlur(hair, (0, 0), 2) * mask).astype(np.float32)


def _crown_hair(image: np.ndarray, crown: np.ndarray, landmarks_px: np.ndarray) -> np.ndarray:
    """[S, S] bool: pixels of the crown that are surely hair; none on a bald head.

    A bald crown has a colour of the face (several are compared: half of a face may lie in shadow) and skin's texture.
    """
    smooth = cv2.GaussianBlur(image, (0, 0), 3)
    cheeks = sample(smooth, landmarks_px[list(BEARDLESS), :2])
    forehead = sample(smooth, landmarks_px[list(FOREHEAD), :2])
    # under a fringe the forehead's landmarks lie on hair or its edge: skin is no darker there than the darkest cheek
    bare = to_lab(forehead)[:, 0] > to_lab(cheeks)[:, 0].min() - 5
    palette = np.concatenate([cheeks, forehead[bare]])
    distance = np.min([lab_distance(smooth, colour, lightness=0.4) for colour in palette], axis=0)
    # dark colours lie closer together
    unlike = crown & (distance > BALD_LAB * np.clip(np.median(to_lab(palette)[:, 0]) / 60, 0.4, 1))
    texture = abs(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) - cv2.cvtColor(smooth, cv2.COLOR_RGB2GRAY))
    face = np.median(sample(cv2.GaussianBlur(texture, (0, 0), 4), landmarks_px[list(BEARDLESS), :2]))
    rough = float(np.median(texture[crown])) > 2.0 * face
    if unlike.sum() > BALD_SHARE * crown.sum():
        return unlike | (crown & rough)
    return crown & rough


def _hanging(labelled: np.ndarray, landmarks_px: np.ndarray, face_height_px: float) -> np.ndarray:
    """[S, S] bool: labelled hair that hangs from above the mouth down; dark clothes with hair's label do not."""
    rows, columns = np.mgrid[: labelled.shape[0], : labelled.shape[1]]
    near = labelled & (abs(columns - landmarks_px[152, 0]) < 0.8 * face_height_px)
    solid = cv2.morphologyEx(near.astype(np.uint8), cv2.MORPH_OPEN, np.ones((11, 11), np.uint8))
    _, parts = cv2.connectedComponents(solid)
    above = np.unique(parts[(rows < landmarks_px[13, 1]) & (solid > 0)])
    return np.isin(parts, above[above > 0])


def _hair_seeds(
    image: np.ndarray, inside: np.ndarray, labelled: np.ndarray, landmarks_px: np.ndarray, face_height_px: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Graph cut seeds [S, S], the face oval and the rows below the brows."""
    size = inside.shape[0]
    chin, top = landmarks_px[152, 1], landmarks_px[10, 1]
    brow = landmarks_px[[105, 334], 1].mean()
    rows, columns = np.mgrid[:size, :size]
    face = np.zeros((size, size), np.uint8)
    cv2.fillPoly(face, [landmarks_px[list(FACE_OVAL), :2].astype(np.int32)], 1)
    face = face > 0
    middle = landmarks_px[list(FACE_OVAL), :2].mean(axis=0)
    shrunk = np.zeros((size, size), np.uint8)
    cv2.fillPoly(shrunk, [((landmarks_px[list(FACE_OVAL), :2] - middle) * 0.88 + middle).astype(np.int32)], 1)
    seeds = np.full((size, size), cv2.GC_BGD, np.uint8)
    aside = abs(columns - landmarks_px[152, 0]) > 0.28 * face_height_px
    candidates = inside & (
        (rows < chin + 0.1 * face_height_px) | (_hanging(labelled, landmarks_px, face_height_px) & aside)
    )
    seeds[candidates & ~face] = cv2.GC_PR_FGD
    seeds[candidates & face] = cv2.GC_PR_BGD
    seeds[(shrunk > 0) & (rows > brow)] = cv2.GC_BGD
    deep = cv2.erode(inside.astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    crown = deep & (rows < top - 0.10 * face_height_px)
    if crown.any():
        seeds[_crown_hair(image, crown, landmarks_px)] = cv2.GC_FGD
    neck = inside & (rows > chin + 0.02 * face_height_px) & (abs(columns - landmarks_px[152, 0]) < 0.2 * face_height_px)
    seeds[neck] = cv2.GC_BGD
    return seeds, face, rows > brow
