"""Does a generated frame show the person in the pose that was asked for? Keypoints, limbs, looks, outline, focus.

Every rule compares a frame with what it should show or with the rest of its own video, so that what a whole video has
in common (a video model's softness, clothes that are wider than the proxy) rejects nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

import cv2
import numpy as np

from backend.human.camera import PinholeCamera
from backend.human.pose_refinement import Skeleton
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.perception.landmarks import PoseObservation

Reason = Literal["nobody", "swap", "pose", "identity", "outline", "blur"]
REASONS: tuple[Reason, ...] = get_args(Reason)
WORDS: dict[Reason, str] = {
    "nobody": "nobody found",
    "swap": "limbs or sides swapped",
    "pose": "another pose",
    "identity": "not the person",
    "outline": "outline does not match",
    "blur": "out of focus",
}

ARMS = ((11, 13, 15, 17, 19, 21), (12, 14, 16, 18, 20, 22))
LEGS = ((23, 25, 27, 29, 31), (24, 26, 28, 30, 32))
"""Landmarks of the left and the right limb."""

ARM_JOINTS, LEG_JOINTS = ("collar", "shoulder", "elbow", "wrist"), ("hip", "knee", "ankle", "foot")
_BONES = ((11, 13), (12, 14), (13, 15), (14, 16), (23, 25), (24, 26), (25, 27), (26, 28))
_ACROSS = ((12, 11), (24, 23))


@dataclass(frozen=True)
class DetectorNoise:
    """How a detector errs; the defaults are mediapipe's on oracle videos (measured).

    Attributes:
        px: Standard deviation of a landmark, pixels.
        m: The same, metres on the person; both add up.
        bias_m: How far its landmarks may lie beside the model's on a given person, always the same way.
        depth: Standard deviation of the depth component of a bone's unit direction.
    """

    px: float = 1.5
    m: float = 0.03
    bias_m: float = 0.02
    depth: float = 0.25


class KeypointDetector(Protocol):
    """Finds mediapipe's 33 landmarks of the one person of a picture."""

    @property
    def noise(self) -> DetectorNoise:
        """How it errs."""
        ...

    def detect(self, image: np.ndarray) -> PoseObservation | None:
        """Of uint8 [H, W, 3]; None where nobody is found."""
        ...


class MediapipeKeypoints:
    """The pose network in mediapipe's wheel."""

    noise = DetectorNoise()

    def detect(self, image: np.ndarray) -> PoseObservation | None:
        """See `KeypointDetector`."""
        from backend.perception.landmarks import detect_pose

        return detect_pose(image)


@dataclass(frozen=True)
class CheckSettings:
    """When a frame is refused.

    Attributes:
        seen: A landmark counts from this visibility on.
        label_sd_m: How far a limb of the right pose may lie beside the prescribed one (standard deviation).
        swap_gain: Refused if another reading of the limbs fits better by this much, in units of log probability.
        off_m: Refused if the seen landmarks of a limb lie this far beside the corrected pose (median) ...
        off_share: ... or this share of the body's height, whichever is more.
        identity_cosine: Least similarity of the face to the photo's, with an embedding.
        face_colour: Largest distance of the face's colour to the photo's, CIE Lab, lightness counting a third.
        looks: Largest mean distance of all parts' colours to the video's usual ones.
        looks_deviations: And so many robust deviations above the video's usual distance.
        outline: Least share of the video's usual overlap of outline and body.
        outline_least: Least overlap (intersection over union) in any case.
        focus: Least share of the video's usual sharpness.
    """

    seen: float = 0.5
    label_sd_m: float = 0.04
    swap_gain: float = 12.0
    off_m: float = 0.10
    off_share: float = 0.06
    identity_cosine: float = 0.30
    face_colour: float = 20.0
    looks: float = 9.0
    looks_deviations: float = 6.0
    outline: float = 0.85
    outline_least: float = 0.45
    focus: float = 0.40


def mirrored_limbs(pose: np.ndarray, joints: tuple[str, ...]) -> np.ndarray:
    """A pose [55, 3] whose left limb does what the right one did, mirrored, and the other way round."""
    made = np.array(pose, np.float64)
    flip = np.array([1.0, -1.0, -1.0])
    for name in joints:
        left, right = (JOINT_NAMES.index(f"{side}_{name}") for side in ("left", "right"))
        made[left], made[right] = pose[right] * flip, pose[left] * flip
    return made


def swapped(
    skeleton: Skeleton,
    pose: np.ndarray,
    translation_m: np.ndarray,
    camera: PinholeCamera,
    found: PoseObservation,
    noise: DetectorNoise,
    settings: CheckSettings,
) -> str:
    """Which other reading explains a frame much better than the prescribed pose; empty where none does.

    Readings: the labels of arms, of legs or of all exchanged (the wrong limb in front, the person turned round), arms
    or legs doing each other's movement, one limb before the body instead of behind it.
    """
    here = camera.to_camera(skeleton.landmarks(pose, translation_m))
    usual = _Reading(here, camera, found, noise, settings)
    best, name = settings.swap_gain, ""
    for words, rows, other in _other_readings(skeleton, pose, translation_m, camera, here):
        gain = usual.cost(here, rows) - usual.cost(other, rows)
        if gain > best:
            best, name = gain, words
    return name


def _other_readings(
    skeleton: Skeleton, pose: np.ndarray, translation_m: np.ndarray, camera: PinholeCamera, here: np.ndarray
) -> list[tuple[str, tuple[int, ...], np.ndarray]]:
    """(name, landmarks that differ, all landmarks [33, 3] in the camera's frame)."""
    made: list[tuple[str, tuple[int, ...], np.ndarray]] = []
    for words, pair in (("arms exchanged", ARMS), ("legs exchanged", LEGS)):
        made.append((words, (*pair[0][1:], *pair[1][1:]), _exchanged(here, tuple(limb[1:] for limb in pair))))
    everything = tuple((*arm, *leg) for arm, leg in zip(ARMS, LEGS, strict=True))
    made.append(("turned round", (*everything[0], *everything[1]), _exchanged(here, everything)))
    for words, pair, joints in (("arms mirrored", ARMS, ARM_JOINTS), ("legs mirrored", LEGS, LEG_JOINTS)):
        other = camera.to_camera(skeleton.landmarks(mirrored_limbs(pose, joints), translation_m))
        made.append((words, (*pair[0], *pair[1]), other))
    for words, pair in (("arm front to back", ARMS), ("leg front to back", LEGS)):
        for limb in pair:
            other = here.copy()
            root = here[limb[0]]
            # along the line of sight through each point: the picture stays the same
            depth = 2 * root[2] - here[list(limb[1:]), 2]
            other[list(limb[1:])] *= (depth / here[list(limb[1:]), 2])[:, None]
            made.append((words, limb, other))
    return made


def _exchanged(points: np.ndarray, pair: tuple[tuple[int, ...], ...]) -> np.ndarray:
    made = points.copy()
    made[list(pair[0])], made[list(pair[1])] = points[list(pair[1])], points[list(pair[0])]
    return made


class _Reading:
    """How well points explain what was found: pixels, and the depth of limbs where the detector tells it."""

    def __init__(
        self,
        here: np.ndarray,
        camera: PinholeCamera,
        found: PoseObservation,
        noise: DetectorNoise,
        settings: CheckSettings,
    ) -> None:
        self._camera, self._found = camera, found
        per_m = camera.fx / np.maximum(here[:, 2], 0.1)
        self._sd = np.hypot(np.hypot(noise.m, settings.label_sd_m) * per_m, noise.px)
        self._sure = np.where(found.visibility >= settings.seen, found.visibility, 0.0)
        self._depth_sd = float(np.hypot(noise.depth, 0.1))
        bones = np.array([*_BONES, *_ACROSS])
        self._bones = bones
        directions = found.world_m[bones[:, 1]] - found.world_m[bones[:, 0]]
        length = np.linalg.norm(directions, axis=1)
        self._depths = np.where(length > 1e-6, directions[:, 2] / np.maximum(length, 1e-6), np.nan)

    def cost(self, points: np.ndarray, rows: tuple[int, ...]) -> float:
        """Negative log probability of camera points [33, 3], over the landmarks `rows` and the bones that end there."""
        camera, at = self._camera, list(rows)
        pixels = points[at, :2] / np.maximum(points[at, 2:], 0.1) * [camera.fx, camera.fy] + [camera.cx, camera.cy]
        off = ((pixels - self._found.keypoints_px[at]) ** 2).sum(1) / self._sd[at] ** 2
        # a wrong landmark proves no more than that it is wrong; neighbours on a limb err together
        total = 0.5 * float((self._sure[at] * 9 * off / (9 + off)).sum()) * 0.7
        ends = np.isin(self._bones, at).any(1)
        bones = self._bones[ends]
        ours = points[bones[:, 1]] - points[bones[:, 0]]
        ours = ours[:, 2] / np.maximum(np.linalg.norm(ours, axis=1), 1e-6)
        sure = self._sure[bones].min(1)
        gap = (np.nan_to_num(self._depths[ends] - ours) / self._depth_sd) ** 2
        return total + 0.5 * float((sure * 16 * gap / (16 + gap)).sum())


def misplaced(
    skeleton: Skeleton,
    pose: np.ndarray,
    translation_m: np.ndarray,
    camera: PinholeCamera,
    found: PoseObservation,
    settings: CheckSettings,
) -> float:
    """How far a corrected pose lies beside its landmarks, as a share of what is allowed: above 1 it is another pose.

    The worst of head, arms and legs; of each the median of its seen landmarks, with less than three it is passed over.
    """
    here = camera.to_camera(skeleton.landmarks(pose, translation_m))
    pixels = here[:, :2] / np.maximum(here[:, 2:], 0.1) * [camera.fx, camera.fy] + [camera.cx, camera.cy]
    off_m = np.linalg.norm(pixels - found.keypoints_px, axis=1) / (camera.fx / np.maximum(here[:, 2], 0.1))
    allowed = max(settings.off_m, settings.off_share * float(np.ptp(skeleton.joints_m[:, 1])))
    worst = 0.0
    for limb in (tuple(range(11)), *ARMS, *LEGS):
        seen = [row for row in limb if found.visibility[row] >= settings.seen and skeleton.shares[row].sum() > 0.5]
        if len(seen) >= 3:
            worst = max(worst, float(np.median(off_m[seen])) / allowed)
    return worst


def overlap(mask: np.ndarray, covered: np.ndarray) -> float:
    """Intersection over union of a soft mask [H, W] and a silhouette [H, W]."""
    shown = mask > 0.5
    return float((shown & covered).sum() / max(int((shown | covered).sum()), 1))


def sharpness(image: np.ndarray, mask: np.ndarray) -> float:
    """Mean strength of the finest detail inside an eroded mask, on the scale of the person's size.

    The picture is compared with itself blurred; the outline against the background does not count.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    side = float(np.sqrt(max((mask > 0.5).sum(), 1)))
    inside = cv2.erode((mask > 0.5).astype(np.uint8), np.ones((3, 3), np.uint8), iterations=max(1, round(side / 60)))
    if inside.sum() < 30:
        return 0.0
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), max(side / 150, 0.8)))
    return float(fine[inside > 0].mean())


PARTS: tuple[tuple[str, ...], ...] = (
    ("spine1", "spine2", "spine3", "left_collar", "right_collar"),
    ("left_shoulder", "right_shoulder"),
    ("left_elbow", "right_elbow"),
    ("pelvis", "left_hip", "right_hip"),
    ("left_knee", "right_knee"),
    ("left_ankle", "right_ankle", "left_foot", "right_foot"),
)
"""Joints whose surface has one look; the face and the rest of the head stand before them."""

FACE_PART, HEAD_PART = 0, 1


def look_parts(weights: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Part of every vertex [V] int: face, rest of the head, then `PARTS`; -1 for what is too small to have a look.

    Args:
        weights: [V, 55] skinning weights.
        face: [V] bool, the front of the face.
    """
    first = weights[:, : len(JOINT_NAMES)].argmax(1)
    made = np.full(len(weights), -1)
    for number, names in enumerate(PARTS):
        made[np.isin(first, [JOINT_NAMES.index(name) for name in names])] = number + 2
    made[np.isin(first, [JOINT_NAMES.index(name) for name in ("head", "jaw", "neck")])] = HEAD_PART
    made[face] = FACE_PART
    return made


def looks_of(image: np.ndarray, parts: np.ndarray, mask: np.ndarray, least_px: int = 12) -> np.ndarray:
    """Median CIE Lab colours [P, 3] of the parts [H, W] (-1: none) inside a mask; NaN where hardly seen."""
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    inside = cv2.erode((mask > 0.9).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    made = np.full((len(PARTS) + 2, 3), np.nan)
    for part in range(len(made)):
        pixels = lab[inside & (parts == part)]
        if len(pixels) >= least_px:
            made[part] = np.median(pixels, axis=0)
    return made


def look_distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances [...] of Lab colours [..., 3]; lightness counts a third, because people turn in their light."""
    return np.sqrt(((one - other) ** 2 * np.array([1 / 9, 1, 1])).sum(-1))


def strangers(looks: np.ndarray, photo: np.ndarray, settings: CheckSettings) -> np.ndarray:
    """Which frames show somebody else, by colours alone.

    Args:
        looks: [F, P, 3] from `looks_of`.
        photo: [P, 3] of the photo.
        settings: When.

    Returns:
        [F] bool: the face is too far from the photo's, or all parts together from the video's own middle.
    """
    face = look_distance(looks[:, FACE_PART], photo[FACE_PART]) > settings.face_colour  # NaN compares false
    with np.errstate(all="ignore"):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # parts that no frame shows
            usual = np.nanmedian(looks, axis=0)
            far = np.nanmean(np.minimum(look_distance(looks, usual), 40.0), axis=1)
            middle = np.nanmedian(far)
            spread = 1.4826 * np.nanmedian(np.abs(far - middle))
    limit = max(settings.looks, float(middle + settings.looks_deviations * spread)) if np.isfinite(middle) else np.inf
    return face | (np.nan_to_num(far) > limit)


def below_usual(values: np.ndarray, share: float, least: float = 0.0) -> np.ndarray:
    """Which values [F] lie below a share of their median, or below `least`."""
    return values < max(share * float(np.median(values)), least) if len(values) else np.zeros(0, bool)


__all__ = [
    "REASONS",
    "WORDS",
    "CheckSettings",
    "FACE_PART",
    "DetectorNoise",
    "KeypointDetector",
    "MediapipeKeypoints",
    "Reason",
    "below_usual",
    "look_parts",
    "looks_of",
    "misplaced",
    "mirrored_limbs",
    "overlap",
    "sharpness",
    "strangers",
    "swapped",
]
