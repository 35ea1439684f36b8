"""Building node trees: sockets by name, arithmetic by call, modifier inputs in every Blender."""

from __future__ import annotations

from typing import Any, TypeAlias

import bpy

Socket: TypeAlias = bpy.types.NodeSocket
Value: TypeAlias = Socket | float | tuple[float, ...]


class NodeGraph:
    """A node tree under construction. Methods add a node, link its inputs and return its output socket."""

    def __init__(self, tree: bpy.types.NodeTree) -> None:
        """Build in `tree`."""
        self.tree = tree

    def node(self, idname: str, **properties: Any) -> Any:
        """A new node with `properties` set. Typed as Any: the class depends on `idname`."""
        node = self.tree.nodes.new(idname)
        for name, value in properties.items():
            setattr(node, name, value)
        return node

    def link(self, value: Value, socket: Socket) -> None:
        """Link a socket to `socket`, or set its value."""
        if isinstance(value, bpy.types.NodeSocket):
            self.tree.links.new(value, socket)
        else:
            socket.default_value = value

    def math(self, operation: str, *values: Value) -> Socket:
        """A scalar Math node."""
        node = self.node("ShaderNodeMath", operation=operation)
        for value, socket in zip(values, node.inputs, strict=False):
            self.link(value, socket)
        return node.outputs[0]

    def vector(self, operation: str, *values: Value) -> Socket:
        """A Vector Math node; SCALE takes the factor as second value."""
        node = self.node("ShaderNodeVectorMath", operation=operation)
        sockets = [s for s in node.inputs if s.enabled]
        for value, socket in zip(values, sockets, strict=False):
            self.link(value, socket)
        return active(node.outputs)

    def boolean(self, operation: str, *values: Socket) -> Socket:
        """A Boolean Math node."""
        node = self.node("FunctionNodeBooleanMath", operation=operation)
        for value, socket in zip(values, node.inputs, strict=False):
            self.link(value, socket)
        return node.outputs[0]

    def compare(self, operation: str, value: Value, other: Value) -> Socket:
        """A Compare node for floats, exact."""
        node = self.node("FunctionNodeCompare", data_type="FLOAT", operation=operation)
        for name, entry in (("A", value), ("B", other), ("Epsilon", 0.0)):
            self.link(entry, active(node.inputs, name))
        return node.outputs[0]

    def switch(self, kind: str, condition: Socket, if_false: Value, if_true: Value) -> Socket:
        """A Switch node of that input type."""
        node = self.node("GeometryNodeSwitch", input_type=kind)
        for name, value in (("Switch", condition), ("False", if_false), ("True", if_true)):
            self.link(value, active(node.inputs, name))
        return active(node.outputs)

    def rotate(self, first: Socket, second: Socket) -> Socket:
        """The product first * second of two rotations."""
        node = self.node("FunctionNodeRotateRotation", rotation_space="LOCAL")
        self.link(first, node.inputs[0])
        self.link(second, node.inputs[1])
        return node.outputs[0]

    def attribute(self, name: str, data_type: str) -> Socket:
        """Named Attribute of a geometry tree."""
        node = self.node("GeometryNodeInputNamedAttribute", data_type=data_type)
        node.inputs["Name"].default_value = name
        return active(node.outputs, "Attribute")

    def store(self, geometry: Socket, name: str, data_type: str, value: Socket) -> Socket:
        """Store Named Attribute on the points of `geometry`."""
        node = self.node("GeometryNodeStoreNamedAttribute", data_type=data_type, domain="POINT")
        node.inputs["Name"].default_value = name
        self.link(geometry, node.inputs["Geometry"])
        self.link(value, active(node.inputs, "Value"))
        return node.outputs["Geometry"]

    def srgb_to_linear(self, channel: Socket) -> Socket:
        """Display sRGB to scene linear for one channel (IEC 61966-2-1)."""
        low = self.math("DIVIDE", channel, 12.92)
        high = self.math("POWER", self.math("DIVIDE", self.math("ADD", channel, 0.055), 1.055), 2.4)
        is_high = self.math("GREATER_THAN", channel, 0.04045)
        return self.math("MULTIPLY_ADD", is_high, self.math("SUBTRACT", high, low), low)

    def arrange(self) -> None:
        """Lay the nodes out in columns by their distance from the inputs, so that a person can read the tree."""
        depth: dict[str, int] = {}
        for _ in range(len(self.tree.nodes)):
            before = dict(depth)
            for link in self.tree.links:
                source, target = link.from_node.name, link.to_node.name
                depth[target] = max(depth.get(target, 0), depth.get(source, 0) + 1)
            if depth == before:
                break
        rows: dict[int, int] = {}
        for node in self.tree.nodes:
            column = depth.get(node.name, 0)
            node.location = (column * 190, -rows.get(column, 0) * 170)
            rows[column] = rows.get(column, 0) + 1


def active(sockets: Any, name: str | None = None) -> Socket:
    """The socket of that name which the node's current mode uses.

    Raises:
        KeyError: If there is none.
    """
    for socket in sockets:
        if socket.enabled and (name is None or socket.name == name):
            return socket
    raise KeyError(name)


def new_geometry_tree(name: str) -> tuple[NodeGraph, Any, Any]:
    """An empty geometry tree: the graph, its group input and its group output, with a Geometry socket on both."""
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    for direction in ("INPUT", "OUTPUT"):
        tree.interface.new_socket("Geometry", in_out=direction, socket_type="NodeSocketGeometry")
    graph = NodeGraph(tree)
    return graph, graph.node("NodeGroupInput"), graph.node("NodeGroupOutput")


def set_modifier_input(modifier: bpy.types.Modifier, name: str, value: Any) -> None:
    """Set the input `name` of a Geometry Nodes modifier; Blender 5.2 moved where the values live.

    Raises:
        KeyError: If the node group has no such input.
    """
    identifier = _input_identifier(modifier, name)
    properties = getattr(modifier, "properties", None)
    if properties is not None and hasattr(properties, "inputs"):
        getattr(properties.inputs, identifier).value = value
    else:
        modifier[identifier] = value
    modifier.id_data.update_tag()


def modifier_input(modifier: bpy.types.Modifier, name: str) -> Any:
    """The value of the input `name` of a Geometry Nodes modifier.

    Raises:
        KeyError: If the node group has no such input.
    """
    identifier = _input_identifier(modifier, name)
    properties = getattr(modifier, "properties", None)
    if properties is not None and hasattr(properties, "inputs"):
        return getattr(properties.inputs, identifier).value
    return modifier[identifier]


def modifier_input_path(modifier: bpy.types.Modifier, name: str) -> str:
    """Data path from the object to the input `name` of a Geometry Nodes modifier, for drivers and keys.

    Raises:
        KeyError: If the node group has no such input.
    """
    identifier = _input_identifier(modifier, name)
    properties = getattr(modifier, "properties", None)
    if properties is not None and hasattr(properties, "inputs"):
        return f'modifiers["{modifier.name}"].properties.inputs.{identifier}.value'
    return f'modifiers["{modifier.name}"]["{identifier}"]'


def _input_identifier(modifier: bpy.types.Modifier, name: str) -> str:
    for item in modifier.node_group.interface.items_tree:
        if item.item_type == "SOCKET" and item.in_out == "INPUT" and item.name == name:
            return item.identifier
    raise KeyError(name)
