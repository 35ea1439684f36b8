"""A plain copy of an avatar's skinned proxy for other programs, with what it does baked into keys.

It has the deform bones' motion and the shape keys' weights as they are seen, whatever moves them here: constraints,
drivers, inverse kinematics, other objects. It lives in a scene of its own, which is removed afterwards, so nothing of
the artist's scene is touched but its current frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import bpy
import numpy as np

from ..cloud.create import read_attribute, read_cloud
from ..cloud.edit import clouds_at_rest
from ..motion.keys import CurveStore
from ..shared.gaussians import matrices_to_wxyz
from .vertex_colours import bake_vertex_colours, display_to_linear

COLOUR_ATTRIBUTE = "Colour"


@dataclass(frozen=True)
class Clip:
    """A stretch of motion as it is seen.

    Attributes:
        name: Of the animation.
        poses: [F, B, 4, 4] matrices of the deform bones in the world.
        weights: [F, K] of the shape keys.
    """

    name: str
    poses: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class StandIn:
    """The copy. Use it inside `stand_in` only."""

    scene: bpy.types.Scene
    armature: bpy.types.Object
    mesh: bpy.types.Object


def proxy_of(rig: bpy.types.Object) -> bpy.types.Object:
    """The skinned mesh of an avatar's rig.

    Raises:
        ValueError: If it has been deleted.
    """
    for ob in rig.children_recursive:
        if ob.type == "MESH" and any(m.type == "ARMATURE" and m.object == rig for m in ob.modifiers):
            return ob
    raise ValueError(f"{rig.name} has no proxy mesh any more; import the avatar again")


def deform_bones(rig: bpy.types.Object) -> list[str]:
    """Bones that move the mesh, parents first: the 55 joints and the twist helpers, no controls."""
    bones = [bone for bone in rig.data.bones if bone.use_deform]
    return [bone.name for bone in sorted(bones, key=lambda bone: len(bone.parent_recursive))]


def record_clip(name: str, rig: bpy.types.Object, frames: Sequence[int]) -> Clip:
    """Play the scene and record the rig as it is seen; goes back to the frame of before."""
    scene, proxy, names = bpy.context.scene, proxy_of(rig), deform_bones(rig)
    keys = proxy.data.shape_keys
    before = scene.frame_current, scene.frame_subframe
    poses, weights = [], []
    hidden = proxy.hide_viewport
    with clouds_at_rest():
        # Nothing evaluates a hidden mesh that no visible cloud follows, so the drivers of its shape keys would rest.
        proxy.hide_viewport = False
        try:
            for frame in frames:
                scene.frame_set(frame)
                depsgraph = bpy.context.evaluated_depsgraph_get()
                seen = rig.evaluated_get(depsgraph)
                world = np.array(seen.matrix_world)
                poses.append([world @ np.array(seen.pose.bones[bone].matrix) for bone in names])
                blocks = keys.evaluated_get(depsgraph).key_blocks[1:] if keys is not None else ()
                weights.append([block.value for block in blocks])
        finally:
            proxy.hide_viewport = hidden
            scene.frame_set(before[0], subframe=before[1])
    return Clip(name, np.array(poses), np.array(weights).reshape(len(poses), -1))


@contextmanager
def stand_in(rig: bpy.types.Object, clips: Sequence[Clip], unlit: bool = True) -> Iterator[StandIn]:
    """The copy, with an NLA track per clip on the armature and on the shape keys; removed at the end.

    Args:
        rig: An avatar's armature.
        clips: From `record_clip` of the same rig.
        unlit: The material shows the colours as they are; else it is lit as a matte surface.
    """
    proxy = proxy_of(rig)
    first = bpy.context.scene
    scene = bpy.data.scenes.new(f"{rig.name} export")
    scene.render.fps, scene.render.fps_base = first.render.fps, first.render.fps_base
    made: list[bpy.types.ID] = []
    try:
        armature = bpy.data.objects.new(f"{rig.name} rig", rig.data.copy())
        data = proxy.data.copy()
        made += [armature.data, data]
        if data.shape_keys is not None:
            data.shape_keys.animation_data_clear()
            for block in data.shape_keys.key_blocks:
                block.value = 0.0
        mesh = bpy.data.objects.new(f"{rig.name} body", data)
        _copy_groups(proxy, mesh)
        mesh.parent = armature
        mesh.matrix_basis = rig.matrix_world.inverted() @ proxy.matrix_world
        mesh.modifiers.new("Armature", "ARMATURE").object = armature
        for ob in (armature, mesh):
            scene.collection.objects.link(ob)
        scene.view_layers[0].update()  # makes the armature's pose
        made.append(_paint(mesh, rig, unlit))
        for clip in clips:
            made += _write_tracks(armature, mesh, rig, clip)
        scene.frame_start, scene.frame_end = 0, max([len(clip.poses) - 1 for clip in clips], default=0)
        yield StandIn(scene, armature, mesh)
    finally:
        for ob in list(scene.collection.objects):
            bpy.data.objects.remove(ob)
        bpy.data.scenes.remove(scene)
        bpy.data.batch_remove(made)


def last_line(error: RuntimeError) -> str:
    """What an operator of Blender says went wrong: the last line that is not about where."""
    lines = [line for line in str(error).strip().splitlines() if not line.startswith("Location:")]
    return lines[-1] if lines else "no reason given"


def bound_colours(rig: bpy.types.Object) -> np.ndarray | None:
    """[V, 3] display colours of the proxy's vertices after the avatar's Gaussians; None where it has none."""
    proxy = proxy_of(rig)
    for ob in rig.children_recursive:
        if ob.type != "POINTCLOUD" or "bind_va" not in ob.data.attributes or not len(ob.data.points):
            continue
        corners = np.stack([read_attribute(ob.data, f"bind_v{c}") for c in "abc"], axis=1)
        triangles = np.empty(len(proxy.data.polygons) * 3, np.int32)
        proxy.data.loops.foreach_get("vertex_index", triangles)
        return bake_vertex_colours(
            read_cloud(ob.data), corners, read_attribute(ob.data, "bind_bary"), read_attribute(ob.data, "bind_off"),
            triangles.reshape(-1, 3), len(proxy.data.vertices),
        )  # fmt: skip
    return None


def local_bases(rig: bpy.types.Object, poses: np.ndarray) -> np.ndarray:
    """What each deform bone's own channels must be, [F, B, 4, 4], so that it stands as in `poses` [F, B, 4, 4]."""
    names = deform_bones(rig)
    rest = np.array([np.array(rig.data.bones[name].matrix_local) for name in names])
    bases = np.empty_like(poses)
    for k, name in enumerate(names):
        parent = next((bone for bone in rig.data.bones[name].parent_recursive if bone.use_deform), None)
        if parent is None:
            bases[:, k] = np.linalg.inv(rest[k]) @ poses[:, k]
            continue
        p = names.index(parent.name)
        bases[:, k] = np.linalg.inv(np.linalg.inv(rest[p]) @ rest[k]) @ np.linalg.inv(poses[:, p]) @ poses[:, k]
    return bases


def _copy_groups(source: bpy.types.Object, target: bpy.types.Object) -> None:
    """The weights lie in the mesh, their names on some versions on the object."""
    for group in source.vertex_groups:
        if group.name not in target.vertex_groups:
            target.vertex_groups.new(name=group.name)


def _paint(mesh: bpy.types.Object, rig: bpy.types.Object, unlit: bool) -> bpy.types.Material:
    colours = bound_colours(rig)
    material = bpy.data.materials.new(f"{rig.name} skin")
    if material.node_tree is None:
        material.use_nodes = True
    assert material.node_tree is not None
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    output = nodes.new("ShaderNodeOutputMaterial")
    if unlit:
        # Emission that only cameras see is what Blender's glTF exporter takes for KHR_materials_unlit.
        shader, mix = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeMixShader")
        links.new(nodes.new("ShaderNodeLightPath").outputs["Is Camera Ray"], mix.inputs[0])
        links.new(nodes.new("ShaderNodeBsdfTransparent").outputs[0], mix.inputs[1])
        links.new(shader.outputs[0], mix.inputs[2])
        links.new(mix.outputs[0], output.inputs["Surface"])
    else:
        shader = nodes.new("ShaderNodeBsdfPrincipled")
        shader.inputs["Roughness"].default_value, shader.inputs["Metallic"].default_value = 0.9, 0.0
        links.new(shader.outputs[0], output.inputs["Surface"])
    if colours is not None:
        rgba = np.ones((len(colours), 4), np.float32)
        rgba[:, :3] = display_to_linear(colours)
        attribute = mesh.data.color_attributes.new(COLOUR_ATTRIBUTE, "FLOAT_COLOR", "POINT")
        attribute.data.foreach_set("color", rgba.ravel())
        mesh.data.color_attributes.active_color = attribute
        mesh.data.color_attributes.render_color_index = 0
        node = nodes.new("ShaderNodeVertexColor")
        node.layer_name = COLOUR_ATTRIBUTE
        links.new(node.outputs["Color"], shader.inputs[0])
    mesh.data.materials.clear()
    mesh.data.materials.append(material)
    return material


def _write_tracks(
    armature: bpy.types.Object, mesh: bpy.types.Object, rig: bpy.types.Object, clip: Clip
) -> list[bpy.types.ID]:
    """An action of the bones and one of the shape keys, each on a track with the clip's name."""
    bases = local_bases(rig, clip.poses)
    sizes = np.linalg.norm(bases[..., :3, :3], axis=-2)
    turns = matrices_to_wxyz(bases[..., :3, :3] / sizes[..., None, :])
    flip = np.where((turns[1:] * turns[:-1]).sum(axis=-1, keepdims=True) < 0, -1.0, 1.0)
    turns[1:] *= np.cumprod(flip, axis=0)
    action = bpy.data.actions.new(clip.name)
    curves = CurveStore(action, armature.name)
    for bone in armature.pose.bones:
        bone.rotation_mode = "QUATERNION"
    for k, name in enumerate(deform_bones(rig)):
        path = f'pose.bones["{name}"]'
        channels = [("rotation_quaternion", turns[:, k])]
        if not rig.data.bones[name].parent:
            channels += [("location", bases[:, k, :3, 3]), ("scale", sizes[:, k])]
        for channel, values in channels:
            for axis in range(values.shape[1]):
                curves.add(f"{path}.{channel}", axis, name, 0, values[:, axis])
    _add_track(armature, action, clip.name, len(clip.poses))
    if mesh.data.shape_keys is None:
        return [action]
    face = bpy.data.actions.new(f"{clip.name} face")
    curves = CurveStore(face, mesh.data.shape_keys.name, "KEY")
    for block, values in zip(mesh.data.shape_keys.key_blocks[1:], clip.weights.T, strict=True):
        curves.add(f'key_blocks["{block.name}"].value', 0, "Face", 0, values)
    _add_track(mesh.data.shape_keys, face, clip.name, len(clip.poses))
    return [action, face]


def _add_track(owner: bpy.types.ID, action: bpy.types.Action, name: str, frames: int) -> None:
    data = owner.animation_data or owner.animation_data_create()
    track = data.nla_tracks.new()
    track.name = name
    strip = track.strips.new(name, 0, action)
    if hasattr(strip, "action_slot") and strip.action_slot is None:
        strip.action_slot = action.slots[0]
    strip.action_frame_start, strip.action_frame_end = 0, max(1, frames - 1)
    strip.frame_start, strip.frame_end = 0, max(1, frames - 1)
