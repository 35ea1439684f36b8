"""The learned path on an oracle figure: what the photo-only stages leave behind, and tools that know the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from backend.context import Context, QuietSink
from backend.diffusion.interfaces import PoseTrack, Source, VideoGenerator
from backend.human.dress import Dressed
from backend.human.first_texture import first_texture
from backend.human.frame_checks import DetectorNoise
from backend.human.frame_targets import Helpers
from backend.human.generated_motion import FrameSettings, photo_of
from backend.human.pose_tracks import PoseSequence, training_motions
from backend.human.skin_field import FieldSettings, diffuse
from backend.methods.body import written
from backend.methods.body_learned import LearnSettings, Tools, learned_stages
from backend.perception.landmarks import PoseObservation
from backend.perception.photo import Photo
from backend.pipeline import Stage
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats, Kind, bind_points
from backend.splats.optimise_persona import PersonaSettings
from backend.splats.persona import PersonaAvatar, make_template
from backend.splats.persona_avatar import Carrier, bind_persona
from backend.splats.persona_layer import OutlineLayer
from backend.splats.pose_deformation import DeformationSettings
from blender_addon.shared.avatar import write_bundle
from blender_addon.shared.methods import BodyRequest
from tests.human.oracle_subject import KnowingDetector, PinholeCamera, figure, subject, truly_shown
from tests.oracles.video_defects import Defects, OracleVideo

WIDTH, HEIGHT = 108, 192
SMALL = LearnSettings(
    frames=FrameSettings(WIDTH, HEIGHT, captured_px=192, face_px=48, texture_frames=8),
    weights=FieldSettings(resolution=24, steps=10),
    deformation=DeformationSettings(plane_size=16, features=4, width=16),
    persona=PersonaSettings(epochs=1, picture_px=128, face_px=32, subdivisions=0, requery_every=10, lpips=False),
    poses=12,
    controls=4,
)
REQUEST = BodyRequest(preset="fast", frames="generated")


def few_motions(joints_m: np.ndarray, frames: int = 6) -> tuple[PoseSequence, PoseSequence]:
    """Both training motions with few frames."""
    made = []
    for whole in training_motions(joints_m):
        part = slice(14, 14 + 14 * frames, 14)
        made.append(PoseSequence(whole.name, whole.poses[part], whole.pelvis_m[part], 0 * whole.actions[part], 2.0))
    return made[0], made[1]


@dataclass
class KnownVideo:
    """An oracle's video that remembers what each frame truly shows, and a detector that is told.

    Attributes:
        defects: Of the video. made: Frames that were asked for. known: By a frame's hash, its detector.
    """

    defects: Defects = field(default_factory=lambda: Defects(11, ("blur", "labels")))
    made: int = 0
    known: dict[str, KnowingDetector] = field(default_factory=dict)
    noise: DetectorNoise = field(default_factory=lambda: DetectorNoise(px=1.0, m=0.0, bias_m=0.0, depth=0.15))

    @property
    def sources(self) -> tuple[Source, ...]:
        """Of the oracle."""
        return OracleVideo(figure(), self.defects).sources

    def generate(self, reference: np.ndarray, track: PoseTrack, prompt: str, context: Context) -> np.ndarray:
        """See `VideoGenerator`."""
        assert track.poses is not None and track.pelvis_m is not None and track.w2c is not None
        frames = OracleVideo(figure(), self.defects, warm_up=1).generate(reference, track, prompt, context)
        camera = PinholeCamera(
            track.w2c, track.focal_px, track.focal_px, track.width / 2, track.height / 2, track.width, track.height
        )
        poses = truly_shown(track.poses, self.defects)
        for k, frame in enumerate(frames):
            one = KnowingDetector(poses[k : k + 1], track.pelvis_m[k : k + 1], camera, (0,), seed=k)
            self.known[hashlib.sha256(frame.tobytes()).hexdigest()] = one
        self.made += len(frames)
        return frames

    def detect(self, image: np.ndarray) -> PoseObservation | None:
        """What the frame shows."""
        one = self.known.get(hashlib.sha256(image.tobytes()).hexdigest())
        return None if one is None else replace(one, frame=0).detect(image)

    def tools(self, settings: LearnSettings = SMALL) -> Tools:
        """For `learned_stages`."""
        return Tools(lambda *_: self, lambda *_: Helpers(self), few_motions, settings)


@lru_cache(maxsize=1)
def photo_only() -> BoundSplats:
    """What the photo-only path might have made: a Gaussian per third triangle, coloured by the photo, and hair."""
    person = subject()
    body, rest = person.body, np.asarray(person.rest_m, np.float64)
    rows = np.flatnonzero(body.outer[body.triangles].all(1))[::3]
    bary = np.full((len(rows), 3), 1 / 3)
    foot = rest[body.triangles[rows]].mean(1)
    turns = np.repeat(np.eye(3)[None], len(rows), 0)
    offsets, rotations = bind_points(foot, turns, rows, bary, rest, body.triangles)
    n = len(rows)
    mix = csr_matrix((bary.ravel(), (np.repeat(np.arange(n), 3), body.triangles[rows].ravel())), (n, len(rest)))
    colours = first_texture(person, mix, [photo_of(person)], []).colours
    hair = foot[:, 1] > np.percentile(foot[:, 1], 98)
    return BoundSplats(
        rows, bary, offsets + hair[:, None] * [0, 0, 0.01], rotations, np.full((n, 3), 0.01), np.full(n, 0.99),
        colours, np.ones(n), np.where(hair, Kind.HAIR, Kind.CLOTH), np.ones(n), np.ones(n), np.zeros(n),
    )  # fmt: skip


def values(folder: Path, request: BodyRequest = REQUEST, models: Any = None) -> Mapping[str, Any]:
    """What is there when the learned path begins."""
    person = subject()
    rest = np.asarray(person.rest_m, np.float32)
    dressed = Dressed(
        rest, rest, rest, np.zeros((4, 4)), None, np.zeros(len(rest), bool), None, ()  # type: ignore[arg-type]
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "photo": Photo, "request": request, "folder": folder, "models": models, "person": person.person,
        "body": person.body, "fit": SimpleNamespace(betas=np.zeros(20)), "personal": person.personal,
        "dressed": dressed, "matched": photo_only(),
    }  # fmt: skip


def chain(tools: Tools, request: BodyRequest = REQUEST) -> list[Stage]:
    """The learned path and the last stage."""
    return [*learned_stages(request, tools), written(("persona",))]


def random_bundle(folder: Path, controls: int = 8) -> None:
    """A bundle whose network was never trained: its numbers are random, its displacements up to some centimetres."""
    person = subject()
    body, joints = person.body, person.personal.joints_m
    template = make_template(
        person.rest_m, body.triangles, body.twist.skin_weights, joints, twist=body.twist, regions=body.regions,
        subdivisions=0,
    )  # fmt: skip
    outline = photo_only()
    layer = OutlineLayer(outline.select(outline.kind == Kind.HAIR), person.rest_m, body.triangles)
    torch.manual_seed(3)
    avatar = PersonaAvatar(
        template, diffuse(template.points_m, template.weights, SMALL.weights), np.full((len(template), 3), 0.5),
        SMALL.deformation, layer=layer,
    )  # fmt: skip
    torch.nn.init.normal_(avatar.deformation.layers[-1].weight, std=0.5)  # type: ignore[arg-type]
    poses = np.concatenate([motion.poses for motion in few_motions(joints, 20)]).astype(np.float64)
    carrier = Carrier(person.rest_m, body.triangles, body.outer)
    bound = bind_persona(avatar, carrier, outline, poses, controls, Context.quiet())
    cloud, made = build_avatar(body, person.personal, np.zeros(20), person.rest_m, bound.splats)
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, cloud, replace(made, controls=bound.controls()))


@dataclass
class Heard(QuietSink):
    """Remembers what was said."""

    lines: list[tuple[str, float, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    previews: list[np.ndarray] = field(default_factory=list)

    def progress(self, stage: str, done: float, total: float, note: str) -> None:
        """Keep it."""
        self.lines.append((stage, done, total))

    def preview(self, image: np.ndarray) -> None:
        """Keep it."""
        self.previews.append(image)

    def warning(self, code: str, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


__all__: Sequence[str] = ("KnownVideo", "VideoGenerator", "chain", "photo_only", "random_bundle", "values")
