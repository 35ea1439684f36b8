"""Gaussian record <-> POINTCLOUD datablock, with the attribute names and types of Blender 5.3's own splats.

`position`, `scale` (linear), `rotation` (w, x, y, z), `radiance:base` (raw SH degree 0 as r, g, b, and the opacity) and
`radiance:sh_k`. Nothing is converted, so what is written reads back exactly; axes are the caller's business
(`shared.axes.body_to_blender_cloud`).
"""

from __future__ import annotations

from collections.abc import Mapping

import bpy
import numpy as np

from ..shared.axes import rotate_cloud
from ..shared.gaussians import SH_REST_COUNTS, GaussianCloud
from ..shared.sh import sh_rotation_matrix
from .display import DISPLAY_MODIFIER
from .node_graph import active, new_geometry_tree

ATTRIBUTE_KEYS = {
    "FLOAT": ("value", 1, np.float32),
    "INT": ("value", 1, np.int32),
    "FLOAT_VECTOR": ("vector", 3, np.float32),
    "QUATERNION": ("value", 4, np.float32),
    "FLOAT_COLOR": ("color", 4, np.float32),
    "FLOAT4": ("vector", 4, np.float32),
    "FLOAT2": ("vector", 2, np.float32),
    "BYTE_COLOR": ("color", 4, np.float32),
    "BOOLEAN": ("value", 1, bool),
    "INT8": ("value", 1, np.int8),
}
"""Attribute type -> name in foreach_set, width, element type; the last four only where an artist added them."""

_BLOCK = 8192
"""Points that are regrouped at a time."""

Attributes = Mapping[str, tuple[str, np.ndarray]]
"""Attribute name -> (type, values [N] or [N, width])."""


def base_type() -> str:
    """Type of `radiance:base`: FLOAT4 where this Blender has it (from 5.2), else FLOAT_COLOR with the same floats."""
    types = bpy.types.Attribute.bl_rna.properties["data_type"].enum_items
    return "FLOAT4" if "FLOAT4" in types else "FLOAT_COLOR"


def splat_type() -> str | None:
    """Identifier of the point cloud type that this Blender draws as splats (from 5.3), or None."""
    kind = bpy.types.PointCloud.bl_rna.properties.get("type")
    names = [item.identifier for item in kind.enum_items] if kind is not None and kind.type == "ENUM" else []
    return next((name for name in names if "SPLAT" in name), None)


def create_cloud_object(
    name: str,
    cloud: GaussianCloud,
    collection: bpy.types.Collection,
    turn: np.ndarray | None = None,
    use_up: bool = False,
) -> bpy.types.Object:
    """A POINTCLOUD object with the record's values.

    Args:
        name: Of the object and its data.
        cloud: In Blender's frame after `turn`; any degree.
        collection: Where the object is linked; must be visible in the current view layer, which Blender's conversion
        needs.
        turn: [3, 3] rotation of everything, harmonics included.
        use_up: Let go of the record's harmonics as they are written; the record must not be used afterwards. Else a
            large cloud is in memory twice.
    """
    matrix = np.eye(3) if turn is None else np.asarray(turn, np.float64)
    harmonics = cloud.sh_rest
    positions_m = cloud.positions_m if turn is None else cloud.positions_m @ matrix.T.astype(np.float32)
    if "resize" in bpy.types.PointCloud.bl_rna.functions:  # from 5.1; no attribute of the class
        points = bpy.data.pointclouds.new(name)
        points.resize(len(cloud))
        points.attributes["position"].data.foreach_set("vector", positions_m.ravel())
        ob = bpy.data.objects.new(name, points)
        collection.objects.link(ob)
    else:
        ob = _convert_mesh(name, positions_m, collection)
    del positions_m
    # The harmonics first: they are three quarters of a cloud, and what they give back the rest can use.
    _write_harmonics(ob.data, harmonics, matrix, use_up)
    bare = GaussianCloud.of_checked(
        cloud.positions_m, cloud.scales_m, cloud.rotations_wxyz, cloud.opacities, cloud.sh_dc,
        np.zeros((len(cloud), 0, 3), np.float32),
    )  # fmt: skip
    write_attributes(ob.data, _record_attributes(bare if turn is None else rotate_cloud(bare, matrix)))
    kind = splat_type()
    if kind is not None:
        ob.data.type = kind
    return ob


def write_attributes(points: bpy.types.ID, attributes: Attributes) -> None:
    """Write point attributes, making those that are missing.

    All are made before any is filled: making one can move the others in memory.

    Raises:
        ValueError: If an array does not fit the number of points or its type.
    """
    store = points.attributes
    count = len(points.points)
    for name, (data_type, values) in attributes.items():
        if values.size != count * ATTRIBUTE_KEYS[data_type][1]:
            raise ValueError(f"attribute {name} has shape {values.shape} for {count} points of type {data_type}")
        if name in store and store[name].data_type != data_type:
            store.remove(store[name])
        if name not in store:
            store.new(name, data_type, "POINT")
    for name, (data_type, values) in attributes.items():
        key, _, dtype = ATTRIBUTE_KEYS[data_type]
        store[name].data.foreach_set(key, np.ascontiguousarray(values, dtype).ravel())
    points.update_tag()


def read_attribute(points: bpy.types.ID, name: str) -> np.ndarray:
    """Values of a point attribute, [N] or [N, width].

    Raises:
        KeyError: If there is no such attribute.
    """
    attribute = points.attributes[name]
    key, width, dtype = ATTRIBUTE_KEYS[attribute.data_type]
    values = np.empty(len(attribute.data) * width, dtype)
    attribute.data.foreach_get(key, values)
    return values.reshape(-1, width) if width > 1 else values


def read_cloud(points: bpy.types.ID) -> GaussianCloud:
    """The record that a point cloud holds, original or evaluated.

    Raises:
        KeyError: If one of the splat attributes is missing.
        ValueError: If the values are not those of Gaussians.
    """
    names = points.attributes.keys()
    count = 0
    while f"radiance:sh_{count}" in names:
        count += 1
    count = max(k for k in SH_REST_COUNTS if k <= count)
    position, base = read_attribute(points, "position"), read_attribute(points, "radiance:base")
    columns = [read_attribute(points, f"radiance:sh_{k}") for k in range(count)]
    rest = np.empty((len(position), count, 3), np.float32)
    for start in range(0, len(position), _BLOCK):
        for k, column in enumerate(columns):
            rest[start : start + _BLOCK, k] = column[start : start + _BLOCK]
    del columns
    return GaussianCloud(
        position,
        read_attribute(points, "scale"),
        read_attribute(points, "rotation"),
        base[:, 3],
        base[:, :3],
        rest,
    )


def upgrade_clouds() -> int:
    """Give clouds of older files the attribute types of this Blender, and its splat type where it draws splats.

    Returns:
        How many were changed.
    """
    kind, wanted = splat_type(), base_type()
    changed = 0
    for points in bpy.data.pointclouds:
        base = points.attributes.get("radiance:base")
        if base is None or points.library is not None:
            continue
        old_type, old_kind = base.data_type != wanted, kind is not None and points.type != kind
        if old_type:
            write_attributes(points, {"radiance:base": (wanted, read_attribute(points, "radiance:base"))})
        if old_kind:
            points.type = kind
        changed += old_type or old_kind
    for ob in bpy.data.objects if kind is not None else ():
        display = ob.modifiers.get(DISPLAY_MODIFIER) if ob.type == "POINTCLOUD" and ob.library is None else None
        if display is not None:
            # Exactly one display is active: here Blender's own.
            display.show_viewport = display.show_render = False
    return changed


def _record_attributes(cloud: GaussianCloud) -> Attributes:
    base = np.concatenate([cloud.sh_dc, cloud.opacities[:, None]], axis=1)
    # Blender draws points of an ordinary cloud as spheres of this radius: the mean of the two longer axes.
    radius = np.sort(cloud.scales_m, axis=1)[:, 1:].mean(axis=1)
    return {
        "scale": ("FLOAT_VECTOR", cloud.scales_m),
        "rotation": ("QUATERNION", cloud.rotations_wxyz),
        "radiance:base": (base_type(), base),
        "radius": ("FLOAT", radius),
    }


def _write_harmonics(points: bpy.types.ID, harmonics: np.ndarray, turn: np.ndarray, use_up: bool) -> None:
    """Write the coefficients [N, K, 3] as an attribute each, turned; the highest band first.

    A band is turned and put into columns block by block, which stays in the cache. With `use_up` the array then shrinks
    to the bands that are left, so that it and the attributes together never hold much more than one copy.
    """
    count, total = harmonics.shape[:2]
    if not count or not total:
        return
    degree = SH_REST_COUNTS.index(total)
    matrix = sh_rotation_matrix(turn, degree).astype(np.float32)
    shrinks = use_up and harmonics.flags.owndata and harmonics.flags.c_contiguous and harmonics.flags.writeable
    for band in range(degree, 0, -1):
        first, last = SH_REST_COUNTS[band - 1], SH_REST_COUNTS[band]
        columns = np.empty((last - first, count, 3), np.float32)
        # One product of [N, 3 K] with a matrix that keeps the channels apart is far faster than three.
        channels = np.kron(matrix[first:last, first:last].T, np.eye(3, dtype=np.float32))
        for start in range(0, count, _BLOCK):
            block = harmonics[start : start + _BLOCK, first:last].reshape(-1, 3 * (last - first)) @ channels
            columns[:, start : start + _BLOCK] = block.reshape(-1, last - first, 3).transpose(1, 0, 2)
        if shrinks:
            _drop_columns(harmonics, first)
        for k in range(last - 1, first - 1, -1):
            write_attributes(points, {f"radiance:sh_{k}": ("FLOAT_VECTOR", columns[k - first])})
            columns.resize((k - first, count, 3), refcheck=False)


def _drop_columns(harmonics: np.ndarray, kept: int) -> None:
    """Shrink an array [N, K, 3] that owns its memory to its first columns, in place."""
    count = len(harmonics)
    flat = harmonics.reshape(-1)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        rows = harmonics[start:stop, :kept].copy()
        flat[3 * kept * start : 3 * kept * stop] = rows.ravel()
    del flat
    harmonics.resize((count, kept, 3), refcheck=False)


def _convert_mesh(name: str, positions_m: np.ndarray, collection: bpy.types.Collection) -> bpy.types.Object:
    """Below Blender 5.1 a point cloud cannot be resized: make a mesh of loose points and apply Mesh to Points."""
    mesh = bpy.data.meshes.new(f"{name} points")
    mesh.vertices.add(len(positions_m))
    mesh.vertices.foreach_set("co", positions_m.ravel())
    source = bpy.data.objects.new(mesh.name, mesh)
    collection.objects.link(source)

    graph, _, output = new_geometry_tree("Effigy points")
    info = graph.node("GeometryNodeObjectInfo")
    info.inputs["Object"].default_value = source
    to_points = graph.node("GeometryNodeMeshToPoints")
    graph.link(info.outputs["Geometry"], to_points.inputs["Mesh"])
    graph.link(to_points.outputs[0], active(output.inputs, "Geometry"))

    ob = bpy.data.objects.new(name, bpy.data.pointclouds.new(name))
    collection.objects.link(ob)
    modifier = ob.modifiers.new("points", "NODES")
    modifier.node_group = graph.tree
    with bpy.context.temp_override(object=ob, active_object=ob, selected_objects=[ob]):
        bpy.ops.object.modifier_apply(modifier=modifier.name)
    bpy.data.objects.remove(source)
    bpy.data.meshes.remove(mesh)
    bpy.data.node_groups.remove(graph.tree)
    return ob
