"""From a fitted person to the frames that a PERSONA avatar is learned from.

A video model shows the person in prescribed poses; keypoints are found again in every frame, the poses corrected by
them, and frames that show another pose, another person or nothing sharp are refused and counted. What stays becomes a
`TrainingFrame` with all its targets, the photographs first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np

from backend.diffusion.interfaces import VideoGenerator
from backend.human.first_texture import FirstTexture, first_texture
from backend.human.frame_targets import (
    FACE_SEAM_SHARE,
    FrameStore,
    Helpers,
    PackedFrame,
    Pictured,
    TargetNotes,
    pack,
    spread_labels,
    unlit,
    vertex_labels,
)
from backend.human.generated_motion import (
    CheckedMotion,
    FrameReport,
    FrameSettings,
    check_motion,
    generate_motion,
    photo_of,
    report_of,
)
from backend.human.pose_tracks import PoseSequence
from backend.human.video_camera import Subject, motion_camera

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from backend.context import Context

TARGETS = "Targets of the frames"


@dataclass(frozen=True)
class TrainingSet:
    """All that an avatar is learned from.

    Attributes:
        frames: Captured frames first, then generated ones; `frames.packed` holds labels too.
        albedo: uint8 [H, W, 3] of every captured frame: its colours without light.
        face: The photo's face at `FrameSettings.face_px`, restored where a model is installed; None without a face.
        texture: Colours to begin with; None without a subdivided body.
        report: What was refused, and what made the rest.
    """

    frames: FrameStore
    albedo: tuple[np.ndarray, ...]
    face: PackedFrame | None
    texture: FirstTexture | None
    report: FrameReport


def training_frames(
    subject: Subject,
    motions: Sequence[PoseSequence],
    generator: VideoGenerator,
    helpers: Helpers,
    context: Context,
    settings: FrameSettings | None = None,
    mix: csr_matrix | None = None,
    more_photos: Sequence[Pictured] = (),
) -> TrainingSet:
    """Everything from the fitted person to what an avatar is learned from.

    Args:
        subject: The fitted and dressed person.
        motions: What the person does, such as `training_motions`.
        generator: The video model.
        helpers: Models that look at the frames.
        context: Progress, cancelling, device.
        settings: How.
        mix: [N, V] the subdivided body (`Template.mix`), for the first texture; None leaves it out.
        more_photos: Further captured frames, from `more_photos.fit_more_photos`.

    Raises:
        UserError: If too many frames are refused.
        Cancelled: If the user cancelled.
    """
    settings = settings or FrameSettings()
    camera = motion_camera(subject, motions, settings.width_px, settings.height_px)
    checked = []
    for motion in motions:
        made = generate_motion(subject, motion, camera, generator, context, settings)
        checked.append(check_motion(subject, made, helpers, context, settings))
    return training_set(subject, checked, helpers, context, settings, mix, more_photos)


def training_set(
    subject: Subject,
    checked: Sequence[CheckedMotion],
    helpers: Helpers,
    context: Context,
    settings: FrameSettings | None = None,
    mix: csr_matrix | None = None,
    more_photos: Sequence[Pictured] = (),
) -> TrainingSet:
    """Targets of the frames that stay, and of the photographs; see `training_frames`.

    Raises:
        UserError: If too many frames were refused.
        Cancelled: If the user cancelled.
    """
    settings, notes = settings or FrameSettings(), TargetNotes()
    for motion in checked:
        notes.made_by.update(motion.made_by)
    report = report_of(checked, settings)
    labels = vertex_labels(subject)
    captured = [photo.framed(longest_px=settings.captured_px) for photo in (photo_of(subject), *more_photos)]
    generated = [(motion, frame) for motion in checked for frame in motion.kept()]
    estimators = tuple(helpers.surface())
    parser = helpers.parsing()
    notes.by("depth and normals", estimators[0] if estimators else None, "the posed proxy's own surface")
    notes.by("labels", parser, "the photo's labels, carried by the proxy")
    packed = []
    total = len(captured) + len(generated)
    for number in range(total):
        context.progress(TARGETS, number, total)
        late = number - len(captured)
        shown = captured[number] if late < 0 else generated[late][0].picture(generated[late][1]).framed()
        packed.append(pack(shown, subject, labels, estimators, parser, context))
    del estimators, parser  # the next models need their memory
    albedo = _albedo(captured, subject, labels, helpers, context, notes)
    face = _face_patch(subject, labels, helpers, context, settings, notes)
    texture = None
    if mix is not None:
        chosen = np.unique(np.linspace(0, len(generated) - 1, min(settings.texture_frames, len(generated))).astype(int))
        some = [generated[number][0].picture(generated[number][1]).framed() for number in chosen]
        texture = first_texture(subject, mix, captured, some)
    report = replace(report, generators=notes.lines())
    return TrainingSet(FrameStore(packed, context.device), albedo, face, texture, report)


def _albedo(
    captured: Sequence[Pictured],
    subject: Subject,
    labels: np.ndarray,
    helpers: Helpers,
    context: Context,
    notes: TargetNotes,
) -> tuple[np.ndarray, ...]:
    """The captured frames' colours without light."""
    model = helpers.albedo()
    notes.by("colours without light", model, "the light that fits the proxy's normals, taken out")
    made = []
    for shown in captured:
        if model is not None:
            made.append(model.albedo(shown.image, context))
            continue
        view = shown.proxy(subject)
        towards = shown.camera.position_m - _middle(subject, shown)
        made.append(unlit(shown, view, spread_labels(labels, view, shown.mask), towards, context.seed))
    return tuple(made)


def _middle(subject: Subject, shown: Pictured) -> np.ndarray:
    """[3] the pelvis in the world."""
    return np.asarray(subject.personal.joints_m[0], np.float64) + shown.translation_m


def _face_patch(
    subject: Subject,
    labels: np.ndarray,
    helpers: Helpers,
    context: Context,
    settings: FrameSettings,
    notes: TargetNotes,
) -> PackedFrame | None:
    """The photo's face, enlarged, as a captured frame of its own camera."""
    from backend.perception.identity import five_points

    person = subject.person
    if not len(person.face_px):
        return None
    model = helpers.face()
    notes.by("face patch", model, "the photo, enlarged by cubic interpolation")
    image = person.image
    if model is not None:
        image = model.restore(image, five_points(person.face_px), 1.0, context)
    low, high = person.face_px[:468, :2].min(0), person.face_px[:468, :2].max(0)
    side = 1.6 * float((high - low).max())
    corner = (low + high) / 2 - side / 2
    size = settings.face_px
    scale = size / side
    matrix = np.array([[scale, 0, -corner[0] * scale], [0, scale, -corner[1] * scale]])
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    # pixel centres lie at +0.5 in our cameras and at whole numbers in warps
    matrix[:, 2] += 0.5 * scale - 0.5
    crop = cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(person.mask, matrix, (size, size), flags=cv2.INTER_LINEAR)
    photo = photo_of(subject)
    camera = photo.camera.cropped(float(corner[0]), float(corner[1]), side, size)
    patch = replace(photo, image=crop, mask=np.clip(mask, 0, 1), camera=camera)
    return pack(patch, subject, labels, (), None, context, FACE_SEAM_SHARE)


__all__ = ["TrainingSet", "training_frames", "training_set"]
