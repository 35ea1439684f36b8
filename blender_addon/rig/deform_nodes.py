"""The node group that moves bound Gaussians with the proxy mesh; no Python at render time.

The same formula as in the backend (splats/bound.py): foot = sum of bary_i v_i; frame of the triangle x =
normalised(v1 - v0), z = normalised((v1 - v0) x (v2 - v0)), y = z x x; position = foot + frame * bind_off, rotation =
frame * bind_qinv * rotation, scale = scale * clamp(sqrt |(v1 - v0) x (v2 - v0)| / bind_length, 0.5, 2). Learned
controls change bind_off, rotation, scale and radiance before that (control_nodes.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import bpy

from ..cloud.node_graph import NodeGraph, Socket, active, new_geometry_tree
from ..shared.controls import Controls
from .control_nodes import ControlNodes

BIND_GROUP = "Effigy Bind"
STRETCH_LIMITS = (0.5, 2.0)
"""As in the backend's splats/bound.py: beyond these factors single splats become visible."""


def build_bind_group(controls: Controls | None = None) -> bpy.types.NodeTree:
    """A new bind group with the inputs Geometry and Proxy (an object: the group itself stays free of any scene).

    With controls it has one more input per slider, and Pose, the object that holds the coefficients of the pose.

    Args:
        controls: Of the avatar; their deltas are attributes of the cloud (controls.py).
    """
    graph, group_in, group_out = new_geometry_tree(BIND_GROUP)
    graph.tree.interface.new_socket("Proxy", in_out="INPUT", socket_type="NodeSocketObject")
    learned = ControlNodes(graph, group_in, controls) if controls is not None else None
    info = graph.node("GeometryNodeObjectInfo", transform_space="RELATIVE")
    graph.link(group_in.outputs["Proxy"], info.inputs["Object"])

    corners = [_corner(graph, info.outputs["Geometry"], name) for name in ("bind_va", "bind_vb", "bind_vc")]
    edge, other = graph.vector("SUBTRACT", corners[1], corners[0]), graph.vector("SUBTRACT", corners[2], corners[0])
    normal = graph.vector("CROSS_PRODUCT", edge, other)
    frame = graph.node("FunctionNodeAxesToRotation", primary_axis="Z", secondary_axis="X")
    graph.link(normal, frame.inputs["Primary Axis"])
    graph.link(edge, frame.inputs["Secondary Axis"])
    rotation = frame.outputs[0]

    offset, scale = graph.attribute("bind_off", "FLOAT_VECTOR"), graph.attribute("scale", "FLOAT_VECTOR")
    own_turn = graph.attribute("rotation", "QUATERNION")
    if learned is not None:
        offset, scale, own_turn = learned.offset(offset), learned.scale(scale), learned.rotation(own_turn)
    turned = graph.rotate(graph.rotate(rotation, graph.attribute("bind_qinv", "QUATERNION")), own_turn)
    geometry, values = _capture(
        graph, group_in.outputs["Geometry"],
        {
            "position": ("VECTOR", _position(graph, corners, rotation, offset)),
            "rotation": ("ROTATION", turned),
            "scale": ("VECTOR", graph.vector("SCALE", scale, _stretch(graph, normal))),
        },
    )  # fmt: skip
    set_position = graph.node("GeometryNodeSetPosition")
    graph.link(geometry, set_position.inputs["Geometry"])
    graph.link(values["position"], set_position.inputs["Position"])
    geometry = graph.store(set_position.outputs[0], "rotation", "QUATERNION", values["rotation"])
    geometry = graph.store(geometry, "scale", "FLOAT_VECTOR", values["scale"])
    if learned is not None:
        geometry = learned.drop_deltas(learned.radiance(geometry))
    graph.link(geometry, active(group_out.inputs, "Geometry"))
    graph.arrange()
    return graph.tree


def _capture(
    graph: NodeGraph, geometry: Socket, fields: Mapping[str, tuple[str, Socket]]
) -> tuple[Socket, dict[str, Socket]]:
    """Evaluate several fields at once: what they share, here the triangles' corners and frames, is computed once.

    Left to the nodes that store them, each would fetch the corners again; that is a third of a frame's time.
    """
    node = graph.node("GeometryNodeCaptureAttribute", domain="POINT")
    for name, (kind, _) in fields.items():
        node.capture_items.new(kind, name)
    graph.link(geometry, node.inputs["Geometry"])
    for name, (_, value) in fields.items():
        graph.link(value, node.inputs[name])
    return node.outputs["Geometry"], {name: node.outputs[name] for name in fields}


def _corner(graph: NodeGraph, proxy: Socket, index: str) -> Socket:
    sample = graph.node("GeometryNodeSampleIndex", data_type="FLOAT_VECTOR", domain="POINT")
    graph.link(proxy, sample.inputs["Geometry"])
    graph.link(graph.node("GeometryNodeInputPosition").outputs[0], active(sample.inputs, "Value"))
    graph.link(graph.attribute(index, "INT"), sample.inputs["Index"])
    return active(sample.outputs)


def _position(graph: NodeGraph, corners: list[Socket], rotation: Socket, offset: Socket) -> Socket:
    bary = graph.node("ShaderNodeSeparateXYZ")
    graph.link(graph.attribute("bind_bary", "FLOAT_VECTOR"), bary.inputs[0])
    parts = [graph.vector("SCALE", corner, bary.outputs[k]) for k, corner in enumerate(corners)]
    foot = graph.vector("ADD", graph.vector("ADD", parts[0], parts[1]), parts[2])
    turned = graph.node("FunctionNodeRotateVector")
    graph.link(offset, turned.inputs["Vector"])
    graph.link(rotation, turned.inputs["Rotation"])
    return graph.vector("ADD", foot, turned.outputs[0])


def _stretch(graph: NodeGraph, normal: Socket) -> Socket:
    length = graph.math("SQRT", graph.vector("LENGTH", normal))
    ratio = graph.math("DIVIDE", length, graph.attribute("bind_length", "FLOAT"))
    low, high = STRETCH_LIMITS
    return graph.math("MINIMUM", graph.math("MAXIMUM", ratio, low), high)
