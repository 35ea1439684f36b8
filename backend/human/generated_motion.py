"""A person in motion by a video model, and which of its frames show what was asked for, in which pose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from backend.diffusion.interfaces import FaceIdentity, PoseTrack, VideoGenerator
from backend.errors import FAILED, UserError
from backend.human import frame_checks as checks
from backend.human.camera import PinholeCamera
from backend.human.frame_checks import REASONS, WORDS, CheckSettings, Reason
from backend.human.frame_targets import (
    Helpers,
    Matting,
    Pictured,
    TargetNotes,
    face_vertices,
    plain_mask,
    vertex_labels,
)
from backend.human.pose_refinement import RefineSettings, Skeleton, calibrate, refine_pose, smoothed, turned
from backend.human.pose_tracks import PoseSequence
from backend.human.video_camera import Subject, motion_track, reference_picture
from backend.human.zbuffer import MeshView
from blender_addon.shared.skeleton import JOINT_NAMES

if TYPE_CHECKING:
    from backend.context import Context
    from backend.perception.landmarks import PoseObservation

SHOW, LOOK, CHECK = "Show the person in motion", "Find the poses again", "Check the frames"

FACING = 0.6
"""Cosine between the head's direction and the camera from which on a face is looked at."""


@dataclass(frozen=True)
class FrameSettings:
    """How training frames are made.

    Attributes:
        width_px, height_px: Of a generated frame, as published.
        frames_per_call: Of a motion that the generator gets at once; 0 for the whole motion, which generators that
            work in segments continue best.
        prompt: For the generator.
        captured_px: Longest side of a captured frame.
        face_px: Side of the face patch.
        texture_frames: Generated frames that the first texture is taken from.
        least_share: Of the generated frames must stay, else there is nothing to learn from.
        refine: How poses are corrected.
        check: When frames are refused.
    """

    width_px: int = 576
    height_px: int = 1024
    frames_per_call: int = 0
    prompt: str = ""
    captured_px: int = 1024
    face_px: int = 256
    texture_frames: int = 40
    least_share: float = 0.35
    refine: RefineSettings = field(default_factory=RefineSettings)
    check: CheckSettings = field(default_factory=CheckSettings)


@dataclass(frozen=True)
class GeneratedMotion:
    """A motion as a video model shows it.

    Attributes:
        motion: What was asked for.
        track: The same before the camera.
        camera: Fixed.
        frames: uint8 [F, H, W, 3].
        sources: What made them, a line each.
    """

    motion: PoseSequence
    track: PoseTrack
    camera: PinholeCamera
    frames: np.ndarray
    sources: tuple[str, ...]


@dataclass(frozen=True)
class FrameReport:
    """What became of the generated frames.

    Attributes:
        asked: Number of frames.
        rejected: How many were refused, by reason.
        swaps: The same for the readings behind "swap".
        turn_deg: Median correction of a joint.
        error_px: Median distance of the found keypoints to the poses as prescribed and as corrected.
        generators: What made frames and targets, a line each.
        warnings: For the artist, a line each.
    """

    asked: int
    rejected: Mapping[Reason, int]
    swaps: Mapping[str, int]
    turn_deg: float
    error_px: tuple[float, float]
    generators: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def kept(self) -> int:
        """Number of frames that are used."""
        return self.asked - sum(self.rejected.values())

    def line(self) -> str:
        """One line: how many were refused and why."""
        if not sum(self.rejected.values()):
            return f"All {self.asked} generated frames show what was asked for."
        why = ", ".join(f"{WORDS[reason]} {self.rejected[reason]}" for reason in REASONS if self.rejected.get(reason))
        return f"{sum(self.rejected.values())} of {self.asked} generated frames were left out: {why}."


@dataclass(frozen=True)
class CheckedMotion:
    """A generated motion after it was looked at.

    Attributes:
        made: The frames.
        poses: float64 [F, 55, 3] corrected. translations_m: float64 [F, 3] corrected.
        masks: uint8 [F, H, W].
        reasons: Why a frame is refused, "" where it is not; F of them.
        readings: The reading behind a "swap", "" elsewhere.
        turns_deg: [F] mean correction of the body's joints, NaN where nobody was found.
        errors_px: [F, 2] median keypoint error before and after, NaN where nobody was found.
        made_by: What made frames, masks and decisions.
    """

    made: GeneratedMotion
    poses: np.ndarray
    translations_m: np.ndarray
    masks: np.ndarray
    reasons: tuple[Reason | str, ...]
    readings: tuple[str, ...]
    turns_deg: np.ndarray
    errors_px: np.ndarray
    made_by: Mapping[str, str]

    def kept(self) -> list[int]:
        """Indices of the frames that are used."""
        return [frame for frame, reason in enumerate(self.reasons) if not reason]

    def picture(self, frame: int) -> Pictured:
        """One frame with what is known of it."""
        return Pictured(
            self.made.frames[frame], self.masks[frame].astype(np.float32) / 255, self.made.camera, self.poses[frame],
            self.translations_m[frame], self.made.motion.actions[frame], captured=False,
        )  # fmt: skip


def generate_motion(
    subject: Subject,
    motion: PoseSequence,
    camera: PinholeCamera,
    generator: VideoGenerator,
    context: Context,
    settings: FrameSettings | None = None,
) -> GeneratedMotion:
    """Show the person in a motion.

    Raises:
        Cancelled: Within one denoising step.
        UserError: If the generator gives another number or size of frames.
    """
    settings = settings or FrameSettings()
    track = motion_track(subject, motion, camera)
    shifts = subject.translations_m(motion)
    length = settings.frames_per_call or len(motion)
    parts = []
    for start in range(0, len(motion), length):
        context.progress(SHOW, start, len(motion), motion.name)
        reference = reference_picture(subject, motion.poses[start], shifts[start], camera)
        part = track_part(track, slice(start, start + length))
        parts.append(generator.generate(reference, part, settings.prompt, context))
    frames = np.concatenate(parts)
    if frames.shape != (len(motion), camera.height, camera.width, 3):
        raise UserError(f"the video model gave frames {frames.shape}; install it again or choose another", FAILED)
    return GeneratedMotion(motion, track, camera, frames, tuple(str(source) for source in generator.sources))


def track_part(track: PoseTrack, part: slice) -> PoseTrack:
    """Some frames of a track."""
    per_frame = ("joints_px", "joint_depths_m", "face_px", "hands_px", "poses", "pelvis_m", "head_px", "toes_px")
    cut = {name: getattr(track, name)[part] for name in (*per_frame, "faces") if getattr(track, name) is not None}
    return replace(track, **cut)


def check_motion(
    subject: Subject,
    made: GeneratedMotion,
    helpers: Helpers,
    context: Context,
    settings: FrameSettings | None = None,
) -> CheckedMotion:
    """Find the poses again, correct them, and decide which frames are used.

    Args:
        subject: Who should be seen.
        made: The frames.
        helpers: Detector, identity, matting.
        context: Progress and cancelling.
        settings: How.
    """
    settings, notes = settings or FrameSettings(), TargetNotes()
    notes.made_by["generated frames"] = ", ".join(made.sources)
    found: list[PoseObservation | None] = []
    look, judge = context.part(CHECK, 0, 50, 100), context.part(CHECK, 50, 100, 100)
    for number, frame in enumerate(made.frames):
        look.progress(LOOK, number, len(made.frames), made.motion.name)
        found.append(helpers.detector.detect(frame))
    poses, shifts, reasons, readings, numbers = _corrected(subject, made, found, helpers, settings)
    masks = _masks(made, found, helpers.matting(), context, notes)
    looks, overlaps, focus = [], [], []
    labels = vertex_labels(subject)
    parts = checks.look_parts(subject.body.skin_weights, face_vertices(subject, labels))
    for number, frame in enumerate(made.frames):
        judge.progress(CHECK, number, len(made.frames), made.motion.name)
        soft = masks[number].astype(np.float32) / 255
        shown = Pictured(frame, soft, made.camera, poses[number], shifts[number], made.motion.actions[number], False)
        view = shown.proxy(subject)
        overlaps.append(checks.overlap(soft, view.nearest.covered))
        looks.append(checks.looks_of(frame, _part_map(parts, view), soft))
        if _facing(subject, poses[number], shifts[number], made.camera) < FACING:
            looks[-1][checks.FACE_PART] = np.nan  # hair may hang before a face that is turned away
        focus.append(checks.sharpness(frame, soft))
    other = checks.strangers(np.stack(looks), _photo_looks(subject, parts), settings.check)
    other |= _other_faces(subject, made, poses, shifts, helpers.identity(), settings.check, notes)
    usual = np.array([not reason for reason in reasons])
    for reason, wrong in (  # what is said about a frame is what explains most
        ("outline", _below(np.array(overlaps), usual, settings.check.outline, settings.check.outline_least)),
        ("blur", _below(np.array(focus), usual, settings.check.focus)),
        ("identity", other),
    ):
        reasons = [
            reason if bad and before not in ("nobody", "swap") else before
            for before, bad in zip(reasons, wrong, strict=True)
        ]
    return CheckedMotion(made, poses, shifts, masks, tuple(reasons), tuple(readings), *numbers, notes.made_by)


def _below(values: np.ndarray, usual: np.ndarray, share: float, least: float = 0.0) -> np.ndarray:
    """Which values lie below a share of the median of the frames that are right so far."""
    middle = float(np.median(values[usual] if usual.any() else values))
    return values < max(share * middle, least)


def _corrected(
    subject: Subject,
    made: GeneratedMotion,
    found: Sequence[PoseObservation | None],
    helpers: Helpers,
    settings: FrameSettings,
) -> tuple[np.ndarray, np.ndarray, list[str], list[str], tuple[np.ndarray, np.ndarray]]:
    """Poses, translations, reasons, readings, and (turns, errors) of `CheckedMotion`."""
    noise, check, camera = helpers.detector.noise, settings.check, made.camera
    poses = made.motion.poses.astype(np.float64)
    shifts = subject.translations_m(made.motion)
    skeleton = Skeleton.of(subject.body, np.asarray(subject.rest_m, np.float64), subject.personal.joints_m)
    points, precision = _observations(found, shifts, camera, noise, check)
    skeleton = calibrate(skeleton, poses, shifts, camera, points, precision, noise.bias_m, settings.refine)
    reasons, readings = [""] * len(poses), [""] * len(poses)
    turns, moves = np.zeros((len(poses), 22, 3)), np.zeros((len(poses), 3))
    counts = np.zeros(len(poses))
    for frame, observation in enumerate(found):
        if observation is None or (precision[frame] > 0).sum() < 6:
            reasons[frame] = "nobody"
            continue
        readings[frame] = checks.swapped(skeleton, poses[frame], shifts[frame], camera, observation, noise, check)
        if readings[frame]:
            reasons[frame] = "swap"
            continue
        turns[frame], moves[frame] = refine_pose(
            skeleton, poses[frame], shifts[frame], camera, points[frame], precision[frame], settings.refine
        )
        counts[frame] = 1
    turns = smoothed(turns, counts, settings.refine.smooth_frames)
    moves = smoothed(moves, counts, settings.refine.smooth_frames)
    errors = np.full((len(poses), 2), np.nan)
    corrected = np.stack([turned(pose, turn) for pose, turn in zip(poses, turns, strict=True)])
    for frame, observation in enumerate(found):
        if observation is None or reasons[frame]:
            continue
        for column, pose, shift in ((0, poses, shifts), (1, corrected, shifts + moves)):
            pixels = camera.project(skeleton.landmarks(pose[frame], shift[frame]))
            off = np.linalg.norm(pixels - points[frame], axis=1)
            errors[frame, column] = float(np.median(off[precision[frame] > 0]))
        off = checks.misplaced(skeleton, corrected[frame], (shifts + moves)[frame], camera, observation, check)
        reasons[frame] = "pose" if off > 1 else ""
    degrees = np.degrees(np.linalg.norm(turns, axis=-1).mean(1))
    numbers = (np.where(counts > 0, degrees, np.nan), errors)
    return corrected, shifts + moves, reasons, readings, numbers


def _observations(
    found: Sequence[PoseObservation | None],
    shifts_m: np.ndarray,
    camera: PinholeCamera,
    noise: checks.DetectorNoise,
    check: CheckSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints [F, 33, 2] and one over their standard deviations [F, 33] in px, 0 where they are not seen."""
    points, precision = np.zeros((len(found), 33, 2)), np.zeros((len(found), 33))
    for frame, observation in enumerate(found):
        if observation is None:
            continue
        depth = float((camera.to_camera(shifts_m[frame : frame + 1]))[0, 2])
        sd = np.hypot(noise.px, noise.m * camera.fx / max(depth, 0.1))
        inside = (observation.keypoints_px >= 0).all(1)
        inside &= (observation.keypoints_px < [camera.width, camera.height]).all(1)
        points[frame] = observation.keypoints_px
        precision[frame] = np.where((observation.visibility >= check.seen) & inside, observation.visibility / sd, 0)
    return points, precision


def _masks(
    made: GeneratedMotion,
    found: Sequence[PoseObservation | None],
    matting: Matting | None,
    context: Context,
    notes: TargetNotes,
) -> np.ndarray:
    """uint8 [F, H, W]."""
    masks = np.zeros(made.frames.shape[:3], np.uint8)
    plain = 0
    for number, (frame, observation) in enumerate(zip(made.frames, found, strict=True)):
        context.raise_if_cancelled()
        mask, is_plain = plain_mask(frame)
        if not is_plain and observation is not None:
            from backend.perception.mask import person_mask

            mask = person_mask(frame, observation)
        plain += is_plain
        if matting is not None:
            mask = matting.alpha(frame, mask, context)
        masks[number] = np.round(255 * np.clip(mask, 0, 1))
    how = "difference from the white background" if plain == len(masks) else "networks of mediapipe and a graph cut"
    notes.by("masks of generated frames", matting, how)
    return masks


def _part_map(parts: np.ndarray, view: MeshView) -> np.ndarray:
    """[H, W] int, the part that a view's pixels show, -1 for none."""
    made = np.full(view.nearest.triangle.shape, -1)
    covered = view.nearest.covered
    made[covered] = parts[view.triangles[view.nearest.triangle[covered], 0]]
    return made


def photo_of(subject: Subject) -> Pictured:
    """The photo with the pose that was fitted to it."""
    person, personal = subject.person, subject.personal
    return Pictured(
        person.image, person.mask, personal.camera, personal.pose, personal.translation_m, personal.actions, True
    )


def _photo_looks(subject: Subject, parts: np.ndarray) -> np.ndarray:
    """[P, 3] the photo's colours by part."""
    shown = photo_of(subject)
    return checks.looks_of(shown.image, _part_map(parts, shown.proxy(subject)), shown.mask)


def _other_faces(
    subject: Subject,
    made: GeneratedMotion,
    poses: np.ndarray,
    shifts: np.ndarray,
    identity: FaceIdentity | None,
    check: CheckSettings,
    notes: TargetNotes,
) -> np.ndarray:
    """[F] bool: the face is somebody else's, by its embedding; none where no model is installed."""
    wrong = np.zeros(len(made.frames), bool)
    notes.by("identity of generated frames", identity, "colours of the face and of the clothes")
    known = None if identity is None else identity.embed(_head_crop(photo_of(subject), subject))
    if identity is None or known is None:
        return wrong
    for number in range(len(wrong)):
        if _facing(subject, poses[number], shifts[number], made.camera) < FACING:
            continue
        mask = np.zeros(made.frames.shape[1:3], np.float32)
        shown = Pictured(made.frames[number], mask, made.camera, poses[number], shifts[number], np.zeros(52), False)
        vector = identity.embed(_head_crop(shown, subject))
        wrong[number] = vector is not None and float(vector @ known) < check.identity_cosine
    return wrong


def _facing(subject: Subject, pose: np.ndarray, shift: np.ndarray, camera: PinholeCamera) -> float:
    """Cosine between where the head looks and the camera."""
    from backend.diffusion.pose_track import chain

    rotations, places = chain(subject.personal.joints_m, pose)
    head = JOINT_NAMES.index("head")
    sight = camera.position_m - (places[head] + shift)
    return float(rotations[head][:, 2] @ sight / np.linalg.norm(sight))


def _head_crop(shown: Pictured, subject: Subject) -> np.ndarray:
    """uint8 [S, S, 3] around the head; white beyond the picture."""
    on_head = subject.body.skin_weights[:, JOINT_NAMES.index("head")] > 0.5
    pixels = shown.camera.project(subject.posed_m(shown.pose, shown.translation_m)[on_head])
    middle, half = (pixels.min(0) + pixels.max(0)) / 2, max(0.8 * float(np.ptp(pixels, axis=0).max()), 4.0)
    left, top = (int(v) for v in np.floor(middle - half))
    side = int(2 * half)
    crop = np.full((side, side, 3), 255, np.uint8)
    height, width = shown.image.shape[:2]
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if x1 > x0 and y1 > y0:
        crop[y0 - top : y1 - top, x0 - left : x1 - left] = shown.image[y0:y1, x0:x1]
    return crop


def report_of(checked: Sequence[CheckedMotion], settings: FrameSettings | None = None) -> FrameReport:
    """Count what was refused.

    Raises:
        UserError: Code 1 if too little is left, with what to do next.
    """
    settings = settings or FrameSettings()
    reasons = Counter(reason for motion in checked for reason in motion.reasons if reason)
    swaps = Counter(words for motion in checked for words in motion.readings if words)
    asked = sum(len(motion.reasons) for motion in checked)
    turns = np.concatenate([motion.turns_deg for motion in checked]) if checked else np.zeros(0)
    errors = np.concatenate([motion.errors_px for motion in checked]) if checked else np.zeros((0, 2))
    found = np.isfinite(errors).all(1)
    before, after = np.median(errors[found], axis=0) if found.any() else (np.nan, np.nan)
    known = turns[np.isfinite(turns)]
    turn = float(np.median(known)) if len(known) else float("nan")
    report = FrameReport(asked, {r: reasons[r] for r in REASONS}, dict(swaps), turn, (float(before), float(after)))
    if asked and report.kept < settings.least_share * asked:
        raise UserError(
            f"the video model does not show this person in the asked poses: {report.line()} Try another seed or a "
            "photo that shows the whole person, or make the avatar from the photo alone.",
            FAILED,
        )
    share = sum(report.rejected.values()) / max(asked, 1)
    return replace(report, warnings=(report.line(),) if share > 0.02 else ())


__all__ = [
    "CheckedMotion",
    "FrameReport",
    "FrameSettings",
    "GeneratedMotion",
    "check_motion",
    "generate_motion",
    "photo_of",
    "report_of",
]
