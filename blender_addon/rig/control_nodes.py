"""Learned controls as nodes (shared/controls.py says what they mean): sums of weight * delta over attributes.

Each channel is one Repeat Zone. It makes the attribute's name from the round's number, takes the weight from an Index
Switch, and a Switch leaves out what has no weight: Blender then does not even read that attribute. So a channel has the
same few nodes for any number of controls, and a control at 0 costs nothing.
"""

from __future__ import annotations

from typing import Any

from ..cloud.node_graph import NodeGraph, Socket, active
from ..shared.controls import WIDTHS, Channel, Controls
from ..shared.limits import OPACITY_LOGIT_MAX

POSE_INPUT = "Pose"
COEFFICIENT = "coefficient"
"""Attribute of the points of the object that Pose names."""

_MAX_EXPONENT = 60.0
"""exp of this is still a float32."""


def delta_attribute(channel: Channel, row: int | str) -> str:
    """Name of the attribute with the deltas of the `row`-th control of a channel."""
    return f"control_{channel}_{row}"


def splat_sliders(controls: Controls) -> list[int]:
    """Sliders that change Gaussians themselves, not only the proxy under them."""
    used = {row for name, basis in controls.bases.items() if name != "proxy" for row in basis.controls.tolist()}
    return [row for row in controls.sliders if row in used]


class ControlNodes:
    """The part of a node group under construction that evaluates controls."""

    def __init__(self, graph: NodeGraph, group_in: Any, controls: Controls, sliders: bool = True) -> None:
        """Add the group's inputs: one per slider if wanted, and Pose if any control follows the pose."""
        self._graph, self._controls = graph, controls
        interface = graph.tree.interface
        moved = splat_sliders(controls) if sliders else []
        for row in moved:
            low, high, default = (float(x) for x in controls.ranges[row])
            socket = interface.new_socket(str(controls.names[row]), in_out="INPUT", socket_type="NodeSocketFloat")
            socket.min_value, socket.max_value, socket.default_value = low, high, default
            socket.description = str(controls.descriptions[row])
        followers = controls.followers
        if followers:
            interface.new_socket(POSE_INPUT, in_out="INPUT", socket_type="NodeSocketObject")
        self._weights: dict[int, Socket] = {}
        for row in moved:
            value, default = group_in.outputs[str(controls.names[row])], float(controls.ranges[row, 2])
            self._weights[row] = graph.math("SUBTRACT", value, default) if default else value
        if followers:
            info = graph.node("GeometryNodeObjectInfo")
            graph.link(group_in.outputs[POSE_INPUT], info.inputs["Object"])
            for place, row in enumerate(followers):
                self._weights[row] = self._coefficient(info.outputs["Geometry"], place)

    def offset(self, offset: Socket) -> Socket:
        """Offsets in the triangles' frames, moved."""
        return self._sum("position", offset)[0] if "position" in self._controls.bases else offset

    def vertex_offset(self, rows: list[int]) -> Socket:
        """What these rows of the table add to the proxy's vertices; attribute k holds the deltas of `rows[k]`."""
        return self._sum("proxy", (0.0, 0.0, 0.0), rows)[0]

    def scale(self, scale: Socket) -> Socket:
        """Scales, grown by the exponential of the sum."""
        if "log_scale" not in self._controls.bases:
            return scale
        graph = self._graph
        total, used = self._sum("log_scale", (0.0, 0.0, 0.0))
        parts, grown = graph.node("ShaderNodeSeparateXYZ"), graph.node("ShaderNodeCombineXYZ")
        graph.link(total, parts.inputs[0])
        for k in range(3):
            graph.link(graph.math("EXPONENT", parts.outputs[k]), grown.inputs[k])
        return graph.switch("VECTOR", used, scale, graph.vector("MULTIPLY", scale, grown.outputs[0]))

    def rotation(self, rotation: Socket) -> Socket:
        """Rotations, turned further about their own axes."""
        if "rotation" not in self._controls.bases:
            return rotation
        graph = self._graph
        total, used = self._sum("rotation", (0.0, 0.0, 0.0))
        turn = graph.node("FunctionNodeAxisAngleToRotation")
        graph.link(total, turn.inputs["Axis"])
        graph.link(graph.vector("LENGTH", total), turn.inputs["Angle"])
        return graph.switch("ROTATION", used, rotation, graph.rotate(rotation, turn.outputs[0]))

    def radiance(self, geometry: Socket) -> Socket:
        """The geometry with its colours and opacities changed."""
        bases, graph = self._controls.bases, self._graph
        if "radiance" not in bases and "opacity_logit" not in bases:
            return geometry
        base = graph.node("FunctionNodeSeparateColor")
        graph.link(graph.attribute("radiance:base", "FLOAT_COLOR"), base.inputs[0])
        colour, alpha = graph.node("ShaderNodeCombineXYZ"), base.outputs["Alpha"]
        for k in range(3):
            graph.link(base.outputs[k], colour.inputs[k])
        total, used = colour.outputs[0], []
        if "radiance" in bases:
            total, any_colour = self._sum("radiance", total)
            used.append(any_colour)
        if "opacity_logit" in bases:
            logit, any_opacity = self._sum("opacity_logit", 0.0)
            # What has no delta keeps its opacity to the last bit, 1 included.
            moved = graph.compare("NOT_EQUAL", logit, 0.0)
            alpha = graph.switch("FLOAT", moved, alpha, self._shifted(alpha, logit))
            used.append(any_opacity)
        parts, changed = graph.node("ShaderNodeSeparateXYZ"), graph.node("FunctionNodeCombineColor")
        graph.link(total, parts.inputs[0])
        for k, value in enumerate((*parts.outputs[:3], alpha)):
            graph.link(value, changed.inputs[k])
        # Also where the attribute is FLOAT4: the node's own FLOAT4 takes three numbers (5.2), and opacity would be 0.
        stored = graph.store(geometry, "radiance:base", "FLOAT_COLOR", changed.outputs[0])
        needed = used[0]
        for other in used[1:]:
            needed = graph.boolean("OR", needed, other)
        return graph.switch("GEOMETRY", needed, geometry, stored)

    def drop_deltas(self, geometry: Socket) -> Socket:
        """The geometry without the deltas: what copies points, as the discs do, need not carry them."""
        graph = self._graph
        for channel, basis in self._controls.bases.items():
            if channel == "proxy":
                continue
            zone_in, zone_out, number = self._zone(len(basis.controls), GEOMETRY="Geometry")
            graph.link(geometry, zone_in.inputs["Geometry"])
            remove = graph.node("GeometryNodeRemoveAttribute")
            graph.link(zone_in.outputs["Geometry"], remove.inputs["Geometry"])
            graph.link(self._name(channel, number), remove.inputs["Name"])
            graph.link(remove.outputs[0], zone_out.inputs["Geometry"])
            geometry = zone_out.outputs["Geometry"]
        return geometry

    def _coefficient(self, points: Socket, place: int) -> Socket:
        """The coefficient of the pose's control `place`; one value, no field, as the switches need it."""
        graph = self._graph
        sample = graph.node("GeometryNodeSampleIndex", data_type="FLOAT", domain="POINT")
        graph.link(points, sample.inputs["Geometry"])
        graph.link(graph.attribute(COEFFICIENT, "FLOAT"), active(sample.inputs, "Value"))
        sample.inputs["Index"].default_value = place
        return active(sample.outputs)

    def _sum(self, channel: Channel, start: Any, rows: list[int] | None = None) -> tuple[Socket, Socket]:
        """`start` + sum of weight * delta, and whether any weight is not 0."""
        graph = self._graph
        rows = list(map(int, self._controls.bases[channel].controls)) if rows is None else rows
        scalar = WIDTHS[channel] == 1
        kind, data_type = ("FLOAT", "FLOAT") if scalar else ("VECTOR", "FLOAT_VECTOR")
        zone_in, zone_out, number = self._zone(len(rows), **{kind: "Sum", "BOOLEAN": "Used"})
        graph.link(start, zone_in.inputs["Sum"])
        delta = graph.node("GeometryNodeInputNamedAttribute", data_type=data_type)
        graph.link(self._name(channel, number), delta.inputs["Name"])
        weight = self._weight(rows, number)
        before, add = zone_in.outputs["Sum"], graph.math if scalar else graph.vector
        more = add("MULTIPLY_ADD", active(delta.outputs, "Attribute"), weight, before)
        works = graph.compare("NOT_EQUAL", weight, 0.0)
        graph.link(graph.switch(kind, works, before, more), zone_out.inputs["Sum"])
        graph.link(graph.boolean("OR", zone_in.outputs["Used"], works), zone_out.inputs["Used"])
        return zone_out.outputs["Sum"], zone_out.outputs["Used"]

    def _zone(self, rounds: int, **items: str) -> tuple[Any, Any, Socket]:
        """A Repeat Zone with items by type and name: its two nodes and the round's number.

        Blender 4.2 has no output for that, so the zone counts itself.
        """
        graph = self._graph
        zone_in, zone_out = graph.node("GeometryNodeRepeatInput"), graph.node("GeometryNodeRepeatOutput")
        zone_in.pair_with_output(zone_out)
        zone_out.repeat_items.clear()
        for kind, name in (*items.items(), ("INT", "Round")):
            zone_out.repeat_items.new(kind, name)
        zone_in.inputs["Iterations"].default_value = rounds
        number = zone_in.outputs["Round"]
        graph.link(graph.math("ADD", number, 1.0), zone_out.inputs["Round"])
        return zone_in, zone_out, number

    def _name(self, channel: Channel, number: Socket) -> Socket:
        graph = self._graph
        text, replace = graph.node("FunctionNodeValueToString"), graph.node("FunctionNodeReplaceString")
        graph.link(number, active(text.inputs, "Value"))
        replace.inputs["String"].default_value = delta_attribute(channel, "#")
        replace.inputs["Find"].default_value = "#"
        graph.link(text.outputs[0], replace.inputs["Replace"])
        return replace.outputs[0]

    def _weight(self, rows: list[int], number: Socket) -> Socket:
        graph = self._graph
        choice = graph.node("GeometryNodeIndexSwitch", data_type="FLOAT")
        while len(choice.index_switch_items) < len(rows):
            choice.index_switch_items.new()
        graph.link(number, choice.inputs["Index"])
        for place, row in enumerate(rows):
            graph.link(self._weights[row], choice.inputs[str(place)])
        return choice.outputs[0]

    def _shifted(self, alpha: Socket, logit: Socket) -> Socket:
        """sigmoid(logit(alpha) + logit), written without a logarithm: a e / (1 - a + a e) with e = exp(logit)."""
        graph = self._graph
        bounded = graph.math("MINIMUM", graph.math("MAXIMUM", logit, -_MAX_EXPONENT), _MAX_EXPONENT)
        odds = graph.math("EXPONENT", bounded)
        inside = graph.math("MINIMUM", graph.math("MAXIMUM", alpha, 1.0 - OPACITY_LOGIT_MAX), OPACITY_LOGIT_MAX)
        share = graph.math("MULTIPLY", inside, odds)
        return graph.math("DIVIDE", share, graph.math("ADD", graph.math("SUBTRACT", 1.0, inside), share))
