"""Splats in the picture of another engine: a linked scene that the splat engine renders, laid over by the compositor.

A scene has one engine. The splats are therefore rendered in a second scene of the same objects, in which every mesh
hides what lies behind it, and alpha over lays that picture on the first one: right for soft edges, where a comparison
of two depths would be jagged. In the first scene the clouds are invisible to every ray.
"""

from __future__ import annotations

from typing import Any

import bpy

from .node_graph import active

SPLAT_SCENE = "effigy_splat_scene"
"""Property of a scene: the scene that renders its splats."""

NODE = "Effigy Splats"
"""Name of the compositor node that lays them over."""

_RAYS = ("camera", "diffuse", "glossy", "transmission", "volume_scatter", "shadow")

_FOLLOWED = (
    "resolution_x", "resolution_y", "resolution_percentage", "pixel_aspect_x", "pixel_aspect_y", "use_border",
    "border_min_x", "border_max_x", "border_min_y", "border_max_y", "use_crop_to_border",
)  # fmt: skip
"""Render settings that both pictures share."""


def splat_scene_of(scene: bpy.types.Scene) -> bpy.types.Scene | None:
    """The scene that renders this one's splats, where compositing is set up."""
    partner = scene.get(SPLAT_SCENE)
    return partner if isinstance(partner, bpy.types.Scene) else None


def make_splat_scene(scene: bpy.types.Scene, engine: str) -> bpy.types.Scene:
    """A second scene of the same objects for `engine`, transparent where no splat is; what was one before goes."""
    old = splat_scene_of(scene)
    if old is not None:
        bpy.data.scenes.remove(old)
    partner = scene.copy()
    partner.name = f"{scene.name} Splats"
    if SPLAT_SCENE in partner:
        del partner[SPLAT_SCENE]
    partner.render.engine = engine
    partner.render.film_transparent = True
    partner.render.use_compositing = partner.render.use_sequencer = False
    scene[SPLAT_SCENE] = partner
    return partner


def follow_scene(scene: bpy.types.Scene, partner: bpy.types.Scene) -> None:
    """Give the splats' scene the camera, the size and the frame of the scene that it belongs to."""
    partner.camera = scene.camera
    for name in _FOLLOWED:
        setattr(partner.render, name, getattr(scene.render, name))
    if partner.frame_current != scene.frame_current:
        partner.frame_set(scene.frame_current, subframe=scene.frame_subframe)


def lay_over(scene: bpy.types.Scene, partner: bpy.types.Scene, layer: str) -> None:
    """Put the splats' picture over whatever the scene's compositor shows."""
    tree = _compositor(scene)
    over = tree.nodes.get(NODE)
    if over is None:
        output = _output_image(tree)
        below = output.links[0].from_socket if output.links else _own_picture(tree, scene, layer)
        over = tree.nodes.new("CompositorNodeAlphaOver")
        over.name = over.label = NODE
        x, y = output.node.location
        over.location = (x, y)
        output.node.location = (x + 250, y)
        images = [socket for socket in over.inputs if socket.type == "RGBA"]
        tree.links.new(below, images[0])
        tree.links.new(over.outputs[0], output)
    above = [socket for socket in over.inputs if socket.type == "RGBA"][1]
    splats = above.links[0].from_node if above.links else tree.nodes.new("CompositorNodeRLayers")
    splats.scene, splats.layer = partner, layer
    splats.location = (over.location.x - 350, over.location.y - 350)
    tree.links.new(splats.outputs["Image"], above)


def hide_from_rays(ob: bpy.types.Object) -> None:
    """Cycles and EEVEE leave the object out; the viewport and the splat engine do not."""
    for ray in _RAYS:
        setattr(ob, f"visible_{ray}", False)


def _compositor(scene: bpy.types.Scene) -> Any:
    scene.render.use_compositing = True
    if not hasattr(scene, "compositing_node_group"):  # below Blender 5.0 the scene owns its tree
        scene.use_nodes = True
        return scene.node_tree
    if scene.compositing_node_group is None:
        tree = bpy.data.node_groups.new(f"{scene.name} Compositing", "CompositorNodeTree")
        tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        scene.compositing_node_group = tree
    return scene.compositing_node_group


def _output_image(tree: Any) -> bpy.types.NodeSocket:
    """The input of the tree's output; makes the output if there is none."""
    kinds = ("CompositorNodeComposite", "NodeGroupOutput")
    node = next((node for node in tree.nodes if node.bl_idname in kinds and node.mute is False), None)
    if node is None:
        node = tree.nodes.new(kinds[0] if tree.bl_rna.properties.get("interface") is None else kinds[1])
    return active(node.inputs, "Image")


def _own_picture(tree: Any, scene: bpy.types.Scene, layer: str) -> bpy.types.NodeSocket:
    node = tree.nodes.new("CompositorNodeRLayers")
    node.scene, node.layer = scene, layer
    return node.outputs["Image"]
