"""Dressed oracle figures in motion: skinned bodies, hair and shoes, and clothes that are simulated.

A figure is put together once in T-pose; ``perform`` then moves it through any poses. Nothing of the code under
judgement is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_matrix, identity
from scipy.spatial import cKDTree

from tests.oracles.bodies import Array, OracleBody, PosedBody, joint_transforms, load_body, skin, stand
from tests.oracles.cloth import Cloth, ClothSettings, ClothSimulation, Sweep
from tests.oracles.garments import Garment, measures_of, pattern_colours, skirt_colours, wear
from tests.oracles.looks import hair_meshes, paint_eyeballs, paint_skin
from tests.oracles.meshes import Mesh, Sheet, grid_triangles, sheet_of, subdivide
from tests.oracles.wardrobe import FigureSpec

SKIRT_ROWS, SKIRT_COLUMNS = 60, 220  # of a draped skirt's grid; every second row and column is simulated
HAIR_JOINTS = ("head", "neck", "spine3", "jaw")


@dataclass(frozen=True)
class Skinned:
    """A layer that follows the bones: points_m [N,3] in T-pose, weights [N,55]."""

    name: str
    mesh: Mesh
    weights: Array


@dataclass(frozen=True)
class Clothed:
    """A layer that is simulated: the cloth, and the finer mesh that is drawn (``mix`` [M,N] of the cloth's points)."""

    name: str
    cloth: Cloth
    mix: csr_matrix
    triangles: np.ndarray
    colours: Array
    surface: str


@dataclass(frozen=True)
class Moment:
    """One frame of a performance.

    Attributes:
        posed: the body. meshes: all layers, skinned ones first. moved_m: per mesh [N], how far simulation carried
        each point from where skinning alone would have put it (0 for skinned layers).
    """

    posed: PosedBody
    meshes: list[Mesh]
    moved_m: list[Array]


@dataclass(frozen=True)
class MovingFigure:
    """A figure that can be moved. ``layers``: names in the order of a moment's meshes."""

    body: OracleBody
    skinned: tuple[Skinned, ...]
    clothed: tuple[Clothed, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the meshes of every moment."""
        return tuple(layer.name for layer in (*self.skinned, *self.clothed))

    def perform(
        self, poses: Array, translations_m: Array, settings: ClothSettings | None = None, warm_up: int = 24
    ) -> Iterator[tuple[PosedBody, list[Array]]]:
        """Moves through poses [F,55,3] with the pelvis at ``translations_m`` [F,3]; gives body and cloths per frame.

        Args:
            warm_up: frames of the way from T-pose to the first pose; as many again settle the cloth there.
        """
        settings = settings or ClothSettings()
        before = place(self.body, np.zeros((55, 3)), translations_m[0])
        cloths = [ClothSimulation(layer.cloth, before, settings) for layer in self.clothed]
        shares = [min(k / max(warm_up, 1), 1.0) for k in range(1, 2 * warm_up + 1)]
        way = [(poses[0] * share, translations_m[0]) for share in shares]
        for number, (pose, translation) in enumerate([*way, *zip(poses, translations_m, strict=True)]):
            posed = place(self.body, pose, translation)
            sweep = Sweep(before, posed, settings.substeps)
            points = [cloth.step(sweep) for cloth in cloths]
            before = posed
            if number >= len(way):
                yield posed, points

    def dress(self, posed: PosedBody, cloths_m: Sequence[Array], *, shown: PosedBody | None = None) -> Moment:
        """The meshes of one frame.

        Args:
            cloths_m: points of each cloth, as ``perform`` gave them.
            shown: draw the body in this pose instead (a wrong hand); the clothes stay.
        """
        body = shown or posed
        meshes = [replace(s.mesh, points_m=body.carry(s.mesh.points_m, s.weights)) for s in self.skinned]
        moved = [np.zeros(len(mesh.points_m)) for mesh in meshes]
        for layer, points in zip(self.clothed, cloths_m, strict=True):
            bones = posed.carry(layer.cloth.points_m, layer.cloth.weights)
            meshes.append(Mesh(layer.mix @ points, layer.triangles, layer.colours, layer.surface))  # type: ignore[arg-type]
            moved.append(layer.mix @ np.linalg.norm(points - bones, axis=1))
        return Moment(posed, meshes, moved)


def place(body: OracleBody, pose: Array, pelvis_m: Array) -> PosedBody:
    """Poses a body with its pelvis at ``pelvis_m`` [3]."""
    rotations, joints = joint_transforms(body, pose)
    shift = pelvis_m - joints[0]
    return PosedBody(
        body, pose, shift, skin(body, pose, body.vertices_m, body.weights) + shift, joints + shift, rotations
    )


def make_moving(spec: FigureSpec, detail: int = 2) -> MovingFigure:
    """Dresses a figure for motion. detail: subdivisions of skin and of what is drawn of the clothes."""
    body = load_body(spec.body)
    rest = stand(body, np.zeros((55, 3)))
    hidden = np.zeros(len(body.vertices_m), bool)
    skinned: list[Skinned] = []
    clothed: list[Clothed] = []
    for number, garment in enumerate(spec.clothes):
        seed = spec.seed * 10 + number
        worn = wear(rest, replace(garment, pattern="plain"), seed, 1)
        hidden |= worn.hidden
        if garment.kind in ("top", "bottom", "skirt"):
            clothed.append(_cloth(rest, garment, worn.meshes[0], seed, detail))
        elif garment.kind == "shoes":
            skinned += [_follow(rest, "shoes", mesh, None) for mesh in worn.meshes]
        else:
            skinned += [_follow(rest, garment.kind, mesh, ("spine3",)) for mesh in worn.meshes]
    for mesh in hair_meshes(rest, spec.hair, spec.hair_colour, spec.seed, min(detail, 1)):
        skinned.append(_follow(rest, "hair", mesh, HAIR_JOINTS))
    return MovingFigure(body, (*_skin(body, hidden, spec, detail), *skinned), tuple(clothed))


def _skin(body: OracleBody, hidden: np.ndarray, spec: FigureSpec, detail: int) -> list[Skinned]:
    eye = np.isin(body.dominant(), [body.joint("left_eye"), body.joint("right_eye")])
    made = []
    for keep, name in ((~hidden & ~eye, "skin"), (eye, "eyes")):
        sheet = subdivide(sheet_of(len(body.vertices_m), body.triangles, keep), detail)
        points = sheet.mix @ body.vertices_m
        if name == "eyes":
            colours = paint_eyeballs(body, points, sheet.mix @ eye.astype(float), spec.face)
        else:
            colours = paint_skin(body, points, sheet.mix @ body.lips, sheet.mix @ body.lids, spec.face, spec.seed)
        surface = "eye" if name == "eyes" else "skin"
        made.append(Skinned(name, Mesh(points, sheet.triangles, colours, surface), sheet.mix @ body.weights))
    return made


def _follow(rest: PosedBody, name: str, mesh: Mesh, joints: tuple[str, ...] | None) -> Skinned:
    """Skins a mesh like the body under it; ``joints``: only these may carry it."""
    body = rest.body
    points = mesh.points_m - rest.translation_m
    allowed = np.ones(len(body.vertices_m), bool)
    if joints is not None:
        allowed = np.isin(body.dominant(), [body.joint(joint) for joint in joints])
    weights = _weights_near(body, points, allowed)
    if joints is not None:
        outside = np.ones(55, bool)
        outside[[body.joint(joint) for joint in joints]] = False
        weights[:, outside] = 0
        weights /= weights.sum(1, keepdims=True)
    return Skinned(name, replace(mesh, points_m=points), weights)


def _weights_near(body: OracleBody, points: Array, allowed: np.ndarray, power: float = 4.0) -> Array:
    distance, index = cKDTree(body.vertices_m[allowed]).query(points, k=6)
    share = 1 / np.maximum(distance, 1e-4) ** power
    share /= share.sum(1, keepdims=True)
    return np.einsum("nk,nkj->nj", share, body.weights[allowed][index])


def _cloth(rest: PosedBody, garment: Garment, mesh: Mesh, seed: int, detail: int) -> Clothed:
    """Makes a draped garment's outer side a cloth, and the finer mesh with its pattern that is drawn."""
    body, size = rest.body, measures_of(rest.body).size
    count = len(mesh.points_m) // 2  # the inner side of a solid mesh is its second half
    points = mesh.points_m[:count] - rest.translation_m
    triangles = mesh.triangles[(mesh.triangles < count).all(1)]
    if garment.kind == "skirt":
        grid = points.reshape(SKIRT_ROWS, SKIRT_COLUMNS, 3)[::2, ::2]
        points, triangles = grid.reshape(-1, 3), grid_triangles(*grid.shape[:2], closed=True)
        cloth = _hanging(body, points, triangles, grid.shape[1])
    else:
        cloth = _worn(body, garment, points, triangles, size)
    sheet = subdivide(Sheet(identity(len(points), format="csr"), triangles), max(detail - 1, 0))
    fine = sheet.mix @ points
    if garment.kind == "skirt":
        columns = grid.shape[1]
        row, column = np.divmod(np.arange(len(points)), columns)
        turn = sheet.mix @ np.stack([np.cos(2 * np.pi * column / columns), np.sin(2 * np.pi * column / columns)], 1)
        flat = np.stack([np.arctan2(turn[:, 1], turn[:, 0]), sheet.mix @ (row / SKIRT_ROWS * 2)], 1)
        colours = skirt_colours(garment, flat, fine, seed)
    else:
        colours = pattern_colours(body, garment, fine, seed)
    return Clothed(garment.kind, cloth, sheet.mix, sheet.triangles, colours, garment.surface)


def _worn(body: OracleBody, garment: Garment, points: Array, triangles: np.ndarray, size: float) -> Cloth:
    """A top hangs from the shoulders, trousers from the waist; sleeves and legs may get some centimetres away."""
    weights = _weights_near(body, points, np.ones(len(body.vertices_m), bool), 2.0)
    shoulder = body.joints_m[body.joint("left_shoulder")]
    if garment.kind == "top":
        pinned = (points[:, 1] > shoulder[1] + 0.015 * size) & (np.abs(points[:, 0]) < shoulder[0])
        reach = 0.02 + 0.10 * np.clip((shoulder[1] - points[:, 1]) / (0.45 * size), 0, 1)
        reach = np.where(np.abs(points[:, 0]) > shoulder[0] + 0.03, 0.04, reach)
    else:
        top = points[:, 1].max()
        pinned = points[:, 1] > top - 0.03 * size
        reach = 0.015 + 0.10 * np.clip((top - points[:, 1]) / (0.8 * size), 0, 1)
    return Cloth(points, triangles, weights, pinned, reach * size, 0.6 * garment.over_m * size)


def _hanging(body: OracleBody, points: Array, triangles: np.ndarray, columns: int) -> Cloth:
    """A skirt hangs from its waistband; only the pelvis carries it, the legs push it."""
    weights = np.zeros((len(points), 55))
    weights[:, body.joint("pelvis")] = 1
    row = np.arange(len(points)) // columns
    pinned = row < 2
    fall = points[:, 1].max() - points[:, 1]
    return Cloth(points, triangles, weights, pinned, 0.02 + 1.1 * fall, 0.004)
