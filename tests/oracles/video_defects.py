"""A video generator of known truth and known faults: oracle figures in motion, with what video models get wrong.

Kinds of defect, each drawn from a range by seed and scaled by ``strength`` (0: the truth itself):

- drift: colours and the face change, growing with time;
- swimming: texture slides over the surface;
- blur: focus that comes and goes;
- hands: fingers in poses that nobody asked for;
- labels: the person stands 1 to 3 degrees (per joint) off the prescribed pose;
- thickness: limbs swell and shrink. Held out: no method is developed against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.spatial import cKDTree

from backend.context import Context
from backend.diffusion.interfaces import PoseTrack, Source
from tests.oracles.bodies import Array, PosedBody, axis_angle, rotation_matrix
from tests.oracles.mesh_renderer import Lamp, Picture, draw
from tests.oracles.meshes import Mesh, noise, vertex_normals
from tests.oracles.moving_figures import Moment, MovingFigure, place
from tests.oracles.scene import Camera

Kind = Literal["drift", "swimming", "blur", "hands", "labels", "thickness"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HELD_OUT: Kind = "thickness"
DEVELOPED: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != HELD_OUT)
WRISTS_AND_FINGERS = (20, 21, *range(25, 55))
BODY_JOINTS = tuple(range(1, 22))


@dataclass(frozen=True)
class Defects:
    """What goes wrong in one video.

    Attributes:
        seed: of everything random. kinds: those that occur.
        strength: 1 is the full range of each kind, 0 none.
    """

    seed: int
    kinds: tuple[Kind, ...] = DEVELOPED
    strength: float = 1.0

    def of(self, kind: Kind, low: float, high: float) -> float:
        """How strong a kind is: drawn from its range, 0 where it does not occur."""
        drawn = self.random(kind).uniform(low, high)
        return drawn * self.strength if kind in self.kinds else 0.0

    def random(self, kind: Kind) -> np.random.Generator:
        """A generator of the kind's own, so that kinds do not change each other's draws."""
        return np.random.default_rng([self.seed, KINDS.index(kind)])


def shown_poses(poses: Array, defects: Defects) -> Array:
    """What is really shown for prescribed ``poses`` [F,55,3]: wandering errors of the joints and wrong fingers."""
    shown = poses.copy()
    size = np.radians(defects.of("labels", 1.0, 3.0))
    if size:
        wander = _wander(defects.random("labels"), (len(poses), len(BODY_JOINTS), 3), 20.0)
        length = np.linalg.norm(wander, axis=-1, keepdims=True)
        _turn(shown, BODY_JOINTS, wander / np.maximum(length, 1e-9) * size * np.minimum(length / np.sqrt(3), 1.0))
    curl = np.radians(defects.of("hands", 25.0, 60.0))
    if curl:
        wander = _wander(defects.random("hands"), (len(poses), len(WRISTS_AND_FINGERS), 3), 6.0)
        _turn(shown, WRISTS_AND_FINGERS, wander / np.sqrt(3) * curl)
    return shown


def _wander(rng: np.random.Generator, shape: tuple[int, int, int], frames: float) -> Array:
    """Smooth noise of unit variance along the first axis."""
    values = gaussian_filter1d(rng.normal(size=(shape[0] + 200, *shape[1:])), frames, axis=0)[100:-100]
    return values * np.sqrt(2 * np.sqrt(np.pi) * frames)


def _turn(poses: Array, joints: tuple[int, ...], by: Array) -> None:
    """Turns joints of poses [F,55,3] by axis-angles ``by`` [F,J,3], in place."""
    for frame in range(len(poses)):
        for column, joint in enumerate(joints):
            turned = rotation_matrix(poses[frame, joint]) @ rotation_matrix(by[frame, column])
            poses[frame, joint] = axis_angle(turned)


class _Paint:
    """Drift, swimming and thickness: what changes points and colours of one figure's meshes."""

    def __init__(self, figure: MovingFigure, defects: Defects, frames: int) -> None:
        rng = defects.random("drift")
        self._frames, self._layers = frames, figure.layers
        tints = {name: rng.normal(size=3) for name in sorted(set(figure.layers))}
        size = defects.of("drift", 0.10, 0.22)
        self._tints = {name: 1 + size * tint / np.linalg.norm(tint) for name, tint in tints.items()}
        self._face_m = defects.of("drift", 0.004, 0.009)
        self._face_seed = int(rng.integers(1 << 30))
        self._slide_m = defects.of("swimming", 0.003, 0.008)
        self._slide_seed = int(defects.random("swimming").integers(1 << 30))
        self._swell_m = defects.of("thickness", 0.003, 0.007)
        self._swell_phase = float(defects.random("thickness").uniform(0, 2 * np.pi))
        rest = [layer.mesh.points_m for layer in figure.skinned]
        rest += [layer.mix @ layer.cloth.points_m for layer in figure.clothed]
        self._rest = rest
        self._trees = [cKDTree(points) for points in rest] if self._slide_m else []
        seeds = range(self._slide_seed, self._slide_seed + 6)
        self._slides = [
            np.stack([noise(points, 0.25, seed) for seed in seeds], 1) for points in rest[: len(self._trees)]
        ]
        face = range(self._face_seed, self._face_seed + 3)
        self._warps = [np.stack([noise(points, 0.09, seed) for seed in face], 1) for points in rest]
        head = figure.body.joint("head")
        self._on_head = [layer.weights[:, head] for layer in figure.skinned]
        self._on_head += [np.zeros(len(points)) for points in rest[len(figure.skinned) :]]

    def apply(self, moment: Moment, frame: int, frames_per_second: float) -> list[Mesh]:
        """The meshes of a frame with this video's faults."""
        late = frame / max(self._frames - 1, 1)
        seconds = frame / frames_per_second
        made = []
        for k, mesh in enumerate(moment.meshes):
            points, colours = mesh.points_m, mesh.colours
            if self._slide_m:
                colours = colours[self._slid(k, seconds)]
            colours = colours * (1 + late * (self._tints[self._layers[k]] - 1))
            if self._face_m and self._on_head[k].any():
                points = points + late * self._face_m * self._warps[k] * self._on_head[k][:, None]
            if self._swell_m:
                beat = np.sin(2 * np.pi * 0.7 * seconds + self._swell_phase + 3 * self._rest[k][:, 1])
                points = points + vertex_normals(points, mesh.triangles) * (self._swell_m * beat)[:, None]
            made.append(replace(mesh, points_m=points, colours=np.clip(colours, 0, 1)))
        return made

    def _slid(self, k: int, seconds: float) -> NDArray[np.int64]:
        """For every point of mesh ``k`` the point whose colour it shows."""
        turn, slide = 2 * np.pi * seconds / 1.7, self._slides[k]
        slide = (np.cos(turn) - 1) * slide[:, :3] + np.sin(turn) * slide[:, 3:]  # a video begins with the right texture
        return self._trees[k].query(self._rest[k] + self._slide_m * slide)[1]


@dataclass(frozen=True)
class Scene:
    """What stands before the camera in one frame.

    Attributes:
        posed: the body. meshes: with the video's faults. moved_m: per mesh [N], see ``Moment``.
        blur: of the picture, standard deviation as a share of its height.
    """

    posed: PosedBody
    meshes: list[Mesh]
    moved_m: list[Array]
    blur: float


@dataclass(frozen=True)
class OracleVideo:
    """A ``VideoGenerator`` that shows one figure; it must be given the poses, not only their projection."""

    figure: MovingFigure
    defects: Defects
    lamp: Lamp = Lamp()
    warm_up: int = 24  # frames, see MovingFigure.perform

    @property
    def sources(self) -> tuple[Source, ...]:
        """Says that nothing of it is a published model."""
        return (Source("oracle of moving figures", f"seed {self.defects.seed}", "GPL-3.0-or-later", True),)

    def generate(
        self, reference: NDArray[np.uint8], track: PoseTrack, prompt: str, context: Context
    ) -> NDArray[np.uint8]:
        """Frames uint8 [F,H,W,3] on white; the reference is not looked at, the figure is known.

        Raises:
            ValueError: the track does not hold its poses and its camera.
        """
        frames = []
        for picture in self.pictures(track):
            context.progress("oracle video", len(frames), len(track.joints_px))
            alpha = picture.rgba[..., 3:] / 255.0
            frames.append(np.round(picture.rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8))
        return np.stack(frames)

    def pictures(self, track: PoseTrack) -> Iterator[Picture]:
        """The frames as the renderer gives them, with layers, depth and how far cloth moved."""
        if track.poses is None or track.pelvis_m is None or track.w2c is None:
            raise ValueError("the oracle needs the track's poses, pelvis_m and w2c")
        camera = Camera(track.w2c, track.focal_px, track.width, track.height)
        poses, pelvis = track.poses.astype(np.float64), track.pelvis_m.astype(np.float64)
        for scene in self.scenes(poses, pelvis, track.frames_per_second):
            yield self.draw(scene, camera)

    def scenes(
        self, poses: Array, pelvis_m: Array, frames_per_second: float, cloths_m: Sequence[list[Array]] | None = None
    ) -> Iterator[Scene]:
        """What stands before the camera in every frame; any camera may look at it.

        Args:
            poses: [F,55,3] that are asked for. pelvis_m: [F,3]. frames_per_second: of the video.
            cloths_m: points of each cloth per frame, where ``MovingFigure.perform`` has moved through these very poses
                before; a cloth's way takes longer than anything else.

        Raises:
            ValueError: cloths of the poses asked for, in a video whose people stand in others.
        """
        truly = shown_poses(poses, self.defects)
        wrong_hands = truly.copy()
        truly[:, WRISTS_AND_FINGERS] = poses[:, WRISTS_AND_FINGERS]  # sleeves are not moved by imagined fingers
        if cloths_m is None:
            performed = self.figure.perform(truly, pelvis_m, warm_up=self.warm_up)
        elif np.array_equal(truly, poses):
            moves = zip(poses, pelvis_m, cloths_m, strict=True)
            performed = ((place(self.figure.body, pose, at), cloths) for pose, at, cloths in moves)
        else:
            raise ValueError("cloths that were moved already belong to the poses asked for, not to those shown")
        paint = _Paint(self.figure, self.defects, len(poses))
        blur = self._blur(len(poses))
        for k, (posed, cloths) in enumerate(performed):
            moment = self.figure.dress(posed, cloths, shown=place(self.figure.body, wrong_hands[k], pelvis_m[k]))
            yield Scene(posed, paint.apply(moment, k, frames_per_second), moment.moved_m, float(blur[k]))

    def draw(self, scene: Scene, camera: Camera, values: Sequence[Array] | None = None) -> Picture:
        """A scene through a camera; ``values`` per mesh [N] instead of how far cloth moved."""
        picture = draw(scene.meshes, camera, self.lamp, scene.moved_m if values is None else values)
        return replace(picture, rgba=_soften(picture.rgba, scene.blur * camera.height))

    def _blur(self, frames: int) -> Array:
        """Standard deviation of each frame's blur, as a share of a picture's height."""
        most = self.defects.of("blur", 0.8, 2.0) / 1024
        wander = _wander(self.defects.random("blur"), (frames, 1, 1), 8.0)[:, 0, 0]
        return most * np.clip(0.5 + 0.5 * wander, 0, 1)


def _soften(rgba: NDArray[np.uint8], sigma_px: float) -> NDArray[np.uint8]:
    if sigma_px < 0.05:
        return rgba
    alpha = rgba[..., 3:] / 255.0
    soft = gaussian_filter(alpha, (sigma_px, sigma_px, 0))
    colour = gaussian_filter(rgba[..., :3] * alpha, (sigma_px, sigma_px, 0)) / np.maximum(soft, 1e-3)
    return np.round(np.clip(np.concatenate([colour, soft * 255], -1), 0, 255)).astype(np.uint8)
