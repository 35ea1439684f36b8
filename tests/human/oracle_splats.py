"""An oracle figure as Gaussians: discs on its proxy, coloured by its photo in front, elsewhere grey but for hair."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np

from backend.human.camera import PinholeCamera
from backend.human.frame_targets import Pictured
from backend.human.more_photos import FurtherPhoto, same_exposure
from backend.human.video_camera import Subject, motion_camera
from backend.human.zbuffer import view_mesh
from backend.perception.labels import Label
from backend.splats.bound import BoundSplats, Kind, bind_points
from backend.splats.colour import blend_weight, gates, photo_confidence, sample_photo
from backend.splats.surface import disc_frames, sample_surface, vertex_normals
from blender_addon.shared.skeleton import JOINT_NAMES
from tests.human.oracle_subject import LAMP, LAYER_LABELS, figure, still, subject
from tests.oracles.mesh_renderer import Picture, draw
from tests.oracles.meshes import Mesh
from tests.oracles.moving_figures import place
from tests.oracles.scene import Camera

WHO = 1
"""Shirt and trousers."""

LOOSE_M = 0.016
"""How far the proxy is moved out to stand for clothes."""

PRINT = np.array([0.95, 0.75, 0.1])
GREY = 0.45
BARE = ("neck", "head", "left_elbow", "right_elbow", "left_wrist", "right_wrist")


@lru_cache(maxsize=1)
def dressed() -> Subject:
    """The figure on a proxy that stands for its clothes."""
    bare = subject(WHO)
    rest = np.asarray(bare.rest_m, np.float64)
    head = bare.body.skin_weights[:, JOINT_NAMES.index("neck")] + bare.body.skin_weights[:, JOINT_NAMES.index("head")]
    hands = bare.body.skin_weights[:, JOINT_NAMES.index("left_wrist") : JOINT_NAMES.index("right_wrist") + 1].sum(1)
    fingers = bare.body.skin_weights[:, JOINT_NAMES.index("left_index1") :].sum(1)
    cloth = np.clip(1 - head - hands - fingers, 0, 1) * (rest[:, 1] < bare.personal.joints_m[12, 1])
    grown = rest + LOOSE_M * cloth[:, None] * vertex_normals(rest, bare.body.triangles)
    return replace(bare, rest_m=grown)


def behind(yaw_deg: float = 180.0) -> PinholeCamera:
    """The photo's camera gone round the figure by an angle."""
    camera, middle = dressed().personal.camera, _posed(*first_pose()).mean(axis=0)
    a = np.radians(yaw_deg)
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about = np.eye(4)
    about[:3, :3], about[:3, 3] = turn, middle - turn @ middle
    return replace(camera, w2c=camera.w2c @ about)


def first_pose() -> tuple[np.ndarray, np.ndarray]:
    """Pose [55, 3] and translation [3] of the photo."""
    personal = dressed().personal
    return np.asarray(personal.pose, np.float64), np.asarray(personal.translation_m, np.float64)


def _posed(pose: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return dressed().posed_m(pose, shift)


def truth(camera: PinholeCamera, printed: bool, pose: np.ndarray | None = None) -> Picture:
    """What a camera sees of the figure; with a print on its back if wanted."""
    pose = first_pose()[0] if pose is None else pose
    return draw(meshes(printed, pose), Camera(camera.w2c, camera.fx, camera.width, camera.height), LAMP)


def meshes(printed: bool, pose: np.ndarray) -> list[Mesh]:
    """The figure's surfaces in a pose, its clothes following the bones."""
    shown = figure(WHO)
    pelvis = first_pose()[1] + dressed().personal.joints_m[0]
    posed = place(shown.body, pose, pelvis)
    cloths = [posed.carry(layer.cloth.points_m, layer.cloth.weights) for layer in shown.clothed]
    made = list(shown.dress(posed, cloths).meshes)
    if not printed:
        return made
    chest = posed.joints_m[posed.body.joint("spine3")]
    out = []
    for name, mesh in zip(shown.layers, made, strict=True):
        offset = mesh.points_m - chest
        here = (offset[:, 2] < -0.03) & (np.hypot(offset[:, 0], offset[:, 1]) < 0.1) & (name == "top")
        out.append(replace(mesh, colours=np.where(here[:, None], PRINT, mesh.colours)))
    return out


@lru_cache(maxsize=1)
def splats() -> BoundSplats:
    """Discs 8 mm apart, grey where the photo shows nothing, hair in its mean colour."""
    person = dressed()
    body, rest = person.body, np.asarray(person.rest_m, np.float64)
    outer = np.flatnonzero(body.outer[body.triangles].all(axis=1))
    samples = sample_surface(rest, body.triangles, outer, np.full(len(outer), 0.008), 0)
    normal = samples.interpolate(vertex_normals(rest, body.triangles), body.triangles)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    offsets, rotations = bind_points(
        samples.positions_m, disc_frames(normal), samples.triangles, samples.bary, rest, body.triangles
    )
    posed_mesh, camera = _posed(*first_pose()), person.personal.camera
    posed = samples.interpolate(posed_mesh, body.triangles)
    turned = samples.interpolate(vertex_normals(posed_mesh, body.triangles), body.triangles)
    turned = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-9)
    sight = posed - camera.position_m
    facing = -(turned * sight).sum(axis=1) / np.linalg.norm(sight, axis=1)
    depth = camera.to_camera(posed)[:, 2]
    uv = camera.project(posed)
    view = view_mesh(posed_mesh, body.triangles[outer], camera)
    confidence = photo_confidence(facing, depth, uv, view.nearest.depth_m, person.person.mask > 0.9)
    seen = sample_photo(person.person.image, uv, 0.008 * camera.fx / depth)
    share = blend_weight(confidence)[:, None]
    colour_gate, shape_gate = gates(confidence, facing)
    joint = body.skin_weights[body.triangles[samples.triangles, 0]].argmax(1)
    bare = np.isin(joint, [JOINT_NAMES.index(name) for name in BARE]) | (joint >= JOINT_NAMES.index("left_index1"))
    kind = np.where(bare, Kind.SKIN, Kind.CLOTH)
    kind[(joint == JOINT_NAMES.index("head")) & (normal[:, 2] < 0)] = Kind.HAIR
    hair = person.person.image[person.person.labels == Label.HAIR].mean(axis=0) / 255
    fill = np.where((kind == Kind.HAIR)[:, None], hair, GREY)
    count = len(samples)
    return BoundSplats(
        triangles=samples.triangles,
        bary=samples.bary,
        offsets_m=offsets,
        rotations_wxyz=rotations,
        scales_m=0.008 * np.tile([0.65, 0.65, 0.15], (count, 1)),
        opacities=np.full(count, 0.95),
        colours=share * seen + (1 - share) * fill,
        confidence=confidence,
        kind=kind,
        colour_gate=colour_gate,
        shape_gate=shape_gate,
        opacity_floor=np.full(count, 0.9),
    )


def photo_from_behind(printed: bool, pose_error_deg: float = 0.0, tint: tuple[float, ...] = (1, 1, 1)) -> FurtherPhoto:
    """A further photo after a fit whose joints are off by so much."""
    pose = first_pose()[0]
    shown = still(pose, WHO)
    camera = behind()
    assert motion_camera(dressed(), [shown], 360, 640).width == camera.width
    picture = truth(camera, printed)
    alpha = picture.rgba[..., 3:] / 255.0
    image = np.round(picture.rgba[..., :3] * np.array(tint) * alpha + 190 * (1 - alpha)).astype(np.uint8)
    names = np.array([LAYER_LABELS[name] for name in figure(WHO).layers] + [Label.NONE], np.uint8)
    labels = np.where(alpha[..., 0] > 0.5, names[picture.layer], Label.NONE).astype(np.uint8)
    wrong = pose + np.radians(pose_error_deg) * np.random.default_rng(3).choice([-1, 1], pose.shape)
    wrong[0] = pose[0]
    seen = Pictured(image, alpha[..., 0].astype(np.float32), camera, wrong, first_pose()[1], np.zeros(52), True)
    person = replace(dressed().person, image=image, mask=seen.mask, labels=labels)
    seen, _ = same_exposure(seen, person, dressed().person)
    return FurtherPhoto(seen, None, (), labels)  # type: ignore[arg-type]


def psnr(made: BoundSplats, camera: PinholeCamera, wanted: Picture) -> tuple[float, float]:
    """Of the Gaussians in the photo's pose against a picture, inside both outlines, with one gain; and the IoU."""
    from backend.splats.render import render, to_cameras

    proxy = _posed(*first_pose())
    drawn, alpha = render(made.posed(proxy, dressed().rest_m, dressed().body.triangles), to_cameras(camera))
    ours, theirs = alpha[0] > 0.5, wanted.rgba[..., 3] > 127
    a, b = drawn[0][ours & theirs], wanted.rgba[..., :3][ours & theirs] / 255.0
    gain = (a * b).sum() / (a * a).sum()
    return float(-10 * np.log10(np.square(gain * a - b).mean())), float((ours & theirs).sum() / (ours | theirs).sum())
