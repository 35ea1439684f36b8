"""A box that crops clouds: an empty that can be moved, turned and scaled, and a modifier that shows what would be left.

The modifier works in the viewport only and changes no data. Cropping for good is the artist's decision
(operators/crop_box.py) and takes the very same test.
"""

from __future__ import annotations

from collections.abc import Sequence

import bpy
import numpy as np

from .display import DISPLAY_MODIFIER
from .node_graph import new_geometry_tree, set_modifier_input

CROP_MODIFIER = "Crop Preview"
CROP_GROUP = "Effigy Crop Preview"
BOX_INPUT = "Box"
INSIDE_INPUT = "Delete Inside"

_MARGIN = 1.02
"""A new box is this much larger than what it is put around."""


def create_crop_box(name: str, points_m: np.ndarray, collection: bpy.types.Collection) -> bpy.types.Object:
    """An empty in the shape of a box around points.

    Args:
        name: Of the empty.
        points_m: [N, 3] in the world.
        collection: Where it is linked.
    """
    low, high = points_m.min(axis=0), points_m.max(axis=0)
    box = bpy.data.objects.new(name, None)
    box.empty_display_type, box.empty_display_size = "CUBE", 1.0
    box.location = ((low + high) / 2).tolist()
    box.scale = np.maximum((high - low) / 2 * _MARGIN, 1e-3).tolist()
    box.show_in_front = True
    collection.objects.link(box)
    return box


def add_crop_preview(ob: bpy.types.Object, box: bpy.types.Object) -> bpy.types.Modifier:
    """Show a cloud without what lies outside the box; the binding moves it first, the display comes after."""
    modifier = ob.modifiers.get(CROP_MODIFIER) or ob.modifiers.new(CROP_MODIFIER, "NODES")
    if modifier.node_group is None:
        modifier.node_group = bpy.data.node_groups.get(CROP_GROUP) or build_crop_group()
    modifier.show_render = False
    names = [other.name for other in ob.modifiers]
    if DISPLAY_MODIFIER in names and names.index(DISPLAY_MODIFIER) < names.index(CROP_MODIFIER):
        ob.modifiers.move(names.index(CROP_MODIFIER), names.index(DISPLAY_MODIFIER))
    set_modifier_input(modifier, BOX_INPUT, box)
    return modifier


def remove_crop_preview(ob: bpy.types.Object) -> None:
    """Show the whole cloud again."""
    modifier = ob.modifiers.get(CROP_MODIFIER)
    if modifier is not None:
        ob.modifiers.remove(modifier)
    group = bpy.data.node_groups.get(CROP_GROUP)
    if group is not None and group.users == 0:
        bpy.data.node_groups.remove(group)


def inside_box(box: bpy.types.Object, matrix: Sequence[Sequence[float]], points_m: np.ndarray) -> np.ndarray:
    """[N] bool: points of an object's space that lie in the box.

    Args:
        box: From `create_crop_box`, however it has been moved since.
        matrix: The object's [4, 4] matrix to the world.
        points_m: [N, 3] in the object's space.

    Raises:
        ValueError: If the box has been scaled to nothing.
    """
    to_world = np.array(box.matrix_world, np.float64)
    if abs(np.linalg.det(to_world[:3, :3])) < 1e-18:
        raise ValueError(f"{box.name} has no volume; scale it up")
    to_box = np.linalg.inv(to_world) @ np.array(matrix, np.float64)
    return (np.abs(points_m @ to_box[:3, :3].T + to_box[:3, 3]) <= 1.0).all(axis=1)


def build_crop_group() -> bpy.types.NodeTree:
    """The node group: deletes the points outside (or inside) a box that is given as an object."""
    graph, group_in, group_out = new_geometry_tree(CROP_GROUP)
    graph.tree.interface.new_socket(BOX_INPUT, in_out="INPUT", socket_type="NodeSocketObject")
    graph.tree.interface.new_socket(INSIDE_INPUT, in_out="INPUT", socket_type="NodeSocketBool")
    info = graph.node("GeometryNodeObjectInfo", transform_space="RELATIVE")
    graph.link(group_in.outputs[BOX_INPUT], info.inputs["Object"])
    inverse, place = graph.node("FunctionNodeInvertMatrix"), graph.node("FunctionNodeTransformPoint")
    graph.link(info.outputs["Transform"], inverse.inputs[0])
    graph.link(graph.node("GeometryNodeInputPosition").outputs[0], place.inputs[0])
    graph.link(inverse.outputs[0], place.inputs[1])
    separate = graph.node("ShaderNodeSeparateXYZ")
    graph.link(graph.vector("ABSOLUTE", place.outputs[0]), separate.inputs[0])
    farthest = graph.math("MAXIMUM", graph.math("MAXIMUM", *separate.outputs[:2]), separate.outputs[2])
    outside = graph.math("GREATER_THAN", farthest, 1.0)
    delete = graph.node("FunctionNodeBooleanMath", operation="XOR")
    graph.link(outside, delete.inputs[0])
    graph.link(group_in.outputs[INSIDE_INPUT], delete.inputs[1])
    remove = graph.node("GeometryNodeDeleteGeometry", domain="POINT")
    graph.link(group_in.outputs["Geometry"], remove.inputs["Geometry"])
    graph.link(delete.outputs[0], remove.inputs["Selection"])
    graph.link(remove.outputs[0], group_out.inputs[0])
    graph.arrange()
    return graph.tree
