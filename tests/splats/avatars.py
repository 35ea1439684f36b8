"""A small avatar made of known parts, for tests that need a bundle but no photo."""

from __future__ import annotations

import numpy as np

from backend.human.camera import PinholeCamera
from backend.human.model import BodyModel, load_default_body
from backend.human.personal import Personal
from backend.splats.avatar import build_avatar
from backend.splats.bound import BoundSplats, Kind, bind_points
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.gaussians import GaussianCloud, wxyz_to_matrices


def make_camera() -> PinholeCamera:
    w2c = np.diag([1.0, -1.0, -1.0, 1.0])
    w2c[:3, 3] = [0, 0.9, 3.0]
    return PinholeCamera(w2c, 900.0, 900.0, 320.0, 480.0, 640, 960)


def make_personal(body: BodyModel, seed: int = 0) -> Personal:
    rng = np.random.default_rng(seed)
    vertices, joints = body.rest(rng.normal(size=20) * 0.5)
    pose = 0.2 * rng.normal(size=(55, 3))
    actions = np.where(rng.random(52) < 0.2, rng.random(52), 0).astype(np.float32)
    return Personal(
        vertices, joints, pose, rng.normal(size=3) * 0.1, make_camera(), actions,
        np.ascontiguousarray(body.action_dirs_m.transpose(2, 0, 1)), np.zeros_like(vertices),
        np.zeros((960, 640), np.float32), True,
    )  # fmt: skip


def make_splats(body: BodyModel, rest_m: np.ndarray, count: int = 400, seed: int = 0) -> BoundSplats:
    """Random Gaussians near random triangles of the body's outside."""
    rng = np.random.default_rng(seed)
    outside = np.flatnonzero(body.outer[body.triangles].all(axis=1))
    triangles = rng.choice(outside, count)
    bary = rng.dirichlet((1, 1, 1), count)
    foot = np.einsum("nk,nkc->nc", bary, rest_m[body.triangles[triangles]])
    positions = foot + 0.01 * rng.normal(size=(count, 3))
    offsets, rotations = bind_points(
        positions, wxyz_to_matrices(rng.normal(size=(count, 4))), triangles, bary, rest_m, body.triangles
    )
    ones = np.ones(count)
    return BoundSplats(
        triangles, bary, offsets, rotations, rng.uniform(0.002, 0.01, (count, 3)), rng.uniform(0.3, 0.99, count),
        rng.random((count, 3)), ones, np.full(count, Kind.SKIN), ones, ones, 0 * ones,
    )  # fmt: skip


def make_avatar(count: int = 400, seed: int = 0) -> tuple[GaussianCloud, Avatar]:
    body = load_default_body()
    personal = make_personal(body, seed)
    splats = make_splats(body, personal.vertices_m, count, seed)
    return build_avatar(body, personal, np.zeros(20), personal.vertices_m, splats)


__all__ = ["make_avatar", "make_camera", "make_personal", "make_splats"]
