"""Drawing of splats with the gpu module: several clouds, sorted together, true EWA, blended in display sRGB.

`SplatScene` holds what a picture shows as textures; `draw_splats` draws it into targets of its own. The viewport
(viewport.py) and the render engine (engine.py) both stand on these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import bpy
import gpu
import numpy as np
from gpu_extras.batch import batch_for_shader
from mathutils import Matrix

from ..shared.gaussians import SH_REST_COUNTS
from .create import read_attribute
from .splat_shader import TEXTURE_WIDTH, create_splat_shader

BASE = "radiance:base"
"""The attribute that tells a cloud of Gaussians from any other point cloud."""

_SORT_STEPS = 65535
"""Depths are sorted in this many steps: a radix sort of 16 bits is ten times faster than one of floats, and a step of
a 2 m figure is 0.03 mm."""


@dataclass(frozen=True)
class CloudView:
    """A cloud as it is evaluated now.

    Attributes:
        points: The evaluated point cloud.
        matrix: Object to world.
        name: Of the original object.
        key: Names the cloud between two pictures.
    """

    points: bpy.types.ID
    matrix: Matrix
    name: str
    key: str


@dataclass(frozen=True)
class CameraView:
    """What looks at the clouds.

    Attributes:
        view: World to camera, Blender's axes (looks along -z).
        projection: Camera to clip space.
        width: px.
        height: px.
    """

    view: Matrix
    projection: Matrix
    width: int
    height: int


class SplatScene:
    """The clouds of a picture on the graphics card.

    Attributes:
        count: Number of Gaussians.
    """

    def __init__(self) -> None:
        """Empty; needs a gpu context."""
        self.count = 0
        self._shader = create_splat_shader()
        self._quad = batch_for_shader(self._shader, "TRI_STRIP", {"corner": [(-1, -1), (1, -1), (-1, 1), (1, 1)]})
        self._textures: dict[str, gpu.types.GPUTexture] = {}
        self._positions = np.empty((0, 3), np.float32)
        self._starts = [0]
        self._matrices: list[np.ndarray] = []
        self._rest = (0, 0)
        self._static: tuple[object, ...] = ()
        self._sorted_for: tuple[float, ...] | None = None
        self._everything = upload(np.ones((1, 1), np.float32), 1)

    def update(self, clouds: Sequence[CloudView], moved: bool = True) -> None:
        """Take over the clouds.

        Args:
            clouds: Each with the splat attributes.
            moved: False when only object matrices may differ from the last call.
        """
        matrices = [np.array(cloud.matrix, np.float32)[:3] for cloud in clouds]
        if len(matrices) != len(self._matrices) or not all(map(np.array_equal, matrices, self._matrices)):
            self._matrices, self._sorted_for = matrices, None
            self._textures["matrices"] = upload(np.concatenate(matrices or [np.eye(3, 4)]).astype(np.float32), 4)
        if not moved and len(self._starts) == len(clouds) + 1:
            return
        sizes = [len(cloud.points.points) for cloud in clouds]
        self._starts = [0, *np.cumsum(sizes).tolist()]
        self.count, self._sorted_for = self._starts[-1], None
        place = np.empty((self.count, 4), np.float32)
        turn, size = np.empty((self.count, 4), np.float32), np.zeros((self.count, 4), np.float32)
        base = np.empty((self.count, 4), np.float32)
        for index, (cloud, rows) in enumerate(zip(clouds, self._slices(), strict=True)):
            place[rows, :3], place[rows, 3] = read_attribute(cloud.points, "position"), index
            turn[rows] = read_attribute(cloud.points, "rotation")
            size[rows, :3] = read_attribute(cloud.points, "scale")
            base[rows] = read_attribute(cloud.points, BASE)
        self._positions = place[:, :3]
        for name, values in (("place", place), ("turn", turn), ("size", size), ("base", base)):
            self._textures[name] = upload(values, 4)
        self._update_rest(clouds)

    def _slices(self) -> list[slice]:
        return [slice(a, b) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def _update_rest(self, clouds: Sequence[CloudView]) -> None:
        """Higher coefficients do not move: they are read again only when the set of clouds changes."""
        counts = [_rest_count(cloud.points) for cloud in clouds]
        static = tuple((c.key, len(c.points.points), k) for c, k in zip(clouds, counts, strict=True))
        if static == self._static:
            return
        self._static = static
        coefficients = max(counts, default=0)
        texels = -(-3 * coefficients // 4)
        self._rest = (coefficients, texels)
        rest = np.zeros((self.count, texels * 4) if texels else (1, 4), np.float32)
        for cloud, rows, count in zip(clouds, self._slices(), counts, strict=True):
            for k in range(count):
                rest[rows, 3 * k : 3 * k + 3] = read_attribute(cloud.points, f"radiance:sh_{k}")
        self._textures["rest"] = upload(rest.reshape(-1, 4), 4, half=True)

    def draw(self, camera: CameraView, scene_depth: gpu.types.GPUTexture | None = None) -> None:
        """Draw into the bound frame buffer, back to front, premultiplied.

        Args:
            camera: The camera.
            scene_depth: Window depth per pixel that hides what lies behind it; None hides nothing.
        """
        if not self.count:
            return
        self._sort(camera)
        projection = np.array(camera.projection, np.float32)
        parallel = float(abs(projection[3, 3] - 1) < 1e-6)
        block = np.concatenate(
            [
                np.array(camera.view, np.float32).T.ravel(),
                projection.T.ravel(),
                np.array([*camera.view.inverted().translation, parallel], np.float32),
                np.array([camera.width, camera.height, *self._rest], np.float32),
            ]
        )
        uniforms = gpu.types.GPUUniformBuf(gpu.types.Buffer("FLOAT", len(block), block))
        shader = self._shader
        shader.bind()
        shader.uniform_block("lens", uniforms)
        for name, texture in self._textures.items():
            shader.uniform_sampler(name, texture)
        shader.uniform_sampler("scene_depth", scene_depth or self._everything)
        gpu.state.blend_set("ALPHA_PREMULT")
        gpu.state.depth_mask_set(False)
        self._quad.draw_instanced(shader, instance_start=0, instance_count=self.count)
        gpu.state.blend_set("NONE")

    def _sort(self, camera: CameraView) -> None:
        """Order of drawing, the farthest first; kept while neither camera nor clouds move."""
        forward = np.array(camera.view, np.float32)[2]
        key = tuple(forward.tolist())
        if key == self._sorted_for:
            return
        depths = np.empty(self.count, np.float32)
        for rows, matrix in zip(self._slices(), self._matrices, strict=True):
            row = forward[:3] @ matrix
            np.matmul(self._positions[rows], row[:3], out=depths[rows])
            depths[rows] += row[3]
        low, high = float(depths.min()), float(depths.max())
        steps = ((depths - low) * (_SORT_STEPS / max(high - low, 1e-9))).astype(np.uint16)
        self._textures["order"] = upload(np.argsort(steps, kind="stable").astype(np.float32)[:, None], 1)
        self._sorted_for = key


def splat_clouds(depsgraph: bpy.types.Depsgraph) -> list[CloudView]:
    """Clouds of Gaussians that the dependency graph shows, instances included."""
    found = []
    for instance in depsgraph.object_instances:
        ob = instance.object
        if ob.type != "POINTCLOUD" or not instance.show_self or BASE not in ob.data.attributes:
            continue
        identity = "".join(map(str, instance.persistent_id)) if instance.is_instance else ""
        name = ob.original.name
        found.append(CloudView(ob.data, instance.matrix_world.copy(), name, f"{name}/{identity}"))
    return found


def upload(values: np.ndarray, channels: int, half: bool = False) -> gpu.types.GPUTexture:
    """A data texture of float values [N, channels], `TEXTURE_WIDTH` texels a row."""
    rows = max(1, -(-len(values) // TEXTURE_WIDTH))
    width = TEXTURE_WIDTH if len(values) > 1 else 1
    padded = np.zeros((rows * width, channels), np.float32)
    padded[: len(values)] = values
    kind = {1: "R", 4: "RGBA"}[channels] + ("16F" if half else "32F")
    data = gpu.types.Buffer("FLOAT", padded.size, padded.ravel())
    return gpu.types.GPUTexture((width, rows), format=kind, data=data)


def _rest_count(points: bpy.types.ID) -> int:
    names = points.attributes.keys()
    count = 0
    while f"radiance:sh_{count}" in names:
        count += 1
    return max(k for k in SH_REST_COUNTS if k <= count)
