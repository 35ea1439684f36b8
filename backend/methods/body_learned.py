"""The learned path of method `body`: generated frames, PERSONA's avatar, its pose deformation as controls.

It follows the photo-only stages and never loses their result: what cannot be done is said in a warning, and the avatar
is then the photo-only one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from backend.context import Context
from backend.diffusion.chosen import video_generator
from backend.diffusion.interfaces import VideoGenerator
from backend.diffusion.load import Folders
from backend.errors import FAILED, UserError
from backend.human.dress import Dressed
from backend.human.first_texture import FirstTexture
from backend.human.frame_targets import FrameStore, Helpers, PackedFrame, vertex_labels
from backend.human.generated_motion import (
    CheckedMotion,
    FrameReport,
    FrameSettings,
    GeneratedMotion,
    check_motion,
    generate_motion,
)
from backend.human.installed_helpers import installed_helpers
from backend.human.model import BodyModel
from backend.human.personal import Personal
from backend.human.pose_tracks import FRAMES_PER_SECOND, PoseSequence, ground, training_motions
from backend.human.skin_field import FieldSettings, diffuse
from backend.human.training_frames import TrainingSet, training_set
from backend.human.video_camera import Subject, motion_camera
from backend.memory import is_exhaustion
from backend.perception.people import Person
from backend.pipeline import Stage
from backend.splats.bound import BoundSplats
from backend.splats.optimise_persona import PersonaSettings, optimise_persona, terms_left_out
from backend.splats.perceptual import PerceptualLoss, perceptual_loss
from backend.splats.persona import PersonaAvatar, Template, make_template
from backend.splats.persona_avatar import OUTLINE, BoundPersona, Carrier, bind_persona, poses_to_distil
from backend.splats.persona_layer import OutlineLayer
from backend.splats.persona_targets import persona_frames
from backend.splats.persona_zones import mixed
from backend.splats.pose_deformation import DeformationSettings
from blender_addon.motion.bvh import MotionError
from blender_addon.motion.files import fit_motion, load_motion
from blender_addon.motion.retarget import RetargetSettings
from blender_addon.shared.skeleton import FACIAL_ACTIONS

if TYPE_CHECKING:
    from blender_addon.shared.methods import BodyRequest, Preset

MOTIONS = 2
"""Of our own; the user's follow them."""

HALF_PICTURES = "pictures of half the size"
WEARING = ("person", "body", "personal", "dressed")
NOT_WORTH_IT = (
    "The avatar is made from the photo alone: without a graphics card a video takes days; choose Frames: generated "
    "to wait for it"
)
NEIGHBOURS = 4
"""Gaussians of the photo-only path that give a point of the body its first colour."""

MOST_FRAMES = 450
"""Of a user's motion; as long as one of ours."""


@dataclass(frozen=True)
class LearnSettings:
    """How an avatar is learned.

    Attributes:
        frames: Of the video.
        every: Every so many frames of a motion are shown.
        weights: Of the skinning field.
        deformation: Of the network; linear in the pose, unlike the published one, since what Blender plays is (with 24
            controls 0.10 of the movement is lost instead of 0.39, `quality.py --learned`).
        persona: Of the optimisation.
        poses: That the controls are distilled from.
        controls: At most so many.
    """

    frames: FrameSettings = field(default_factory=FrameSettings)
    every: int = 1
    weights: FieldSettings = field(default_factory=FieldSettings)
    deformation: DeformationSettings = DeformationSettings(linear=True)
    persona: PersonaSettings = field(default_factory=PersonaSettings)
    poses: int = 400
    controls: int = 96

    @classmethod
    def of(cls, preset: Preset, device: str = "cuda") -> LearnSettings:
        """By preset: `best` is the published size, `fast` is for two processor cores."""
        persona = PersonaSettings.of(preset, device)
        if preset == "best":
            return cls(persona=persona)
        if preset == "balanced":
            return cls(persona=persona, poses=300, controls=48)
        frames = FrameSettings(width_px=288, height_px=512, captured_px=512, face_px=128, texture_frames=24)
        small = DeformationSettings(plane_size=64, features=16, width=64, linear=True)
        return cls(frames, 2, FieldSettings(resolution=64, steps=40), small, persona, poses=200, controls=24)


@dataclass(frozen=True)
class Tools:
    """What the path takes from outside; tests put oracles here.

    Attributes:
        video: Makes the video model.
        helpers: Models that look at frames.
        motions: `MOTIONS` motions of a person with rest joints [55, 3].
        settings: None takes those of the preset.
    """

    video: Callable[[Folders, Context], VideoGenerator] = video_generator
    helpers: Callable[[Folders, Context], Helpers] = installed_helpers
    motions: Callable[[np.ndarray], Sequence[PoseSequence]] = training_motions
    settings: LearnSettings | None = None


@dataclass(frozen=True)
class Part:
    """A step's value, or None and why: the result is then the photo-only one."""

    value: Any
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Findings:
    """`CheckedMotion` without the frames, which are kept once."""

    poses: np.ndarray
    translations_m: np.ndarray
    masks: np.ndarray
    reasons: tuple[str, ...]
    readings: tuple[str, ...]
    turns_deg: np.ndarray
    errors_px: np.ndarray
    made_by: dict[str, str]

    @classmethod
    def of(cls, checked: CheckedMotion) -> Findings:
        """What is kept of a motion that was looked at."""
        return cls(**{item.name: getattr(checked, item.name) for item in fields(cls)})

    def about(self, made: GeneratedMotion) -> CheckedMotion:
        """Put together again."""
        return CheckedMotion(made, **{item.name: getattr(self, item.name) for item in fields(self)})


@dataclass(frozen=True)
class Targets:
    """A `TrainingSet` as it is stored."""

    packed: tuple[PackedFrame, ...]
    albedo: tuple[np.ndarray, ...]
    face: PackedFrame | None
    texture: FirstTexture
    report: FrameReport
    settings: LearnSettings

    def training(self) -> TrainingSet:
        """As the optimiser's frames are made from it."""
        return TrainingSet(FrameStore(self.packed), self.albedo, self.face, self.texture, self.report)


@dataclass(frozen=True)
class Learned:
    """A learned avatar: the numbers by name, and what a term of its loss was made of."""

    numbers: dict[str, np.ndarray]
    made_by: tuple[str, ...]

    def put_into(self, avatar: PersonaAvatar) -> None:
        """Give an avatar that `first_avatar` made what was learned."""
        avatar.load_state_dict({name: torch.as_tensor(value) for name, value in self.numbers.items()})


def learned_stages(request: BodyRequest, tools: Tools | None = None) -> list[Stage]:
    """The stages after "Match the photo"; the last provides "persona", a `Part` with a `BoundPersona`."""
    path = _Path(request, tools or Tools())
    count = MOTIONS + len(request.motions)
    shown = tuple(f"shown_{number}" for number in range(1, count + 1))
    found = tuple(f"found_{number}" for number in range(1, count + 1))
    more = ("again",) if request.photos else ()
    return [
        Stage("Plan the motions", (*WEARING, "folder"), ("subject", "motions", "settings"), path.plan, keep=False),
        *(
            Stage(
                f"Show motion {k + 1}", ("subject", "motions", "settings", "models", *shown[max(k - 1, 0) : k]),
                (shown[k],), path.show(k), economies=(f"shown in {HALF_PICTURES}",),
            )
            for k in range(count)
        ),
        *(
            Stage(f"Check motion {k + 1}", ("subject", shown[k], "settings", "models"), (found[k],), path.check)
            for k in range(count)
        ),
        Stage(
            "Prepare the frames", ("subject", "settings", "models", *more, *shown, *found), ("targets",), path.prepare
        ),
        Stage(
            "Learn the avatar", ("subject", "matched", "models", "targets"), ("learned",), path.learn,
            economies=(f"learned from {HALF_PICTURES}",),
        ),
        Stage(
            "Distil into controls", ("subject", "motions", "matched", "targets", "learned"), ("persona",), path.distil
        ),
    ]  # fmt: skip


class _Path:
    """The stages' work, with what is the same for all of them."""

    def __init__(self, request: BodyRequest, tools: Tools) -> None:
        self._request, self._tools = request, tools

    def plan(
        self, person: Person, body: BodyModel, personal: Personal, dressed: Dressed, folder: Path, context: Context
    ) -> tuple[Subject, tuple[PoseSequence, ...], LearnSettings]:
        """The fitted and dressed person, what it is shown doing, and how large all of it is."""
        settings = self._tools.settings or LearnSettings.of(self._request.preset, context.device)
        subject = Subject(person, dressed.body(body), dressed.wearer(personal), dressed.vertices_m)
        joints = np.asarray(subject.personal.joints_m, np.float64)
        motions = [
            *self._tools.motions(joints),
            *(read_motion(folder / name, joints) for name in self._request.motions),
        ]
        return subject, tuple(_every(motion, settings.every) for motion in motions), settings

    def show(self, number: int) -> Callable[..., Part]:
        """The stage of one motion."""

        def run(
            subject: Subject, motions: Sequence[PoseSequence], settings: LearnSettings, models: Folders, *rest: Any
        ) -> Part:
            *before, context = rest
            if before and before[0].value is None:
                return Part(None)

            def work() -> GeneratedMotion:
                frames = _smaller(settings.frames, context.economy)
                _check_space(context, sum(len(motion) for motion in motions) * frames.width_px * frames.height_px)
                camera = motion_camera(subject, motions, frames.width_px, frames.height_px)
                context.progress("load the video model", 0, 1)
                generator = self._tools.video(models, context)
                try:
                    return generate_motion(subject, motions[number], camera, generator, context, frames)
                finally:
                    getattr(generator, "close", lambda: None)()

            if self._request.frames == "auto" and context.device == "cpu":
                return Part(None, (NOT_WORTH_IT,))
            return _part(work, context, economies=1)

        return run

    def check(self, subject: Subject, shown: Part, settings: LearnSettings, models: Folders, context: Context) -> Part:
        """Which frames of a motion show what was asked for."""
        if shown.value is None:
            return Part(None)
        helpers = self._tools.helpers(models, context)
        return _part(
            lambda: Findings.of(check_motion(subject, shown.value, helpers, context, settings.frames)), context
        )

    def prepare(self, subject: Subject, settings: LearnSettings, models: Folders, *rest: Any) -> Part:
        """Targets of the frames that stay; `rest` is further photos, what was shown, what was found, the context."""
        *parts, context = rest
        further = [each.picture for each in parts.pop(0).photos] if self._request.photos else []
        if any(part.value is None for part in parts):
            return Part(None)

        def work() -> Targets:
            half = len(parts) // 2
            checked = [b.value.about(a.value) for a, b in zip(parts[:half], parts[half:], strict=True)]
            helpers, mix = self._tools.helpers(models, context), template_of(subject, settings).mix
            made = training_set(subject, checked, helpers, context, settings.frames, mix, further)
            assert made.texture is not None
            return Targets(made.frames.packed, made.albedo, made.face, made.texture, made.report, settings)

        part = _part(work, context)
        return part if part.value is None else Part(part.value, part.value.report.warnings)

    def learn(self, subject: Subject, matched: BoundSplats, models: Folders, targets: Part, context: Context) -> Part:
        """PERSONA's optimisation; it goes on at the iteration where it stopped."""
        if targets.value is None:
            return Part(None)

        def work() -> Learned:
            settings = targets.value.settings.persona
            settings = replace(settings, picture_px=settings.picture_px >> context.economy)
            perceptual = _perceptual(settings, models, context)
            avatar = first_avatar(subject, matched, targets.value, context)
            training = targets.value.training()
            frames = persona_frames(training, settings.picture_px, settings.face_px, context.device)
            optimise_persona(avatar, frames, settings, context, perceptual)
            lacking = terms_left_out(avatar, frames, settings, perceptual)
            said = (f"perceptual term: {perceptual.name}", *(f"left out of the loss: {line}" for line in lacking))
            return Learned({name: value.cpu().numpy() for name, value in avatar.state_dict().items()}, said)

        return _part(work, context, economies=1)

    def distil(
        self,
        subject: Subject,
        motions: Sequence[PoseSequence],
        matched: BoundSplats,
        targets: Part,
        learned: Part,
        context: Context,
    ) -> Part:
        """The avatar without its network."""
        if learned.value is None:
            return Part(None)

        def work() -> BoundPersona:
            avatar = first_avatar(subject, matched, targets.value, context)
            learned.value.put_into(avatar)
            carrier = Carrier(subject.rest_m, subject.body.triangles, subject.body.outer)
            settings, poses = targets.value.settings, np.concatenate([motion.poses for motion in motions])
            wide = poses_to_distil(poses, settings.poses, context.seed)
            bound = bind_persona(avatar, carrier, matched, wide, min(settings.controls, len(wide)), context)
            return replace(bound, made_by=_said(bound, targets.value.report, learned.value))

        return _part(work, context)


def template_of(subject: Subject, settings: LearnSettings) -> Template:
    """The subdivided body of a dressed person."""
    body = subject.body
    return make_template(
        subject.rest_m, body.triangles, body.twist.skin_weights, subject.personal.joints_m, twist=body.twist,
        action_offsets_m=subject.personal.action_offsets_m, regions=body.regions,
        subdivisions=settings.persona.subdivisions, hops=settings.deformation.hops,
    )  # fmt: skip


def first_avatar(subject: Subject, matched: BoundSplats, targets: Targets, context: Context) -> PersonaAvatar:
    """Where learning begins: the photo-only result on PERSONA's body; the same seed begins at the same place.

    Args:
        subject: Who it is.
        matched: The photo-only path's Gaussians.
        targets: Of the frames, and the settings that they were made with.
        context: Device, seed, progress.
    """
    settings = targets.settings
    template = template_of(subject, settings)
    context.progress("weights about the body", 0, 1)
    weights = diffuse(template.points_m, template.weights, settings.weights, context.device)
    beside = matched.select(np.isin(matched.kind, OUTLINE))
    layer = OutlineLayer(beside, subject.rest_m, subject.body.triangles) if len(beside) else None
    labels = mixed(vertex_labels(subject), template.mix)
    colours, own = first_colours(subject, template, matched, targets.texture)
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        made = PersonaAvatar(
            template, weights, colours, settings.deformation, settings.persona.requery_every, own_colours=own,
            labels=labels, layer=layer,
        )  # fmt: skip
    return made.to(context.device)


def first_colours(
    subject: Subject, template: Template, matched: BoundSplats, texture: FirstTexture
) -> tuple[np.ndarray, np.ndarray]:
    """Colours [N, 3] that learning begins with, for all frames and for generated ones alone.

    Where the photo shows a point, and where no frame does, they are the photo-only path's; elsewhere the video's.
    """
    rest = np.asarray(subject.rest_m, np.float64)
    body = matched.select(~np.isin(matched.kind, OUTLINE))
    if not len(body):
        return texture.colours, texture.own_colours
    places = body.posed(rest, rest, subject.body.triangles).positions_m
    count = min(NEIGHBOURS, len(body))
    distance, near = cKDTree(places).query(template.points_m, k=count)
    shares = 1 / np.maximum(distance.reshape(-1, count), 1e-4)
    shares /= shares.sum(1, keepdims=True)
    photo = np.einsum("nk,nkc->nc", shares, body.colours[near.reshape(-1, count)])
    seen = texture.generated[:, None]
    share = np.where(seen, texture.from_photo[:, None], 1.0)
    colours = share * photo + (1 - share) * texture.colours
    return colours.astype(np.float32), np.where(seen, texture.own_colours, photo).astype(np.float32)


def _perceptual(settings: PersonaSettings, models: Folders, context: Context) -> PerceptualLoss:
    """LPIPS where it is wanted and installed, else its substitute."""
    from backend.diffusion.features import lpips

    if settings.lpips:
        try:
            return lpips(models, context.device)
        except UserError as error:
            if error.kind != "NO_MODEL":
                raise
    return perceptual_loss(None)


def _said(bound: BoundPersona, report: FrameReport, learned: Learned) -> tuple[str, ...]:
    """What made an avatar, for its result."""
    deformation = (
        f"learned avatar: PERSONA from {report.kept} generated frames; {len(bound.distilled.codes)} controls follow "
        f"the pose and leave {100 * bound.fit.total:.0f} % of what it moves"
    )
    return (*report.generators, *learned.made_by, deformation)


def _part(work: Callable[[], Any], context: Context, economies: int = 0) -> Part:
    """What `work` makes; where it cannot be made, why, in words for the artist.

    Memory that runs out is left to the ladder of the pipeline as long as that has a smaller step.
    """
    try:
        return Part(work())
    except (UserError, FloatingPointError) as error:
        reason = str(error)
    except Exception as error:
        last = context.economy >= economies and context.device == "cpu"
        if not (is_exhaustion(error) and last):
            raise
        reason = "memory ran out"
    return Part(None, (f"The avatar is made from the photo alone: {reason}",))


def read_motion(path: Path, joints_m: np.ndarray) -> PoseSequence:
    """A user's motion as one that a person with rest joints [55, 3] is shown in: in its place, of bearable length.

    Raises:
        UserError: If the file cannot be read as a motion.
    """
    try:
        motion = fit_motion(path.stem, load_motion(path), joints_m, RetargetSettings(fps=FRAMES_PER_SECOND))
    except (MotionError, OSError) as error:
        raise UserError(f"{error}; leave this motion out or choose another file") from error
    poses = motion.pose[:MOST_FRAMES].astype(np.float32)
    pelvis = ground(poses, joints_m).astype(np.float32)
    actions = np.zeros((len(poses), len(FACIAL_ACTIONS)), np.float32)
    return PoseSequence(motion.name, poses, pelvis, actions, FRAMES_PER_SECOND)


def _every(motion: PoseSequence, step: int) -> PoseSequence:
    """Every so many frames of a motion."""
    poses, pelvis, actions = (array[::step] for array in (motion.poses, motion.pelvis_m, motion.actions))
    return PoseSequence(motion.name, poses, pelvis, actions, motion.frames_per_second / step)


def _smaller(frames: FrameSettings, economy: int) -> FrameSettings:
    return replace(frames, width_px=frames.width_px >> economy, height_px=frames.height_px >> economy)


def _check_space(context: Context, pixels: int) -> None:
    """See that the disk holds the frames, their masks and targets: about 16 bytes a pixel.

    Raises:
        UserError: If it does not.
    """
    context.scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(context.scratch).free
    if free < 16 * pixels:
        text = f"generated frames need {16 * pixels / 1e9:.1f} GB on the disk and {free / 1e9:.1f} GB are free"
        raise UserError(text, FAILED, "DISK_FULL")


__all__ = ["LearnSettings", "Learned", "Part", "Targets", "Tools", "first_avatar", "learned_stages", "read_motion"]
