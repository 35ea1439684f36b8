"""Drawing of splats with the gpu module: several clouds, sorted together, true EWA, blended in display sRGB.

`SplatScene` holds what a picture shows as textures and draws it into whatever frame buffer is bound. The viewport
(viewport.py) and the render engine (engine.py) both stand on it.
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
from .create import ATTRIBUTE_KEYS, read_attribute
from .splat_shader import TEXTURE_WIDTH, create_splat_shader

BASE = "radiance:base"
"""The attribute that tells a cloud of Gaussians from any other point cloud."""

_NEEDED = {
    "position": ("FLOAT_VECTOR",),
    "rotation": ("QUATERNION",),
    "scale": ("FLOAT_VECTOR",),
    BASE: ("FLOAT_COLOR", "FLOAT4"),
}
"""Attribute -> types that are read."""

_STREAMS = (("places", "position", 3), ("turn", "rotation", 4), ("sizes", "scale", 3), ("base", BASE, 4))
"""Sampler, attribute, floats per splat of what may change from frame to frame."""

_KEPT_ORDERS = 8
"""Orders of drawing that are kept: for the views of a quad view in two windows."""

_SORT_STEPS = 65535
"""Depths are sorted in this many steps: a radix sort of 16 bits is ten times faster than one of floats, and a step of
a 2 m figure is 0.03 mm."""


@dataclass(frozen=True)
class CloudView:
    """A cloud as it is evaluated now.

    Attributes:
        points: The evaluated point cloud.
        rest: The point cloud before its modifiers, which its harmonics belong to.
        matrix: Object to world.
        original: The object that is shown.
        owner: The object that stands in the scene: the same, or what makes instances of it.
        key: Names the cloud between two pictures.
    """

    points: bpy.types.ID
    rest: bpy.types.ID
    matrix: Matrix
    original: bpy.types.Object
    owner: bpy.types.Object
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


class _Stream:
    """Values of all splats as a data texture; what did not change is not sent again."""

    def __init__(self, width: int) -> None:
        """For `width` floats a splat, packed without gaps into texels of four (of one if `width` is 1)."""
        self.width = width
        self.texture: gpu.types.GPUTexture | None = None
        self._sent = self._next = np.empty(0, np.float32)

    def resize(self, count: int) -> None:
        """Make room; the values are undefined until they are filled and sent."""
        size = data_size(count * self.width, 1 if self.width == 1 else 4)
        if len(self._next) != size:
            self._sent, self._next, self.texture = np.zeros(size, np.float32), np.zeros(size, np.float32), None

    def rows(self, rows: slice) -> np.ndarray:
        """Where the next values of some splats go, flat."""
        return self._next[rows.start * self.width : rows.stop * self.width]

    def send(self) -> np.ndarray:
        """Upload the filled values if they differ from the last; returns all of them, flat."""
        if self.texture is None or not np.array_equal(self._sent, self._next):
            self._sent, self._next = self._next, self._sent
            self.texture = upload(self._sent, 1 if self.width == 1 else 4)
        return self._sent


class SplatScene:
    """The clouds of a picture on the graphics card.

    Attributes:
        count: Number of Gaussians.
        warnings: What cannot be drawn as it should be, one line each.
    """

    def __init__(self) -> None:
        """Empty; needs a gpu context."""
        self.count = 0
        self.warnings: tuple[str, ...] = ()
        self._shader = create_splat_shader()
        self._quad = batch_for_shader(self._shader, "TRI_STRIP", {"corner": [(-1, -1), (1, -1), (-1, 1), (1, 1)]})
        self._streams = {name: _Stream(width) for name, _, width in _STREAMS}
        self._textures: dict[str, gpu.types.GPUTexture] = {}
        self._positions_m = np.empty((0, 3), np.float32)
        self._starts = [0]
        self._clouds: list[tuple[str, int]] = []
        self._matrices: list[np.ndarray] = []
        self._coefficients = (0, 0)
        self._harmonics: object = None
        self._orders: dict[tuple[float | int, ...], tuple[gpu.types.GPUTexture, int]] = {}
        self._everything = upload(np.ones(1, np.float32), 1)

    def update(self, clouds: Sequence[CloudView], moved: bool = True) -> None:
        """Take over the clouds.

        Args:
            clouds: Each with the splat attributes.
            moved: False when only object matrices and the choice of clouds may differ from the last call.
        """
        matrices = [np.array(cloud.matrix, np.float32)[:3] for cloud in clouds]
        if len(matrices) != len(self._matrices) or not all(map(np.array_equal, matrices, self._matrices)):
            self._matrices = matrices
            self._textures["matrices"] = upload(np.concatenate(matrices or [np.eye(3, 4)]).astype(np.float32), 4)
            self._orders.clear()
        present = [(cloud.key, len(cloud.points.points)) for cloud in clouds]
        if not moved and present == self._clouds:
            return
        self._orders.clear()
        if present != self._clouds:
            self._clouds = present
            self._starts = [0, *np.cumsum([size for _, size in present]).tolist()]
            self.count = self._starts[-1]
            owners = np.repeat(np.arange(len(present), dtype=np.float32), [size for _, size in present])
            self._textures["owner"] = upload(owners, 1)
            self._harmonics = None
        for name, attribute, _ in _STREAMS:
            stream = self._streams[name]
            stream.resize(self.count)
            for cloud, rows in zip(clouds, self._slices(), strict=True):
                read_into(cloud.points, attribute, stream.rows(rows))
            values = stream.send()
            if name == "places":
                self._positions_m = values[: 3 * self.count].reshape(-1, 3)
        self._update_harmonics(clouds)

    def _slices(self) -> list[slice]:
        return [slice(a, b) for a, b in zip(self._starts[:-1], self._starts[1:], strict=True)]

    def _update_harmonics(self, clouds: Sequence[CloudView]) -> None:
        """Read the higher coefficients again, if they are other ones, which their place in memory tells.

        They belong to the cloud at rest and do not move with it.
        """
        counts = [_rest_count(cloud.points) for cloud in clouds]
        turned = [count > 0 and _follows(cloud) for cloud, count in zip(clouds, counts, strict=True)]
        static = [
            (turned[k], *(_address(cloud.points, f"radiance:sh_{n}") for n in range(counts[k])))
            for k, cloud in enumerate(clouds)
        ]
        if static == self._harmonics:
            return
        self._harmonics = static
        coefficients = max(counts, default=0)
        texels = -(-3 * coefficients // 4)
        self._coefficients = (coefficients, texels)
        harmonics = np.zeros((self.count, texels * 4) if texels else (1, 4), np.float32)
        rest_turn = np.zeros((self.count if texels else 1, 4), np.float32)
        for k, (cloud, rows) in enumerate(zip(clouds, self._slices(), strict=True)):
            for n in range(counts[k]):
                harmonics[rows, 3 * n : 3 * n + 3] = read_attribute(cloud.points, f"radiance:sh_{n}")
            if turned[k]:
                rest_turn[rows] = read_attribute(cloud.rest, "rotation")
        self._textures["harmonics"] = upload(harmonics, 4, half=True)
        self._textures["rest_turn"] = upload(rest_turn, 4)
        self.warnings = tuple(
            f"{cloud.original.name}: view-dependent colour does not turn with the rig where a modifier changes the "
            "number of points; remove that modifier, or import with degree 0"
            for k, cloud in enumerate(clouds)
            if counts[k] and not turned[k]
        )

    def draw(
        self,
        camera: CameraView,
        scene_depth: gpu.types.GPUTexture | None = None,
        shown: Sequence[int] | None = None,
    ) -> None:
        """Draw into the bound frame buffer, back to front, premultiplied.

        Args:
            camera: The camera.
            scene_depth: Window depth per pixel that hides what lies behind it; None hides nothing.
            shown: Which of the clouds; None for all.
        """
        order, count = self.sort(camera, shown)
        if not count:
            return
        projection = np.array(camera.projection, np.float32)
        parallel = float(abs(projection[3, 3] - 1) < 1e-6)
        block = np.concatenate(
            [
                np.array(camera.view, np.float32).T.ravel(),
                projection.T.ravel(),
                np.array([*camera.view.inverted().translation, parallel], np.float32),
                np.array([camera.width, camera.height, *self._coefficients], np.float32),
            ]
        )
        uniforms = gpu.types.GPUUniformBuf(gpu.types.Buffer("FLOAT", len(block), block))
        shader = self._shader
        shader.bind()
        shader.uniform_block("lens", uniforms)
        streams = {name: stream.texture for name, stream in self._streams.items()}
        for name, texture in {**self._textures, **streams, "order": order}.items():
            shader.uniform_sampler(name, texture)
        shader.uniform_sampler("scene_depth", scene_depth or self._everything)
        gpu.state.blend_set("ALPHA_PREMULT")
        gpu.state.depth_mask_set(False)
        self._quad.draw_instanced(shader, instance_start=0, instance_count=count)
        gpu.state.blend_set("NONE")

    def sort(self, camera: CameraView, shown: Sequence[int] | None = None) -> tuple[gpu.types.GPUTexture | None, int]:
        """Order of drawing, the farthest first, and its length.

        Kept while neither clouds nor directions of view change, for a few views side by side.

        Args:
            camera: The camera.
            shown: Which of the clouds; None for all.
        """
        chosen = tuple(range(len(self._clouds)) if shown is None else shown)
        forward = np.array(camera.view, np.float32)[2]
        key = (*chosen, *forward[:3].tolist())
        if key not in self._orders:
            slices = self._slices()
            rows = [slices[k] for k in chosen]
            depths = np.empty(sum(r.stop - r.start for r in rows), np.float32)
            if not len(depths):
                return None, 0
            start = 0
            for k, r in zip(chosen, rows, strict=True):
                stop = start + r.stop - r.start
                row = forward[:3] @ self._matrices[k]
                np.matmul(self._positions_m[r], row[:3], out=depths[start:stop])
                depths[start:stop] += row[3]
                start = stop
            order = _depth_order(depths)
            if len(chosen) != len(slices):
                order = np.concatenate([np.arange(r.start, r.stop) for r in rows])[order]
            while len(self._orders) >= _KEPT_ORDERS:
                del self._orders[next(iter(self._orders))]
            self._orders[key] = upload(order.astype(np.float32), 1), len(order)
        return self._orders[key]


def _depth_order(depths: np.ndarray) -> np.ndarray:
    """Indices [N] of the depths from the lowest to the highest, in `_SORT_STEPS` steps."""
    low, high = float(depths.min()), float(depths.max())
    depths -= low
    depths *= _SORT_STEPS / max(high - low, 1e-9)
    return np.argsort(depths.astype(np.uint16), kind="stable")


def splat_clouds(depsgraph: bpy.types.Depsgraph) -> list[CloudView]:
    """Clouds of Gaussians that the dependency graph shows, instances included; damaged ones are left out."""
    found = []
    for instance in depsgraph.object_instances:
        ob = instance.object
        if ob.type != "POINTCLOUD" or not instance.show_self or not is_splat_data(ob.data):
            continue
        identity = "".join(map(str, instance.persistent_id)) if instance.is_instance else ""
        original = ob.original
        owner = instance.parent.original if instance.is_instance else original
        key = f"{original.name_full}/{identity}"
        found.append(CloudView(ob.data, original.data, instance.matrix_world.copy(), original, owner, key))
    return found


def is_splat_data(points: bpy.types.ID) -> bool:
    """Whether a point cloud has all that a Gaussian needs, in the types that are read."""
    store = points.attributes
    return all(
        name in store and store[name].domain == "POINT" and store[name].data_type in kinds
        for name, kinds in _NEEDED.items()
    )


def read_into(points: bpy.types.ID, name: str, out: np.ndarray) -> None:
    """Copy a point attribute's floats into `out`, flat and of their number."""
    attribute = points.attributes[name]
    attribute.data.foreach_get(ATTRIBUTE_KEYS[attribute.data_type][0], out)


def data_size(values: int, channels: int) -> int:
    """Floats of a data texture for so many values: whole rows of texels."""
    texels = -(-values // channels)
    width = TEXTURE_WIDTH if texels > 1 else 1
    return max(1, -(-texels // width)) * width * channels


def upload(values: np.ndarray, channels: int, half: bool = False) -> gpu.types.GPUTexture:
    """A data texture of float values of any shape, `TEXTURE_WIDTH` texels of `channels` floats a row."""
    flat = values.ravel()
    size = data_size(len(flat), channels)
    if len(flat) != size:
        flat = np.concatenate([flat, np.zeros(size - len(flat), np.float32)])
    width = min(TEXTURE_WIDTH, size // channels)
    kind = {1: "R", 4: "RGBA"}[channels] + ("16F" if half else "32F")
    data = gpu.types.Buffer("FLOAT", size, np.ascontiguousarray(flat, np.float32))
    return gpu.types.GPUTexture((width, size // channels // width), format=kind, data=data)


def _rest_count(points: bpy.types.ID) -> int:
    names = points.attributes.keys()
    count = 0
    while f"radiance:sh_{count}" in names:
        count += 1
    return max(k for k in SH_REST_COUNTS if k <= count)


def _follows(cloud: CloudView) -> bool:
    """Whether the turn of each splat since rest is known: its rest is the point of the same index."""
    return len(cloud.rest.points) == len(cloud.points.points) and is_splat_data(cloud.rest)


def _address(points: bpy.types.ID, name: str) -> int:
    """Where an attribute's values are: unchanged attributes are shared by everything that is evaluated from them."""
    data = points.attributes[name].data
    return data[0].as_pointer() if len(data) else 0
