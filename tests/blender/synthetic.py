"""A small made-up avatar: tubes around the bones of a T-posed skeleton, discs on their triangles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from blender_addon.shared.avatar import Avatar, write_bundle
from blender_addon.shared.controls import Channel, Control, Controls, pack_controls
from blender_addon.shared.gaussians import GaussianCloud, matrices_to_wxyz, wxyz_product
from blender_addon.shared.skeleton import FACIAL_ACTIONS, JOINT_NAMES, PARENTS, bone_rest

_SIDE = {
    "hip": (0.09, 0.93, 0.0),
    "knee": (0.10, 0.51, 0.01),
    "ankle": (0.10, 0.09, -0.03),
    "foot": (0.11, 0.03, 0.09),
    "collar": (0.05, 1.41, 0.0),
    "shoulder": (0.18, 1.42, -0.01),
    # The forearm is not exactly along the upper arm, nor the hand along the forearm, as in a real body.
    "elbow": (0.45, 1.41, -0.02),
    "wrist": (0.70, 1.425, -0.01),
    "eye_smplhf": (0.032, 1.65, 0.08),
}
_MIDDLE = {
    "pelvis": (0.0, 0.97, 0.0),
    "spine1": (0.0, 1.08, -0.01),
    "spine2": (0.0, 1.20, -0.02),
    "spine3": (0.0, 1.28, -0.01),
    "neck": (0.0, 1.47, -0.02),
    "head": (0.0, 1.57, 0.01),
    "jaw": (0.0, 1.58, 0.03),
}
_FINGER_Z = {"index": 0.03, "middle": 0.01, "ring": -0.01, "pinky": -0.03, "thumb": 0.05}

SLIDERS = {"hair_length": 1.25, "bulk": -0.75, "belly": 50.0, "Skin tone.L": 0.5}
"""Values that tests give to some of the learned controls."""


def make_joints() -> np.ndarray:
    """[55, 3] joints of a T-pose, metres, body frame."""
    joints = []
    for name in JOINT_NAMES:
        side, _, part = name.partition("_")
        sign = -1.0 if side == "right" else 1.0
        if name in _MIDDLE:
            point = _MIDDLE[name]
        elif part in _SIDE:
            point = _SIDE[part]
        else:
            knuckle = int(part[-1]) - 1
            point = (0.78 + 0.03 * knuckle, 1.415 - 0.004 * knuckle, _FINGER_Z[part[:-1]])
        joints.append((point[0] * sign, point[1], point[2]))
    return np.array(joints)


def make_avatar(count: int = 4000, seed: int = 0) -> tuple[GaussianCloud, Avatar]:
    """A cloud and the avatar that binds it; the pose and the camera of the 'photo' are drawn by seed."""
    rng = np.random.default_rng(seed)
    joints = make_joints()
    vertices, triangles, owner, along = _tubes(joints)
    indices, weights = _skin(owner, along)
    binding, cloud = _bind(vertices, triangles, count, rng)
    offsets = np.zeros((len(FACIAL_ACTIONS) + 1, len(vertices), 3))
    head = np.isin(owner, [JOINT_NAMES.index("head"), JOINT_NAMES.index("jaw")])
    offsets[:, head] = rng.normal(0, 0.004, (len(offsets), int(head.sum()), 3))
    pose = rng.normal(0, 0.15, (55, 3))
    w2c = np.eye(4)
    # A camera 3 m away at (2, 1.4, -2), looking at the person: neither the side nor the origin of the avatar's own
    # frame.
    forward = np.array([-2.0, -0.2, 2.0]) / np.linalg.norm([-2.0, -0.2, 2.0])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    w2c[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    w2c[:3, 3] = -w2c[:3, :3] @ np.array([2.0, 1.4, -2.0])
    index = JOINT_NAMES.index
    avatar = Avatar(
        joint_names=np.array(JOINT_NAMES),
        parents=PARENTS,
        joints_m=joints.astype(np.float32),
        vertices_m=vertices.astype(np.float32),
        triangles=triangles,
        uvs=rng.random((len(triangles), 3, 2), np.float32),
        skin_indices=indices,
        skin_weights=weights,
        twist_names=np.array([f"{s}_{b}_twist" for b in ("forearm", "upper_arm") for s in ("left", "right")]),
        twist_parents=np.array([index(f"{s}_{b}") for b in ("elbow", "shoulder") for s in ("left", "right")], np.int32),
        twist_sources=np.array([index(f"{s}_{b}") for b in ("wrist", "shoulder") for s in ("left", "right")], np.int32),
        twist_factors=np.array([0.5, 0.5, -0.5, -0.5], np.float32),
        shape_key_names=np.array([*FACIAL_ACTIONS, "photo"]),
        shape_key_offsets_m=offsets.astype(np.float32),
        bind_triangle=binding["bind_triangle"],
        bind_bary=binding["bind_bary"],
        bind_off=binding["bind_off"],
        bind_qinv=binding["bind_qinv"],
        bind_length=binding["bind_length"],
        betas=np.zeros(20, np.float32),
        body_model=np.array("synthetic tubes"),
        photo_pose=pose.astype(np.float32),
        photo_translation_m=np.array([0.3, 0.2, -0.1], np.float32),
        photo_actions=rng.random(52).astype(np.float32),
        photo_w2c=w2c,
        photo_intrinsics_px=np.array([900.0, 900.0, 310.0, 425.0]),
        photo_size_px=np.array([640, 800]),
    )
    return cloud, avatar


def make_controls(avatar: Avatar, seed: int = 0) -> Controls:
    """Controls of every channel, sliders and followers of the pose, some of several channels, each in its region."""
    rng = np.random.default_rng(seed)
    count, vertices = len(avatar.bind_triangle), len(avatar.vertices_m)
    sizes: dict[Channel, float] = {
        **{"position": 0.02, "log_scale": 0.3, "rotation": 0.5, "radiance": 0.6, "opacity_logit": 2.0, "proxy": 0.01}
    }

    def deltas(*channels: Channel) -> dict[Channel, np.ndarray]:
        made = {}
        for channel in channels:
            rows = vertices if channel == "proxy" else count
            values = rng.normal(0, sizes[channel], (rows, 1 if channel == "opacity_logit" else 3))
            values[rng.random(rows) < 0.6] = 0.0
            made[channel] = values
        return made

    def follows(*joints: str) -> np.ndarray:
        weights = np.zeros((len(JOINT_NAMES), 6))
        for joint in joints:
            weights[JOINT_NAMES.index(joint)] = rng.normal(0, 0.7, 6)
        return weights

    sleeve = follows("left_elbow", "left_shoulder")
    return pack_controls(
        [
            Control("hair_length", deltas("position"), -1.0, 2.0, 0.25, "Hair", "Longer hair"),
            Control("Skin tone.L", deltas("radiance"), group="Skin"),
            Control("Skin tone.R", deltas("radiance"), group="Skin"),
            Control("bulk", deltas("position", "log_scale", "rotation", "opacity_logit"), -2.0, 2.0, 0.0, "Body"),
            Control("belly", {"proxy": deltas("proxy")["proxy"] / 30.0}, 20.0, 80.0, 35.0, "Body", "Rounder"),
            Control("wrinkles", deltas("position", "radiance"), pose=sleeve),
            Control("knee", deltas("log_scale", "rotation"), pose=follows("right_knee", "right_hip")),
            Control("all", deltas("position", "radiance", "opacity_logit"), pose=follows(*JOINT_NAMES[1:])),
            Control("muscle", deltas("proxy"), pose=follows("left_shoulder", "spine2")),
            Control("idle", deltas("position", "opacity_logit"), group="Hair"),
        ]
    )


def write_synthetic_bundle(folder: Path, count: int = 4000, seed: int = 0) -> Path:
    """Write the bundle's two data files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cloud, avatar = make_avatar(count, seed)
    write_bundle(folder, cloud, avatar)
    return folder


def _tubes(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices [V, 3], triangles [T, 3], owning joint [V] and place along its bone [V] 0..1."""
    rest = bone_rest(joints)
    rings, sides = np.linspace(0, 1, 6), np.arange(8) * np.pi / 4
    vertices, triangles, owner, along = [], [], [], []
    for joint in range(len(JOINT_NAMES)):
        length = np.linalg.norm(rest.tails_m[joint] - rest.heads_m[joint])
        radius = float(np.clip(0.3 * length, 0.006, 0.08))
        local = np.stack(np.meshgrid(rings, sides, indexing="ij"), axis=-1).reshape(-1, 2)
        point = np.stack([radius * np.cos(local[:, 1]), length * local[:, 0], radius * np.sin(local[:, 1])], axis=1)
        base = len(vertices) * len(point)
        ring, side = np.divmod(np.arange((len(rings) - 1) * len(sides)), len(sides))
        a, b = ring * len(sides) + side, ring * len(sides) + (side + 1) % len(sides)
        quads = np.stack([a, b, b + len(sides), a, b + len(sides), a + len(sides)], axis=1).reshape(-1, 3)
        vertices.append(rest.heads_m[joint] + point @ rest.matrices[joint].T)
        triangles.append(quads + base)
        owner.append(np.full(len(point), joint))
        along.append(local[:, 0])
    return (
        np.concatenate(vertices),
        np.concatenate(triangles).astype(np.int32),
        np.concatenate(owner),
        np.concatenate(along),
    )


def _skin(owner: np.ndarray, along: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each tube follows its joint, blends into the parent near its head, and arms share with their twist helpers."""
    indices, weights = np.zeros((len(owner), 8), np.uint8), np.zeros((len(owner), 8), np.float32)
    parents = np.maximum(PARENTS[owner], 0)
    toward_parent = np.clip(0.5 - along * 1.5, 0, 0.5)
    indices[:, 0], indices[:, 1] = owner, parents
    weights[:, 0], weights[:, 1] = 1 - toward_parent, toward_parent
    helpers = {"left_elbow": (55, along), "right_elbow": (56, along)}
    helpers |= {"left_shoulder": (57, 1 - along), "right_shoulder": (58, 1 - along)}
    for name, (column, ramp) in helpers.items():
        rows = owner == JOINT_NAMES.index(name)
        share = 0.6 * np.clip(ramp[rows], 0, 1) * weights[rows, 0]
        indices[rows, 2] = column
        weights[rows, 2] = share
        weights[rows, 0] -= share
    return indices, weights


def _bind(
    vertices: np.ndarray, triangles: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[dict[str, np.ndarray], GaussianCloud]:
    face = rng.integers(0, len(triangles), count).astype(np.int32)
    bary = rng.dirichlet(np.ones(3), count)
    v0, v1, v2 = (vertices[triangles[face, k]] for k in range(3))
    normal = np.cross(v1 - v0, v2 - v0)
    length = np.sqrt(np.linalg.norm(normal, axis=1))
    x = (v1 - v0) / np.linalg.norm(v1 - v0, axis=1, keepdims=True)
    z = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    frame = np.stack([x, np.cross(z, x), z], axis=2)
    offset = rng.normal(0, 0.004, (count, 3))
    spin = rng.normal(size=(count, 4)) * [1, 0.2, 0.2, 1]
    rest = matrices_to_wxyz(frame)
    positions = bary[:, :1] * v0 + bary[:, 1:2] * v1 + bary[:, 2:] * v2 + np.einsum("nij,nj->ni", frame, offset)
    colours = np.clip(0.5 + 0.5 * np.sin(positions * [5, 7, 9]), 0, 1)
    cloud = GaussianCloud.from_colours(
        positions,
        np.exp(rng.normal(np.log(0.008), 0.3, (count, 3))) * [1, 1, 0.2],
        wxyz_product(rest, spin / np.linalg.norm(spin, axis=1, keepdims=True)),
        rng.uniform(0.4, 0.99, count),
        colours,
    )
    binding = {
        "bind_triangle": face,
        "bind_bary": bary.astype(np.float32),
        "bind_off": offset.astype(np.float32),
        "bind_qinv": (rest * [1, -1, -1, -1]).astype(np.float32),
        "bind_length": length.astype(np.float32),
    }
    return binding, cloud
