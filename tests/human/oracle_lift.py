"""A `LiftGenerator` that knows the figure: its true surfaces as Gaussians, with defects drawn by seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from backend.context import Context
from backend.diffusion.interfaces import Lifted, Source
from blender_addon.shared.gaussians import matrices_to_wxyz
from tests.human.oracle_splats import first_pose, meshes
from tests.human.oracle_subject import LAMP
from tests.oracles.meshes import Mesh, noise, vertex_normals


@dataclass(frozen=True)
class LiftDefects:
    """What is wrong with a lift.

    Attributes:
        seed: Of everything drawn. turn_deg: Largest turn about a random axis, besides `yaw_deg` about the vertical.
        warp: Root mean square of a smooth field, of the height. colour: Noise of the colours; cast: of the whole.
        stray: Share of Gaussians that float anywhere.
    """

    seed: int = 0
    turn_deg: float = 8.0
    yaw_deg: float = 0.0
    warp: float = 0.0
    colour: float = 0.0
    cast: float = 0.0
    stray: float = 0.0


@dataclass
class OracleLift:
    """Lifts the figure of `oracle_splats`, whatever picture it gets.

    Attributes:
        defects: See there. printed: With a print on the back. shape: "figure", or "ball" for another thing.
    """

    defects: LiftDefects = field(default_factory=LiftDefects)
    printed: bool = True
    shape: str = "figure"
    sources: tuple[Source, ...] = (Source("oracle of lifted figures", "", "GPL-3.0-or-later", True),)

    def lift(self, image: np.ndarray, mask: np.ndarray, context: Context) -> Lifted:
        """See `LiftGenerator`."""
        return self.truth_and_lift()[1]

    def truth_and_lift(self) -> tuple[np.ndarray, Lifted]:
        """Where each Gaussian truly belongs [N, 3], world, and the lift."""
        rng = np.random.default_rng(self.defects.seed)
        places, normals, colours = surface(self.printed) if self.shape == "figure" else ball(rng)
        height = float(np.ptp(places[:, 1]))
        wrong = places.copy()
        if self.defects.warp:
            for axis in range(3):
                wave = noise(places / height, 0.35, self.defects.seed * 3 + axis)
                wrong[:, axis] += self.defects.warp * height * wave / max(float(wave.std()), 1e-9)
        if self.defects.stray:
            stray = rng.random(len(wrong)) < self.defects.stray
            wrong[stray] = places.mean(0) + rng.uniform(-0.6, 0.6, (int(stray.sum()), 3)) * height
        axis = rng.normal(size=3)
        turn = _rotation(axis / np.linalg.norm(axis) * np.radians(self.defects.turn_deg) * rng.uniform(0.5, 1))
        turn = turn @ _rotation(np.array([0, np.radians(self.defects.yaw_deg), 0]))
        turned = (wrong - wrong.mean(axis=0)) @ turn.T
        middle, size = (turned.min(0) + turned.max(0)) / 2, float(np.ptp(turned, axis=0).max())
        rgb = colours * (1 + self.defects.cast * rng.uniform(-1, 1, 3))
        rgb = rgb + self.defects.colour * rng.normal(size=rgb.shape)
        frames = np.einsum("ij,njk->nik", turn, disc(normals))
        count = len(places)
        return places, Lifted(
            positions=((turned - middle) / size).astype(np.float32),
            scales=np.tile(np.float32([0.0030, 0.0030, 0.0008]), (count, 1)),
            rotations_wxyz=matrices_to_wxyz(frames).astype(np.float32),
            opacities=np.full(count, 0.95, np.float32),
            colours=np.clip(rgb, 0, 1).astype(np.float32),
        )


@lru_cache(maxsize=2)
def surface(printed: bool, count: int = 50_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, outward normals and lit colours [N, 3] of the figure's visible surfaces in the photo's pose."""
    rng = np.random.default_rng(0)
    parts = meshes(printed, first_pose()[0])
    areas = [_areas(mesh) for mesh in parts]
    whole = sum(float(a.sum()) for a in areas)
    out = []
    for mesh, area in zip(parts, areas, strict=True):
        number = round(count * float(area.sum()) / whole)
        pick = rng.choice(len(area), number, p=area / area.sum())
        u, v = rng.random((2, number))
        root = np.sqrt(u)
        bary = np.stack([1 - root, root * (1 - v), root * v], axis=1)
        corner = mesh.triangles[pick]
        upright = vertex_normals(mesh.points_m, mesh.triangles)
        normal = np.einsum("nk,nkc->nc", bary, upright[corner])
        normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        colour = np.einsum("nk,nkc->nc", bary, mesh.colours[corner]) * LAMP.shade(normal)[:, None]
        out.append((np.einsum("nk,nkc->nc", bary, mesh.points_m[corner]), normal, colour))
    places, normals, colours = (np.concatenate(group) for group in zip(*out, strict=True))
    return places, normals, colours


def ball(rng: np.random.Generator, count: int = 20_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A green ball."""
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return normals + [0, 1, 0], normals, np.tile([0.1, 0.7, 0.2], (count, 1))


def disc(normals: np.ndarray) -> np.ndarray:
    """[N, 3, 3] frames whose third axis is the normal."""
    helper = np.where(np.abs(normals[:, :1]) < 0.9, [[1.0, 0, 0]], [[0, 1.0, 0]])
    x = np.cross(helper, normals)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(normals, x), normals], axis=2)


def _areas(mesh: Mesh) -> np.ndarray:
    a, b, c = (mesh.points_m[mesh.triangles[:, k]] for k in range(3))
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)


def _rotation(vector: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(vector).as_matrix()
