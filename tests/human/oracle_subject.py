"""An oracle figure as a fitted person, and a detector that knows where its landmarks are.

The proxy is the figure's naked body in the backend's own topology: a fit without error, so that what the tests measure
is the frames' part alone. The detector poses the figure with the oracle's own skinning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from backend.context import Context
from backend.diffusion.interfaces import PoseTrack, Source
from backend.human.camera import PinholeCamera
from backend.human.frame_checks import DetectorNoise
from backend.human.model import BodyModel, load_default_body
from backend.human.personal import Personal
from backend.human.pose_tracks import PoseSequence, ground, training_motions
from backend.human.video_camera import Subject, motion_camera
from backend.perception.labels import Label
from backend.perception.landmarks import PoseObservation
from backend.perception.people import Person
from tests.oracles.bodies import Array
from tests.oracles.mesh_renderer import Lamp, Picture, draw
from tests.oracles.moving_figures import MovingFigure, make_moving, place
from tests.oracles.scene import Camera
from tests.oracles.video_defects import Defects, shown_poses
from tests.oracles.wardrobe import DEVELOPMENT

WIDTH, HEIGHT = 180, 320
LAYER_LABELS = {"skin": Label.SKIN, "eyes": Label.SKIN, "hair": Label.HAIR, "shoes": Label.SHOES, "top": Label.UPPER,
                "collar": Label.UPPER, "bottom": Label.LOWER, "skirt": Label.LOWER}  # fmt: skip
LAMP = Lamp()
LABELS = Defects(5, ("labels",))
FRAMES = 18
NO_PX, NO_M = np.zeros((0, 2)), np.zeros((0, 3))


@lru_cache(maxsize=2)
def figure(number: int = 0) -> MovingFigure:
    """A development figure."""
    return make_moving(DEVELOPMENT[number], 1)


@lru_cache(maxsize=2)
def rest_m(number: int = 0) -> Array:
    """[V, 3] the figure's naked body with the backend's teeth."""
    body, oracle = load_default_body(), figure(number).body
    count = len(oracle.vertices_m)
    head = oracle.joint("head")
    teeth = body.template_m[count:] + oracle.joints_m[head] - body.rest(np.zeros(20))[1][head]
    return np.concatenate([oracle.vertices_m, teeth])


@lru_cache(maxsize=2)
def motion(number: int = 0, frames: int = 24, start: int = 20) -> PoseSequence:
    """Every third frame of the first training motion: turning, arms in all directions."""
    whole = training_motions(figure(number).body.joints_m)[0]
    part = slice(start, start + 3 * frames, 3)
    return PoseSequence(whole.name, whole.poses[part], whole.pelvis_m[part], whole.actions[part] * 0, 5.0)


def still(pose: np.ndarray, number: int = 0, frames: int = 1) -> PoseSequence:
    """A motion that does not move."""
    poses = np.repeat(pose[None].astype(np.float32), frames, 0)
    pelvis = ground(poses, figure(number).body.joints_m).astype(np.float32)
    return PoseSequence("still", poses, pelvis, np.zeros((frames, 52), np.float32), 15.0)


@lru_cache(maxsize=4)
def subject(number: int = 0, yaw_deg: float = 0.0) -> Subject:
    """The figure photographed in the first pose of its motion, turned by `yaw_deg`."""
    body, oracle = load_default_body(), figure(number).body
    pose = motion(number).poses[0].astype(np.float64)
    pose[0] = [0.0, np.radians(yaw_deg), 0.0]
    shown = still(pose, number)
    bare = _subject(_blank(), body, oracle.joints_m, pose, shown.pelvis_m[0], number, _camera())
    camera = motion_camera(bare, [shown], 360, 640)
    picture = render(number, pose, shown.pelvis_m[0], camera)
    alpha = picture.rgba[..., 3] / 255.0
    image = np.round(picture.rgba[..., :3] * alpha[..., None] + 200 * (1 - alpha[..., None])).astype(np.uint8)
    names = np.array([LAYER_LABELS[name] for name in figure(number).layers] + [Label.NONE], np.uint8)
    marks = landmarks(number, pose, shown.pelvis_m[0])
    person = replace(
        _blank(),
        image=image,
        mask=alpha.astype(np.float32),
        labels=np.where(alpha > 0.5, names[picture.layer], Label.NONE).astype(np.uint8),
        keypoints_px=camera.project(marks),
        keypoint_visibility=np.ones(33),
        face_px=np.concatenate([camera.project(_face(number, pose, shown.pelvis_m[0])), np.zeros((478, 1))], 1),
    )
    return _subject(person, body, oracle.joints_m, pose, shown.pelvis_m[0], number, camera)


def _subject(
    person: Person, body: BodyModel, joints: Array, pose: Array, pelvis: Array, number: int, camera: PinholeCamera
) -> Subject:
    rest = rest_m(number)
    actions = np.zeros((52, len(rest), 3), np.float32)
    none = np.zeros(person.image.shape[:2], np.float32)
    shift = np.asarray(pelvis, np.float64) - joints[0]
    personal = Personal(rest, joints, pose, shift, camera, np.zeros(52), actions, np.zeros_like(rest), none, True)
    return Subject(person, body, personal, rest)


def _camera() -> PinholeCamera:
    return PinholeCamera(np.eye(4), 100.0, 100.0, 32.0, 32.0, 64, 64)


def _blank() -> Person:
    nothing = np.zeros((64, 64))
    return Person(
        np.zeros((64, 64, 3), np.uint8), nothing.astype(np.float32), nothing.astype(np.uint8), np.zeros((33, 2)),
        np.zeros(33), np.zeros(33), np.zeros((33, 3)), NO_M, NO_PX, NO_PX, NO_M, NO_M, (),
    )  # fmt: skip


def _face(number: int, pose: Array, pelvis: Array) -> Array:
    """[478, 3] face landmarks in the world; the irises lie where the eyes are."""
    body, posed = load_default_body(), place(figure(number).body, pose, np.asarray(pelvis, np.float64))
    points = body.face_landmarks[:, : len(posed.vertices_m)] @ posed.vertices_m
    eyes = [posed.joints_m[posed.body.joint(f"{side}_eye")] for side in ("right", "left")]
    return np.concatenate([points, np.repeat(eyes, 5, 0)])


def landmarks(number: int, pose: Array, pelvis: Array) -> Array:
    """[33, 3] mediapipe's landmarks of a figure in the world, by the oracle's own skinning."""
    posed = place(figure(number).body, np.asarray(pose, np.float64), np.asarray(pelvis, np.float64))
    return load_default_body().pose_keypoints[:, : len(posed.vertices_m)] @ posed.vertices_m


@dataclass
class KnowingDetector:
    """A detector that is told what each frame truly shows, and adds noise.

    Attributes:
        poses: [F, 55, 3] as shown. pelvis_m: [F, 3]. camera: Of the frames.
        numbers: [F] which figure is shown.
        seed: Of the noise. px: Of the noise. bones_m: Noise of the world landmarks.
        noise: What it says of itself. frame: The next one.
    """

    poses: Array
    pelvis_m: Array
    camera: PinholeCamera
    numbers: Sequence[int]
    seed: int = 0
    px: float = 1.0
    bones_m: float = 0.02
    noise: DetectorNoise = field(default_factory=lambda: DetectorNoise(px=1.0, m=0.0, bias_m=0.0, depth=0.15))
    frame: int = 0

    def detect(self, image: np.ndarray) -> PoseObservation | None:
        """The next frame's landmarks."""
        frame, self.frame = self.frame, self.frame + 1
        rng = np.random.default_rng([self.seed, frame])
        points = landmarks(self.numbers[frame], self.poses[frame], self.pelvis_m[frame])
        pixels = self.camera.project(points) + self.px * rng.normal(size=(33, 2))
        world = self.camera.to_camera(points) + self.bones_m * rng.normal(size=(33, 3))
        world -= world[[23, 24]].mean(0)
        return PoseObservation(pixels, np.ones(33), world, np.zeros(image.shape[:2], np.float32))


@dataclass
class SkinnedVideo:
    """A `VideoGenerator` without cloth simulation, whose frames may be spoiled one by one.

    Attributes:
        numbers: Which figure each frame shows. poses: What is really shown, from what is asked.
        spoil: Changes frame K of uint8 [H, W, 3].
    """

    numbers: Sequence[int]
    poses: Callable[[Array], Array] = lambda poses: poses
    spoil: Callable[[int, np.ndarray], np.ndarray] = lambda _, frame: frame
    sources: tuple[Source, ...] = (Source("oracle of skinned figures", "", "GPL-3.0-or-later", True),)
    asked: list[PoseTrack] = field(default_factory=list)
    references: list[np.ndarray] = field(default_factory=list)

    def generate(self, reference: np.ndarray, track: PoseTrack, prompt: str, context: Context) -> np.ndarray:
        """See `VideoGenerator`."""
        assert track.poses is not None and track.pelvis_m is not None and track.w2c is not None
        self.asked.append(track)
        self.references.append(reference)
        camera = PinholeCamera(
            track.w2c, track.focal_px, track.focal_px, track.width / 2, track.height / 2, track.width, track.height
        )
        frames = []
        for k, pose in enumerate(self.poses(track.poses.astype(np.float64))):
            context.raise_if_cancelled()
            picture = render(self.numbers[k], pose, track.pelvis_m[k], camera)
            alpha = picture.rgba[..., 3:] / 255.0
            frame = np.round(picture.rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
            frames.append(self.spoil(k, frame))
        return np.stack(frames)


def render(number: int, pose: Array, pelvis_m: Array, camera: PinholeCamera, lamp: Lamp = LAMP) -> Picture:
    """A figure whose clothes only follow the bones."""
    view = (camera.fx, camera.width, camera.height, lamp)
    arrays = (np.asarray(array, np.float64).tobytes() for array in (pose, pelvis_m, camera.w2c))
    return _rendered(number, *arrays, *view)


@lru_cache(maxsize=100)
def _rendered(
    number: int, pose: bytes, pelvis: bytes, w2c: bytes, focal: float, width: int, height: int, lamp: Lamp
) -> Picture:
    shown = figure(number)
    posed = place(shown.body, np.frombuffer(pose).reshape(55, 3), np.frombuffer(pelvis))
    cloths = [posed.carry(layer.cloth.points_m, layer.cloth.weights) for layer in shown.clothed]
    camera = Camera(np.frombuffer(w2c).reshape(4, 4), focal, width, height)
    return draw(shown.dress(posed, cloths).meshes, camera, lamp)


def truly_shown(poses: Array, defects: Defects) -> Array:
    """What an oracle video shows for these poses."""
    return shown_poses(poses.astype(np.float64), defects)


@lru_cache(maxsize=1)
def short() -> PoseSequence:
    """Turning away and back, arms in several directions."""
    whole = training_motions(figure().body.joints_m)[0]
    part = slice(60, 60 + 7 * FRAMES, 7)
    return PoseSequence(whole.name, whole.poses[part], whole.pelvis_m[part], 0 * whole.actions[part], 2.0)


def off_label(poses: Array) -> Array:
    """What a faulty model shows: every joint 1 to 3 degrees off."""
    return truly_shown(poses, LABELS)
