"""The node group that moves bound Gaussians with the proxy mesh; no Python at render time.

The same formula as in the backend (splats/bound.py): foot = sum of bary_i v_i; frame of the triangle x =
normalised(v1 - v0), z = normalised((v1 - v0) x (v2 - v0)), y = z x x; position = foot + frame * bind_off, rotation =
frame * bind_qinv * rotation, scale = scale * clamp(sqrt |(v1 - v0) x (v2 - v0)| / bind_length, 0.5, 2).
"""

from __future__ import annotations

import bpy

from ..cloud.node_graph import NodeGraph, Socket, active, new_geometry_tree

BIND_GROUP = "Effigy Bind"
STRETCH_LIMITS = (0.5, 2.0)
"""As in the backend's splats/bound.py: beyond these factors single splats become visible."""


def build_bind_group() -> bpy.types.NodeTree:
    """A new bind group with the inputs Geometry and Proxy (an object: the group itself stays free of any scene)."""
    graph, group_in, group_out = new_geometry_tree(BIND_GROUP)
    graph.tree.interface.new_socket("Proxy", in_out="INPUT", socket_type="NodeSocketObject")
    info = graph.node("GeometryNodeObjectInfo", transform_space="RELATIVE")
    graph.link(group_in.outputs["Proxy"], info.inputs["Object"])

    corners = [_corner(graph, info.outputs["Geometry"], name) for name in ("bind_va", "bind_vb", "bind_vc")]
    edge, other = graph.vector("SUBTRACT", corners[1], corners[0]), graph.vector("SUBTRACT", corners[2], corners[0])
    normal = graph.vector("CROSS_PRODUCT", edge, other)
    frame = graph.node("FunctionNodeAxesToRotation", primary_axis="Z", secondary_axis="X")
    graph.link(normal, frame.inputs["Primary Axis"])
    graph.link(edge, frame.inputs["Secondary Axis"])
    rotation = frame.outputs[0]

    set_position = graph.node("GeometryNodeSetPosition")
    graph.link(group_in.outputs["Geometry"], set_position.inputs["Geometry"])
    graph.link(_position(graph, corners, rotation), set_position.inputs["Position"])
    turned = _rotate(graph, rotation, graph.attribute("bind_qinv", "QUATERNION"))
    turned = _rotate(graph, turned, graph.attribute("rotation", "QUATERNION"))
    geometry = graph.store(set_position.outputs[0], "rotation", "QUATERNION", turned)
    geometry = graph.store(geometry, "scale", "FLOAT_VECTOR", _scale(graph, normal))
    graph.link(geometry, active(group_out.inputs, "Geometry"))
    graph.arrange()
    return graph.tree


def _corner(graph: NodeGraph, proxy: Socket, index: str) -> Socket:
    sample = graph.node("GeometryNodeSampleIndex", data_type="FLOAT_VECTOR", domain="POINT")
    graph.link(proxy, sample.inputs["Geometry"])
    graph.link(graph.node("GeometryNodeInputPosition").outputs[0], active(sample.inputs, "Value"))
    graph.link(graph.attribute(index, "INT"), sample.inputs["Index"])
    return active(sample.outputs)


def _position(graph: NodeGraph, corners: list[Socket], rotation: Socket) -> Socket:
    bary = graph.node("ShaderNodeSeparateXYZ")
    graph.link(graph.attribute("bind_bary", "FLOAT_VECTOR"), bary.inputs[0])
    parts = [graph.vector("SCALE", corner, bary.outputs[k]) for k, corner in enumerate(corners)]
    foot = graph.vector("ADD", graph.vector("ADD", parts[0], parts[1]), parts[2])
    offset = graph.node("FunctionNodeRotateVector")
    graph.link(graph.attribute("bind_off", "FLOAT_VECTOR"), offset.inputs["Vector"])
    graph.link(rotation, offset.inputs["Rotation"])
    return graph.vector("ADD", foot, offset.outputs[0])


def _rotate(graph: NodeGraph, first: Socket, second: Socket) -> Socket:
    """The product first * second of two rotations."""
    node = graph.node("FunctionNodeRotateRotation", rotation_space="LOCAL")
    graph.link(first, node.inputs[0])
    graph.link(second, node.inputs[1])
    return node.outputs[0]


def _scale(graph: NodeGraph, normal: Socket) -> Socket:
    length = graph.math("SQRT", graph.vector("LENGTH", normal))
    ratio = graph.math("DIVIDE", length, graph.attribute("bind_length", "FLOAT"))
    low, high = STRETCH_LIMITS
    factor = graph.math("MINIMUM", graph.math("MAXIMUM", ratio, low), high)
    return graph.vector("SCALE", graph.attribute("scale", "FLOAT_VECTOR"), factor)
