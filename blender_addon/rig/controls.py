"""Learned controls in the scene: sliders on the armature, coefficients of the pose, and the deltas on the cloud.

Sliders are custom properties of the armature object; drivers without expressions carry them into the modifier that
binds the cloud. Coefficients of the pose come from two hidden meshes: a probe with four points per joint (its place and
its three axes) that the armature skins, and a mesh of loose points, one per control and joint, whose nodes read the
probe and add up what the joints' rotations say. No Python takes part, and what counts is the pose as it is seen,
constraints included.
"""

from __future__ import annotations

import json

import bpy
import numpy as np

from ..cloud.create import ATTRIBUTE_KEYS, write_attributes
from ..cloud.node_graph import (
    NodeGraph,
    Socket,
    active,
    modifier_input_path,
    new_geometry_tree,
    set_modifier_input,
)
from ..shared.axes import BODY_TO_BLENDER, body_to_blender_points
from ..shared.controls import WIDTHS, Channel, Controls
from ..shared.skeleton import BONE_NAMES, PARENTS
from .control_nodes import COEFFICIENT, POSE_INPUT, ControlNodes, delta_attribute, splat_sliders
from .drivers import drive, scale_driver

CONTROLS_PROPERTY = "effigy_controls"
"""Property of the armature object: JSON list of [heading, names of sliders]."""

_COEFFICIENTS_GROUP = "Effigy Pose Coefficients"
_PROXY_GROUP = "Effigy Pose Shapes"
_POINTS_PER_JOINT = 4


def add_control_properties(ob: bpy.types.Object, controls: Controls) -> None:
    """One property per slider, with its range; before the first evaluation."""
    headings: dict[str, list[str]] = {}
    for row in controls.sliders:
        name = str(controls.names[row])
        low, high, default = (float(x) for x in controls.ranges[row])
        ob[name] = default
        ob.id_properties_ui(name).update(
            min=low, max=high, soft_min=low, soft_max=high, default=default, description=str(controls.descriptions[row])
        )
        ob.property_overridable_library_set(f'["{name}"]', True)
        headings.setdefault(str(controls.groups[row]), []).append(name)
    if headings:
        ob[CONTROLS_PROPERTY] = json.dumps(list(headings.items()))


def slider_groups(ob: bpy.types.Object) -> list[tuple[str, list[str]]]:
    """Headings and sliders of an avatar's armature, as the bundle orders them; what was removed is left out."""
    try:
        groups = json.loads(ob.get(CONTROLS_PROPERTY, "[]"))
        return [(str(heading), [name for name in names if name in ob]) for heading, names in groups]
    except (TypeError, ValueError):
        return []


def slider_label(name: str) -> str:
    """What the panel calls a slider: `hair_length.L` as `Hair length L`."""
    text = name.replace("_", " ").replace(".", " ").strip()
    return text[:1].upper() + text[1:]


def mirrored_sliders(ob: bpy.types.Object) -> list[tuple[str, str]]:
    """Pairs of sliders of the two sides, by Blender's own suffixes."""
    names = {name for _, group in slider_groups(ob) for name in group}
    pairs = ((name, f"{name[:-2]}.R") for name in sorted(names) if name.endswith(".L"))
    return [pair for pair in pairs if pair[1] in names]


def reset_sliders(ob: bpy.types.Object) -> list[str]:
    """Set the sliders to their defaults; returns their names."""
    names = [name for _, group in slider_groups(ob) for name in group]
    for name in names:
        ob[name] = float(ob.id_properties_ui(name).as_dict()["default"])
    ob.update_tag()
    return names


def write_deltas(points: bpy.types.PointCloud, controls: Controls) -> None:
    """Write the deltas of all channels as attributes of the cloud."""
    count = len(points.points)
    for channel, basis in controls.bases.items():
        if channel != "proxy":
            for row in range(len(basis.controls)):
                kind = _attribute_type(channel)
                write_attributes(points, {delta_attribute(channel, row): (kind, basis.delta(row, count))})


def connect_controls(
    modifier: bpy.types.Modifier, armature: bpy.types.Object, controls: Controls, pose: bpy.types.Object | None
) -> None:
    """Let the sliders and the pose's coefficients into a modifier whose group `ControlNodes` made."""
    for row in splat_sliders(controls):
        name = str(controls.names[row])
        drive(modifier.id_data, modifier_input_path(modifier, name), armature, f'["{name}"]')
    if pose is not None:
        set_modifier_input(modifier, POSE_INPUT, pose)


def create_pose_objects(
    name: str, armature: bpy.types.Object, controls: Controls, collection: bpy.types.Collection
) -> bpy.types.Object | None:
    """The probe and the coefficients' mesh, both hidden; returns the latter, None if no control follows the pose."""
    if not controls.followers:
        return None
    probe = _hidden_mesh(f"{name} probe", _probe_points(armature), armature, collection)
    for joint, bone in enumerate(BONE_NAMES):
        first = joint * _POINTS_PER_JOINT
        probe.vertex_groups.new(name=bone).add(list(range(first, first + _POINTS_PER_JOINT)), 1.0, "REPLACE")
    probe.modifiers.new("Armature", "ARMATURE").object = armature

    rows = _coefficient_rows(controls)
    holder = _hidden_mesh(f"{name} coefficients", np.zeros((len(rows["control"]), 3)), armature, collection)
    for key, values in rows.items():
        kind = "FLOAT_VECTOR" if values.ndim == 2 else "INT"
        _fill(holder.data, key, kind, values)
    modifier = holder.modifiers.new("Coefficients", "NODES")
    modifier.node_group = _coefficients_group()
    set_modifier_input(modifier, "Probe", probe)
    return holder


def add_proxy_controls(
    proxy: bpy.types.Object, armature: bpy.types.Object, controls: Controls, pose: bpy.types.Object | None
) -> None:
    """Body-shaped controls: a driven shape key per slider, nodes before the skinning for those that follow the pose."""
    basis = controls.bases.get("proxy")
    if basis is None:
        return
    mesh = proxy.data
    count, followers = len(mesh.vertices), []
    rest = np.empty(count * 3, np.float32)
    mesh.vertices.foreach_get("co", rest)
    for row, control in enumerate(basis.controls.tolist()):
        if controls.is_pose[control]:
            followers.append(row)
            continue
        name = str(controls.names[control])
        low, high, default = (float(x) for x in controls.ranges[control])
        block = proxy.shape_key_add(name=name, from_mix=False)
        # A key's value ends at 10, whatever the slider's range is: let the farther end of the slider be 1.
        reach = max(high - default, default - low)
        block.slider_max, block.slider_min = (high - default) / reach, (low - default) / reach
        moved = rest.reshape(-1, 3) + body_to_blender_points(reach * basis.delta(row, count))
        block.data.foreach_set("co", np.ascontiguousarray(moved, np.float32).ravel())
        scale_driver(drive(block, "value", armature, f'["{name}"]'), 1.0 / reach, -default / reach)
    if followers and pose is not None:
        _add_pose_shapes(proxy, controls, followers, pose)


def _add_pose_shapes(proxy: bpy.types.Object, controls: Controls, followers: list[int], pose: bpy.types.Object) -> None:
    basis = controls.bases["proxy"]
    count = len(proxy.data.vertices)
    for place, row in enumerate(followers):
        _fill(
            proxy.data, delta_attribute("proxy", place), "FLOAT_VECTOR", body_to_blender_points(basis.delta(row, count))
        )
    graph, group_in, group_out = new_geometry_tree(_PROXY_GROUP)
    nodes = ControlNodes(graph, group_in, controls, sliders=False)
    set_position = graph.node("GeometryNodeSetPosition")
    graph.link(group_in.outputs["Geometry"], set_position.inputs["Geometry"])
    graph.link(nodes.vertex_offset(basis.controls[followers].tolist()), set_position.inputs["Offset"])
    graph.link(set_position.outputs[0], active(group_out.inputs, "Geometry"))
    graph.arrange()
    modifier = proxy.modifiers.new("Pose shapes", "NODES")
    modifier.node_group = graph.tree
    set_modifier_input(modifier, POSE_INPUT, pose)


def _attribute_type(channel: Channel) -> str:
    return "FLOAT" if WIDTHS[channel] == 1 else "FLOAT_VECTOR"


def _probe_points(armature: bpy.types.Object) -> np.ndarray:
    """Per joint its place and its place plus 1 m along each axis of the body frame, [220, 3], armature space.

    With these axes the probe's displacements are SMPL-X's own rotation matrices.
    """
    heads = np.array([armature.data.bones[name].head_local for name in BONE_NAMES])
    steps = np.concatenate([np.zeros((1, 3)), BODY_TO_BLENDER.T])
    return (heads[:, None] + steps).reshape(-1, 3)


def _coefficient_rows(controls: Controls) -> dict[str, np.ndarray]:
    """Attributes of the loose points: control, joint's and parent's first point of the probe, weights of two columns.

    The first points belong to the controls in order, so that each control's sum is found at its own number.
    """
    first, more = [], []
    for place, row in enumerate(controls.followers):
        joints = np.flatnonzero(controls.pose_weights[row].any(axis=1)).tolist() or [1]
        first.append((place, joints[0]))
        more += [(place, joint) for joint in joints[1:]]
    place, joint = np.array(first + more, np.int32).T
    weights = controls.pose_weights[np.array(controls.followers)[place], joint]
    return {
        "control": place,
        "joint": joint * _POINTS_PER_JOINT,
        "parent": PARENTS[joint] * _POINTS_PER_JOINT,
        "weights_a": weights[:, :3],
        "weights_b": weights[:, 3:],
    }


def _coefficients_group() -> bpy.types.NodeTree:
    """Sums of a . (c0 - e0) + b . (c1 - e1) per control, with c the columns of a joint's local rotation."""
    graph, group_in, group_out = new_geometry_tree(_COEFFICIENTS_GROUP)
    graph.tree.interface.new_socket("Probe", in_out="INPUT", socket_type="NodeSocketObject")
    info = graph.node("GeometryNodeObjectInfo")
    graph.link(group_in.outputs["Probe"], info.inputs["Object"])
    places = {
        name: [_sample(graph, info.outputs["Geometry"], name, k) for k in range(count)]
        for name, count in (("joint", 3), ("parent", _POINTS_PER_JOINT))
    }
    axes = [graph.vector("SUBTRACT", place, places["parent"][0]) for place in places["parent"][1:]]
    total: Socket | None = None
    for k, name in enumerate(("weights_a", "weights_b")):
        along = graph.vector("SUBTRACT", places["joint"][k + 1], places["joint"][0])
        column = graph.node("ShaderNodeCombineXYZ")
        for row, axis in enumerate(axes):
            graph.link(graph.vector("DOT_PRODUCT", axis, along), column.inputs[row])
        unit = tuple(float(row == k) for row in range(3))
        turned = graph.vector("SUBTRACT", column.outputs[0], unit)
        share = graph.vector("DOT_PRODUCT", turned, graph.attribute(name, "FLOAT_VECTOR"))
        total = share if total is None else graph.math("ADD", total, share)
    assert total is not None
    summed = graph.node("GeometryNodeAccumulateField", data_type="FLOAT", domain="POINT")
    graph.link(total, active(summed.inputs, "Value"))
    graph.link(graph.attribute("control", "INT"), active(summed.inputs, "Group ID"))
    stored = graph.store(group_in.outputs["Geometry"], COEFFICIENT, "FLOAT", active(summed.outputs, "Total"))
    graph.link(stored, active(group_out.inputs, "Geometry"))
    graph.arrange()
    return graph.tree


def _sample(graph: NodeGraph, probe: Socket, name: str, step: int) -> Socket:
    node = graph.node("GeometryNodeSampleIndex", data_type="FLOAT_VECTOR", domain="POINT")
    graph.link(probe, node.inputs["Geometry"])
    graph.link(graph.node("GeometryNodeInputPosition").outputs[0], active(node.inputs, "Value"))
    graph.link(graph.math("ADD", graph.attribute(name, "INT"), float(step)), node.inputs["Index"])
    return active(node.outputs)


def _hidden_mesh(
    name: str, points: np.ndarray, armature: bpy.types.Object, collection: bpy.types.Collection
) -> bpy.types.Object:
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(points))
    mesh.vertices.foreach_set("co", np.ascontiguousarray(points, np.float32).ravel())
    ob = bpy.data.objects.new(name, mesh)
    collection.objects.link(ob)
    ob.parent = armature
    ob.hide_render = ob.hide_select = ob.hide_viewport = True
    return ob


def _fill(mesh: bpy.types.Mesh, name: str, kind: str, values: np.ndarray) -> None:
    key, _, dtype = ATTRIBUTE_KEYS[kind]
    attribute = mesh.attributes.new(name, kind, "POINT")
    attribute.data.foreach_set(key, np.ascontiguousarray(values, dtype).ravel())
