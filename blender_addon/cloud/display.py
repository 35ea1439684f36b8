"""How a cloud looks in a Blender without splats of its own, and in a file that is opened without the add-on.

One modifier after the binding. Rendering: an ellipsoid per Gaussian whose material is the exact fall-off along the
view ray. With p the shading point and v the view direction in the ellipsoid's own space, where the Gaussian is a
unit one, the squared distance of the ray from the centre is d2 = p.p - (p.v)^2 / v.v and alpha = opacity * exp(-d2 /
2). In the viewport, which has to stay quick: small coloured discs, which Solid view shows too (colour type
Attribute), the bare points, or the ellipsoids.
"""

from __future__ import annotations

from enum import IntEnum

import bpy

from ..shared.gaussians import SH_C0
from .node_graph import NodeGraph, Socket, active, new_geometry_tree, set_modifier_input

DISPLAY_MODIFIER = "Display"
DISPLAY_GROUP = "Effigy Display"
POINTS_IN_RENDERS = "Points in Renders"
DISC_COLOUR = "Colour"
"""Colour attribute of the discs."""

_POINT_COLOUR = "disc_colour"
"""The same per point, on the way there."""

BIND_ATTRIBUTES = ("bind_va", "bind_vb", "bind_vc", "bind_bary", "bind_off", "bind_qinv", "bind_length")
"""What rig/bind.py stores on a cloud."""

_CUT_SIGMA = 3.0
"""The ellipsoids end here: exp(-4.5) = 0.011 of the centre's opacity."""

_ICOSAHEDRON = 1.2584
"""Circumscribed icosahedron of the unit sphere, so that its faces never cut inside the sphere."""

_DISC_SIGMA = 1.6
"""Half width of a disc: neighbours overlap without hiding details."""


class ViewportDisplay(IntEnum):
    """Values of the modifier's input Viewport."""

    POINTS = 0
    DISCS = 1
    GAUSSIANS = 2


def add_display(
    ob: bpy.types.Object,
    collection: bpy.types.Collection,
    viewport: ViewportDisplay = ViewportDisplay.DISCS,
) -> bpy.types.Modifier:
    """Add the display modifier to a cloud that holds the splat attributes; it must come after the binding.

    Args:
        ob: The cloud.
        collection: Where the disc, a hidden object that the modifier copies, is linked.
        viewport: What the viewport shows.

    Returns:
        The modifier; `show_viewport = False` gives the bare point cloud for reading.
    """
    disc = _disc_object(f"{ob.name} disc")
    collection.objects.link(disc)
    disc.parent = ob.parent
    modifier = ob.modifiers.new(DISPLAY_MODIFIER, "NODES")
    modifier.node_group = build_display_group()
    set_modifier_input(modifier, "Disc", disc)
    set_modifier_input(modifier, "Viewport", int(viewport))
    return modifier


def points_in_renders(wanted: bool) -> None:
    """Give renders the bare points of every cloud (for the add-on's engine), or the ellipsoids again."""
    for ob in bpy.data.objects:
        modifier = ob.modifiers.get(DISPLAY_MODIFIER) if ob.type == "POINTCLOUD" and ob.library is None else None
        inputs = modifier.node_group.interface.items_tree if modifier is not None and modifier.node_group else {}
        if POINTS_IN_RENDERS in inputs:
            set_modifier_input(modifier, POINTS_IN_RENDERS, wanted)


def build_display_group() -> bpy.types.NodeTree:
    """A new display group with the inputs Geometry and Viewport (see `ViewportDisplay`)."""
    graph, group_in, group_out = new_geometry_tree(DISPLAY_GROUP)
    item = graph.tree.interface.new_socket("Viewport", in_out="INPUT", socket_type="NodeSocketInt")
    item.description = "In the viewport: 0 points, 1 discs, 2 Gaussians. Renders always show Gaussians"
    item.min_value, item.max_value = 0, 2
    item.default_value = int(ViewportDisplay.DISCS)
    graph.tree.interface.new_socket("Disc", in_out="INPUT", socket_type="NodeSocketObject")
    item = graph.tree.interface.new_socket(POINTS_IN_RENDERS, in_out="INPUT", socket_type="NodeSocketBool")
    item.description = "Renders get the bare points: the add-on's own engine draws them"
    points, mode = group_in.outputs["Geometry"], group_in.outputs["Viewport"]

    is_viewport = graph.node("GeometryNodeIsViewport").outputs[0]
    wants_gaussians = _compare(graph, mode, ViewportDisplay.GAUSSIANS)
    final = graph.node("FunctionNodeBooleanMath", operation="IMPLY")
    graph.link(is_viewport, final.inputs[0])
    graph.link(wants_gaussians, final.inputs[1])
    quick = _switch(
        graph, _compare(graph, mode, ViewportDisplay.DISCS), points, _discs(graph, points, group_in.outputs["Disc"])
    )
    rendered = _switch(graph, group_in.outputs[POINTS_IN_RENDERS], _ellipsoids(graph, points), points)
    shown = _switch(graph, final.outputs[0], quick, rendered)
    graph.link(shown, active(group_out.inputs, "Geometry"))
    graph.arrange()
    return graph.tree


def build_splat_material() -> bpy.types.Material:
    """The ellipsoids' material: emission of the display colour, alpha from the Gaussian along the view ray."""
    graph, output, material = _new_material("Effigy Gaussians")
    base = graph.node("ShaderNodeAttribute", attribute_name="radiance:base", attribute_type="INSTANCER")
    geometry = graph.node("ShaderNodeNewGeometry")
    to_object = graph.node("ShaderNodeVectorTransform", vector_type="VECTOR", convert_from="WORLD", convert_to="OBJECT")
    graph.link(geometry.outputs["Incoming"], to_object.inputs[0])
    point, view = graph.node("ShaderNodeTexCoord").outputs["Object"], to_object.outputs[0]
    along = graph.vector("DOT_PRODUCT", point, view)
    along = graph.math("DIVIDE", graph.math("MULTIPLY", along, along), graph.vector("DOT_PRODUCT", view, view))
    distance2 = graph.math("SUBTRACT", graph.vector("DOT_PRODUCT", point, point), along)
    alpha = graph.math("EXPONENT", graph.math("MULTIPLY", distance2, -0.5))
    alpha = graph.math("MULTIPLY", alpha, base.outputs["Alpha"])
    # A ray meets the ellipsoid twice and must count once.
    alpha = graph.math("MULTIPLY", alpha, graph.math("SUBTRACT", 1.0, geometry.outputs["Backfacing"]))

    emission, clear = graph.node("ShaderNodeEmission"), graph.node("ShaderNodeBsdfTransparent")
    graph.link(_linear_colour(graph, base.outputs["Color"], "ShaderNode"), emission.inputs["Color"])
    mix = graph.node("ShaderNodeMixShader")
    for value, socket in zip((alpha, clear.outputs[0], emission.outputs[0]), mix.inputs, strict=True):
        graph.link(value, socket)
    graph.link(mix.outputs[0], output.inputs["Surface"])
    graph.arrange()
    material.use_backface_culling = True
    if hasattr(material, "surface_render_method"):
        # Blended instances are sorted by depth; realised geometry would not be.
        material.surface_render_method = "BLENDED"
    return material


def build_disc_material() -> bpy.types.Material:
    """The discs' material: emission of the disc's colour."""
    graph, output, material = _new_material("Effigy Discs")
    colour = graph.node("ShaderNodeAttribute", attribute_name=DISC_COLOUR, attribute_type="GEOMETRY")
    emission = graph.node("ShaderNodeEmission")
    graph.link(colour.outputs["Color"], emission.inputs["Color"])
    graph.link(emission.outputs[0], output.inputs["Surface"])
    graph.arrange()
    return material


def _ellipsoids(graph: NodeGraph, points: Socket) -> Socket:
    sphere = graph.node("GeometryNodeMeshIcoSphere")
    sphere.inputs["Radius"].default_value = _CUT_SIGMA * _ICOSAHEDRON
    sphere.inputs["Subdivisions"].default_value = 1
    painted = graph.node("GeometryNodeSetMaterial")
    graph.link(sphere.outputs["Mesh"], painted.inputs["Geometry"])
    painted.inputs["Material"].default_value = build_splat_material()
    return _instances(graph, points, painted.outputs[0])


def _discs(graph: NodeGraph, points: Socket, disc: Socket) -> Socket:
    """One real quad per Gaussian across its local x and y, with its colour as the active colour attribute."""
    info = graph.node("GeometryNodeObjectInfo")
    graph.link(disc, info.inputs["Object"])
    colour = _linear_colour(graph, graph.attribute("radiance:base", "FLOAT_COLOR"), "FunctionNode")
    coloured = graph.store(points, _POINT_COLOUR, "FLOAT_COLOR", colour)
    instances = _instances(graph, coloured, info.outputs["Geometry"])
    # Real geometry would carry four copies of every attribute of the cloud; that is most of the time a frame takes.
    for name in (*BIND_ATTRIBUTES, "rotation", "scale", "radius", "radiance:base"):
        remove = graph.node("GeometryNodeRemoveAttribute")
        remove.inputs["Name"].default_value = name
        graph.link(instances, remove.inputs["Geometry"])
        instances = remove.outputs[0]
    realize = graph.node("GeometryNodeRealizeInstances")
    graph.link(instances, realize.inputs[0])
    # The disc's own attribute makes it the active one of the result, and hides an instance attribute of the same name.
    return graph.store(realize.outputs[0], DISC_COLOUR, "FLOAT_COLOR", graph.attribute(_POINT_COLOUR, "FLOAT_COLOR"))


def _disc_object(name: str) -> bpy.types.Object:
    """A hidden unit quad with a colour attribute.

    Solid view shows a mesh's active colour attribute. Nodes cannot set which one is active, but what they make of this
    mesh inherits it.
    """
    mesh = bpy.data.meshes.new(name)
    half = _DISC_SIGMA
    mesh.from_pydata([(-half, -half, 0), (half, -half, 0), (half, half, 0), (-half, half, 0)], [], [(0, 1, 2, 3)])
    mesh.color_attributes.active_color = mesh.color_attributes.new(DISC_COLOUR, "FLOAT_COLOR", "POINT")
    mesh.materials.append(build_disc_material())
    ob = bpy.data.objects.new(name, mesh)
    ob.hide_viewport = ob.hide_render = ob.hide_select = True
    return ob


def _instances(graph: NodeGraph, points: Socket, mesh: Socket) -> Socket:
    node = graph.node("GeometryNodeInstanceOnPoints")
    graph.link(points, node.inputs["Points"])
    graph.link(mesh, node.inputs["Instance"])
    graph.link(graph.attribute("rotation", "QUATERNION"), node.inputs["Rotation"])
    graph.link(graph.attribute("scale", "FLOAT_VECTOR"), node.inputs["Scale"])
    return node.outputs[0]


def _linear_colour(graph: NodeGraph, radiance: Socket, family: str) -> Socket:
    """SH degree 0 to the scene-linear colour whose display value the Gaussian was trained to."""
    separate, combine = graph.node(f"{family}SeparateColor"), graph.node(f"{family}CombineColor")
    graph.link(radiance, separate.inputs[0])
    for k in range(3):
        display = graph.math("MULTIPLY_ADD", separate.outputs[k], SH_C0, 0.5)
        display = graph.math("MINIMUM", graph.math("MAXIMUM", display, 0.0), 1.0)
        graph.link(graph.srgb_to_linear(display), combine.inputs[k])
    return combine.outputs[0]


def _compare(graph: NodeGraph, value: Socket, number: int) -> Socket:
    node = graph.node("FunctionNodeCompare", data_type="INT", operation="EQUAL")
    graph.link(value, active(node.inputs, "A"))
    active(node.inputs, "B").default_value = int(number)
    return node.outputs[0]


def _switch(graph: NodeGraph, condition: Socket, if_false: Socket, if_true: Socket) -> Socket:
    node = graph.node("GeometryNodeSwitch", input_type="GEOMETRY")
    for name, value in (("Switch", condition), ("False", if_false), ("True", if_true)):
        graph.link(value, active(node.inputs, name))
    return active(node.outputs)


def _new_material(name: str) -> tuple[NodeGraph, bpy.types.ShaderNode, bpy.types.Material]:
    material = bpy.data.materials.new(name)
    if material.node_tree is None:
        material.use_nodes = True
    assert material.node_tree is not None
    material.node_tree.nodes.clear()
    graph = NodeGraph(material.node_tree)
    return graph, graph.node("ShaderNodeOutputMaterial"), material
