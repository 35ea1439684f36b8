"""What the tables of learned avatars are measured on: oracle figures in motion, their pictures as training frames.

The method gets arrays only: pictures, outlines, depth, normals, and the poses that were asked for. How a figure's
clothes move through both training motions is simulated once and kept under the work folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from backend.human.lbs import skin
from backend.human.pose_tracks import FRAMES_BETWEEN_KEYS, training_motions
from backend.human.skin_field import FieldSettings, SkinField, diffuse
from backend.perception.labels import Label
from backend.raster import Cameras
from backend.splats.persona import Template, make_template
from backend.splats.persona_losses import TrainingFrame, vertex_normals
from tests.oracles.bodies import Array, OracleBody, PosedBody, load_body
from tests.oracles.mesh_renderer import Lamp, Picture
from tests.oracles.moving_figures import MovingFigure, make_moving, place
from tests.oracles.scene import Camera, look_from
from tests.oracles.video_defects import Defects, Kind, OracleVideo, shown_poses
from tests.oracles.wardrobe import DEVELOPMENT, REPORTED

View = Literal["body", "face", "chest"]
STRIDE = 4
"""Every so many frames of the motions are simulated."""

FRAMES_PER_SECOND = 15.0 / STRIDE
MOVING_M = 0.02
"""Cloth counts as moving where simulation carried it so far from where bones alone would have put it."""

HELD_OUT_KEYS = (6, 3)
"""Of the motions' key stances those with number % 6 == 3 are held out, with all frames that are nearest to them."""

LAMP = Lamp(sky=0.92, sky_slope=0.06, power=0.06)
"""Even light. An avatar's colours hold no light: under a strong lamp a turned body would measure the lamp."""

DISTANCE_M = 3.6
SIZES: dict[View, tuple[int, int, float, str]] = {
    "body": (72, 128, 2.48, ""),
    "face": (72, 72, 0.42, "head"),
    "chest": (96, 96, 0.96, "spine2"),
}
"""Width and height in px, height in metres, and the joint that the camera follows."""


LABELS = {"hair": Label.HAIR, "shoes": Label.SHOES, "top": Label.UPPER, "collar": Label.UPPER, "hood": Label.UPPER,
          "bottom": Label.LOWER, "skirt": Label.LOWER}  # fmt: skip
"""Of a figure's layers; all others are skin."""


@dataclass(frozen=True)
class Sight:
    """A training frame, and where [H, W] bool it shows what a table is about: moving cloth, or the face."""

    frame: TrainingFrame
    region: np.ndarray


@dataclass(frozen=True)
class Performance:
    """A figure's way through both motions.

    Attributes:
        figure: Who. poses: [F, 55, 3]. pelvis_m: [F, 3].
        cloths_m: Per cloth [F, N, 3].
        held_out: bool [F], frames near the keys that are held out.
    """

    figure: MovingFigure
    poses: Array
    pelvis_m: Array
    cloths_m: tuple[np.ndarray, ...]
    held_out: np.ndarray

    def cloths(self, frames: Sequence[int]) -> list[list[Array]]:
        """Points of each cloth in each of the frames."""
        return [[np.asarray(cloth[k], np.float64) for cloth in self.cloths_m] for k in frames]


def specs(reported: bool) -> tuple[str, ...]:
    """Names of the reported figures, or of those that methods are developed on."""
    return tuple(spec.name for spec in (REPORTED if reported else DEVELOPMENT))


@lru_cache(maxsize=2)
def perform(
    name: str, work: Path, *, plain: bool = False, hung: bool = False, detail: int = 1, frames: int = 0
) -> Performance:
    """Simulate a figure's clothes, or read what was simulated before.

    Args:
        name: Of the figure.
        work: Folder of what is kept.
        plain: Clothes of one colour each: patterns are finer than the few Gaussians of a small table can show.
        hung: No simulation: the clothes follow the bones.
        detail: See `make_moving`.
        frames: Only so many of the first, evenly from both motions' beginnings; 0 for all.
    """
    spec = next(spec for spec in (*REPORTED, *DEVELOPMENT) if spec.name == name)
    if plain:
        spec = replace(spec, clothes=tuple(replace(garment, pattern="plain") for garment in spec.clothes))
    figure = make_moving(spec, detail)
    motions = training_motions(figure.body.joints_m)
    cut = slice(0, frames // 2 * STRIDE or None, STRIDE)
    poses = np.concatenate([motion.poses[cut] for motion in motions]).astype(np.float64)
    pelvis = np.concatenate([motion.pelvis_m[cut] for motion in motions]).astype(np.float64)
    keys = np.concatenate([np.rint(np.arange(len(motion))[cut] / FRAMES_BETWEEN_KEYS) for motion in motions])
    held_out = keys.astype(int) % HELD_OUT_KEYS[0] == HELD_OUT_KEYS[1]
    if hung:
        posed = [place(figure.body, pose, at) for pose, at in zip(poses, pelvis, strict=True)]
        cloths = tuple(
            np.stack([body.carry(layer.cloth.points_m, layer.cloth.weights) for body in posed])
            for layer in figure.clothed
        )
        return Performance(figure, poses, pelvis, cloths, held_out)
    file = work / "performances" / f"{name}_{len(poses)}.npz"
    if not file.is_file():
        steps = [points for _, points in figure.perform(poses, pelvis)]
        made = {f"cloth_{k}": np.stack(points).astype(np.float32) for k, points in enumerate(zip(*steps, strict=True))}
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file.with_suffix(".part.npz"), poses=poses, **made)
        file.with_suffix(".part.npz").replace(file)
    with np.load(file, allow_pickle=False) as kept:
        if not np.array_equal(kept["poses"], poses):
            raise SystemExit(f"error: {file} is of other motions; delete it")
        cloths = tuple(kept[f"cloth_{k}"] for k in range(len(figure.clothed)))
    return Performance(figure, poses, pelvis, cloths, held_out)


def sights(performance: Performance, frames: Sequence[int], view: View, defects: Defects) -> Iterator[Sight]:
    """Frames as a video with defects shows them; the first one of the video is the photograph.

    Wrong labels are put on the labels: the figure stands where it was asked to, and the method is told otherwise.
    """
    figure, body = performance.figure, performance.figure.body
    shown = Defects(defects.seed, tuple(kind for kind in defects.kinds if kind != "labels"), defects.strength)
    wrong: tuple[Kind, ...] = ("labels",) if "labels" in defects.kinds else ()
    poses, pelvis = performance.poses[list(frames)], performance.pelvis_m[list(frames)]
    told = shown_poses(poses, Defects(defects.seed, wrong, defects.strength))
    video = OracleVideo(figure, shown, LAMP)
    face = _face(figure)
    labels = np.array([*(LABELS.get(name, Label.SKIN) for name in figure.layers), Label.NONE], np.uint8)
    scenes = video.scenes(poses, pelvis, FRAMES_PER_SECOND, performance.cloths(frames))
    for number, scene in enumerate(scenes):
        camera = _camera(view, scene.posed)
        picture = video.draw(scene, camera, face if view == "face" else None)
        region = picture.value > (0.5 if view == "face" else MOVING_M)
        shift = pelvis[number] - body.joints_m[0]
        yield Sight(_frame(picture, camera, labels, told[number], shift, frames[number] == 0), region)


def _camera(view: View, posed: PosedBody) -> Camera:
    width, height, across, joint = SIZES[view]
    centre = posed.joints_m[posed.body.joint(joint)] if joint else np.array([0.0, 0.95, 0.0])
    return look_from(centre, DISTANCE_M, 2.0, DISTANCE_M / across * height, (width, height))


def _frame(
    picture: Picture, camera: Camera, labels: np.ndarray, pose: Array, translation_m: Array, captured: bool
) -> TrainingFrame:
    rgba = torch.as_tensor(picture.rgba.astype(np.float32) / 255)
    image = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    depth = np.where(np.isfinite(picture.depth_m), picture.depth_m, 0).astype(np.float32)
    return TrainingFrame(
        image=image.permute(2, 0, 1).contiguous(),
        mask=rgba[..., 3].contiguous(),
        pose=torch.as_tensor(pose, dtype=torch.float32),
        translation_m=torch.as_tensor(translation_m, dtype=torch.float32),
        actions=torch.zeros(0),
        cameras=_cameras(camera),
        captured=captured,
        depth=torch.as_tensor(depth),
        normals=torch.as_tensor(picture.normals).permute(2, 0, 1).contiguous(),
        labels=torch.as_tensor(labels[picture.layer]),  # the last one, of layer -1, is none
    )


def _cameras(camera: Camera) -> Cameras:
    focal, width, height = camera.focal_px, camera.width, camera.height
    k = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]], dtype=torch.float32)
    return Cameras(torch.as_tensor(camera.w2c, dtype=torch.float32)[None], k, width, height)


def _face(figure: MovingFigure) -> list[Array]:
    """1 on the bare skin of the face, 0 elsewhere, per mesh of a moment."""
    body = figure.body
    head, jaw = body.joint("head"), body.joint("jaw")
    made = []
    for layer in figure.skinned:
        own = layer.weights[:, head] + layer.weights[:, jaw] > 0.5
        front = layer.mesh.points_m[:, 2] > body.joints_m[head, 2] + 0.03
        made.append((own & front & (layer.name == "skin")).astype(float))
    return made + [np.zeros(len(layer.colours)) for layer in figure.clothed]


def template_of(body: OracleBody, cell_m: float, fine: tuple[str, ...] = (), fine_m: float = 0.0) -> Template:
    """The figure's naked body with fewer vertices: those in one cell, and of one joint, become one.

    Args:
        body: Whose.
        cell_m: Side of a cell.
        fine: Joints whose vertices have cells of their own size, `fine_m` (0 keeps all).
        fine_m: See `fine`.
    """
    first = body.dominant()
    is_fine = np.isin(first, [body.joint(name) for name in fine])
    cells = np.floor(body.vertices_m / np.where(is_fine, max(fine_m, 1e-4), cell_m)[:, None]).astype(np.int64)
    _, owner = np.unique(np.column_stack([cells, first]), axis=0, return_inverse=True)
    owner = owner.ravel()
    count = np.bincount(owner)[:, None]
    points, weights = np.zeros((len(count), 3)), np.zeros((len(count), body.weights.shape[1]))
    np.add.at(points, owner, body.vertices_m)
    np.add.at(weights, owner, body.weights)
    triangles = owner[body.triangles]
    whole = (triangles != np.roll(triangles, 1, axis=1)).all(1)
    _, once = np.unique(np.sort(triangles[whole], axis=1), axis=0, return_index=True)
    return make_template(points / count, triangles[whole][once], weights / count, body.joints_m, subdivisions=0)


@lru_cache(maxsize=2)
def field_of(body_name: str, resolution: int = 48) -> SkinField:
    """Skinning weights off a body's surface."""
    body = load_body(body_name)
    return diffuse(body.vertices_m, body.weights, FieldSettings(resolution))


def first_colours(template: Template, frames: Sequence[TrainingFrame]) -> np.ndarray:
    """Colours [N, 3] to begin with: the photograph's where it sees a vertex, else the frames' median, else grey."""
    seen = np.full((len(frames), len(template), 3), np.nan)
    for number, frame in enumerate(frames):
        points = skin(
            torch.as_tensor(template.points_m), torch.as_tensor(template.joints_m), frame.pose,
            torch.as_tensor(template.weights), frame.translation_m,
        )  # fmt: skip
        w2c, k = frame.cameras.w2c[0], frame.cameras.K[0]
        local = points @ w2c[:3, :3].T + w2c[:3, 3]
        normals = vertex_normals(points, torch.as_tensor(template.triangles)) @ w2c[:3, :3].T
        facing = -(normals * torch.nn.functional.normalize(local, dim=1)).sum(1) > 0.35
        column, row = ((local[:, :2] / local[:, 2:]) * k[[0, 1], [0, 1]] + k[[0, 1], [2, 2]]).long().T
        inside = (column >= 0) & (column < frame.mask.shape[1]) & (row >= 0) & (row < frame.mask.shape[0])
        row, column = row.clamp(0, frame.mask.shape[0] - 1), column.clamp(0, frame.mask.shape[1] - 1)
        good = facing & inside & (frame.mask[row, column] > 0.95)
        if frame.depth is not None:
            good &= (frame.depth[row, column] - local[:, 2]).abs() < 0.08
        seen[number, good.numpy()] = frame.image[:, row, column].T[good].numpy()
    taken = [seen[number] for number, frame in enumerate(frames) if frame.captured]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of vertices that no frame sees
        made = np.nanmedian(seen, axis=0)
    for photo in taken:
        made = np.where(np.isnan(photo), made, photo)
    return np.where(np.isnan(made), 0.5, made).astype(np.float32)
