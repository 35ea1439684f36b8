"""Time of `frame_set` for an avatar and for the bare prototype of its binding, for `python -m backend bench`.

    python measure_frames.py COUNT REPEATS

The prototype is what no rig of bound splats can do without: an armature of 55 bones, a skinned proxy, and a point cloud
whose nodes put every splat on its triangle. It is written here anew, with nothing of the add-on but the arrays of the
avatar, and plays the same rotations. Prints one JSON line with seconds: bare, ours, ours with 24 facial actions keyed,
and an avatar with 24 learned controls (deltas of position) with all of them keyed and with none at work.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import bpy
import numpy as np
from mathutils import Matrix

import blender_addon
from blender_addon.cloud.create import create_cloud_object, write_attributes
from blender_addon.cloud.display import ViewportDisplay
from blender_addon.rig.assemble import insert_avatar
from blender_addon.shared.avatar import Avatar
from blender_addon.shared.controls import Control, Controls, pack_controls
from blender_addon.shared.gaussians import GaussianCloud
from blender_addon.shared.skeleton import BONE_NAMES, FACIAL_ACTIONS, bone_rest
from tests.blender.synthetic import make_avatar

UPRIGHT = Matrix(((1, 0, 0), (0, 0, -1), (0, 1, 0)))
CONTROLS = 24


def bare_prototype(cloud: GaussianCloud, avatar: Avatar, scene: bpy.types.Scene) -> bpy.types.Object:
    """The armature of the prototype; proxy and cloud follow it."""
    armature = _armature(avatar, scene)
    proxy = _proxy(avatar, scene, armature)
    _bound_cloud(cloud, avatar, scene, proxy)
    return armature


def _armature(avatar: Avatar, scene: bpy.types.Scene) -> bpy.types.Object:
    armature = bpy.data.objects.new("bare", bpy.data.armatures.new("bare"))
    scene.collection.objects.link(armature)
    bpy.context.view_layer.objects.active = armature
    bpy.ops.object.mode_set(mode="EDIT")
    rest = bone_rest(avatar.joints_m)
    for joint, name in enumerate(BONE_NAMES):
        bone = armature.data.edit_bones.new(name)
        bone.tail = (0.0, 0.0, 1.0)
        bone.matrix = Matrix.LocRotScale(
            UPRIGHT @ _vector(rest.heads_m[joint]), UPRIGHT @ Matrix(rest.matrices[joint].tolist()), None
        )
        bone.length = float(np.linalg.norm(rest.tails_m[joint] - rest.heads_m[joint]))
        if avatar.parents[joint] >= 0:
            bone.parent = armature.data.edit_bones[BONE_NAMES[int(avatar.parents[joint])]]
    bpy.ops.object.mode_set(mode="OBJECT")
    return armature


def _vector(values: np.ndarray):  # noqa: ANN202 - a mathutils vector
    return Matrix.Translation(values.tolist()).translation


def _proxy(avatar: Avatar, scene: bpy.types.Scene, armature: bpy.types.Object) -> bpy.types.Object:
    mesh = bpy.data.meshes.new("bare proxy")
    points = avatar.vertices_m @ np.array(UPRIGHT).T
    mesh.from_pydata(points.tolist(), [], avatar.triangles.tolist())
    proxy = bpy.data.objects.new("bare proxy", mesh)
    scene.collection.objects.link(proxy)
    owners = np.minimum(avatar.skin_indices, len(BONE_NAMES) - 1)
    for joint, name in enumerate(BONE_NAMES):
        group = proxy.vertex_groups.new(name=name)
        rows, slots = np.nonzero((owners == joint) & (avatar.skin_weights > 1e-4))
        for row, slot in zip(rows.tolist(), slots.tolist(), strict=True):
            group.add([row], float(avatar.skin_weights[row, slot]), "REPLACE")
    proxy.modifiers.new("skin", "ARMATURE").object = armature
    return proxy


def _bound_cloud(cloud: GaussianCloud, avatar: Avatar, scene: bpy.types.Scene, proxy: bpy.types.Object) -> None:
    ob = create_cloud_object("bare cloud", cloud, scene.collection, np.array(UPRIGHT))
    corners = avatar.triangles[avatar.bind_triangle]
    attributes = {f"v{k}": ("INT", corners[:, k]) for k in range(3)}
    attributes |= {"bary": ("FLOAT_VECTOR", avatar.bind_bary), "off": ("FLOAT_VECTOR", avatar.bind_off)}
    write_attributes(ob.data, {**attributes, "qinv": ("QUATERNION", avatar.bind_qinv)})
    ob.modifiers.new("bind", "NODES").node_group = _binding(proxy)


def _binding(proxy: bpy.types.Object) -> bpy.types.NodeTree:
    """Position = barycentric point + frame * offset, rotation = frame * inverse rest frame * rotation."""
    tree = bpy.data.node_groups.new("bare binding", "GeometryNodeTree")
    for way in ("INPUT", "OUTPUT"):
        tree.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")

    def node(kind: str, *inputs: object, out: int = 0, **settings: object) -> bpy.types.NodeSocket:
        made = tree.nodes.new(kind)
        for key, value in settings.items():
            setattr(made, key, value)
        for value, socket in zip(inputs, [s for s in made.inputs if s.enabled], strict=False):
            if isinstance(value, bpy.types.NodeSocket):
                tree.links.new(value, socket)
            elif value is not None:
                socket.default_value = value
        return [s for s in made.outputs if s.enabled][out]

    def named(name: str, kind: str) -> bpy.types.NodeSocket:
        return node("GeometryNodeInputNamedAttribute", name, data_type=kind)

    def vector(operation: str, *inputs: object) -> bpy.types.NodeSocket:
        return node("ShaderNodeVectorMath", *inputs, operation=operation)

    geometry = node("NodeGroupInput")
    info = tree.nodes.new("GeometryNodeObjectInfo")
    info.transform_space, info.inputs["Object"].default_value = "RELATIVE", proxy
    place = node("GeometryNodeInputPosition")
    corners = [
        node("GeometryNodeSampleIndex", info.outputs["Geometry"], place, named(f"v{k}", "INT"),
             data_type="FLOAT_VECTOR", domain="POINT")
        for k in range(3)
    ]  # fmt: skip
    first, second = vector("SUBTRACT", corners[1], corners[0]), vector("SUBTRACT", corners[2], corners[0])
    frame = node(
        "FunctionNodeAxesToRotation",
        vector("CROSS_PRODUCT", first, second),
        first,
        primary_axis="Z",
        secondary_axis="X",
    )
    bary = named("bary", "FLOAT_VECTOR")
    parts = tree.nodes.new("ShaderNodeSeparateXYZ")
    tree.links.new(bary, parts.inputs[0])
    shares = [vector("SCALE", corner, parts.outputs[k]) for k, corner in enumerate(corners)]
    foot = vector("ADD", vector("ADD", shares[0], shares[1]), shares[2])
    moved = vector("ADD", foot, node("FunctionNodeRotateVector", named("off", "FLOAT_VECTOR"), frame))
    turn = frame
    for name in ("qinv", "rotation"):
        turn = node("FunctionNodeRotateRotation", turn, named(name, "QUATERNION"), rotation_space="LOCAL")
    placed = node("GeometryNodeSetPosition", geometry, None, moved)
    stored = node(
        "GeometryNodeStoreNamedAttribute", placed, None, "rotation", turn, data_type="QUATERNION", domain="POINT"
    )
    tree.links.new(stored, tree.nodes.new("NodeGroupOutput").inputs[0])
    return tree


def main() -> int:
    count, repeats = int(sys.argv[1]), int(sys.argv[2])
    bpy.ops.wm.read_homefile(use_factory_startup=True)
    bpy.data.batch_remove(list(bpy.data.objects))
    blender_addon.register()
    cloud, avatar = make_avatar(count)
    ours = bpy.context.scene
    objects = insert_avatar("ours", cloud, avatar, "WALK", ViewportDisplay.POINTS)
    bare = bpy.data.scenes.new("bare")
    bpy.context.window.scene = bare
    armature = bare_prototype(cloud, avatar, bare)
    walk = objects.armature
    for bone in armature.pose.bones:
        bone.rotation_mode = walk.pose.bones[bone.name].rotation_mode
    armature.animation_data_create()
    armature.animation_data.action = walk.animation_data.action
    if hasattr(walk.animation_data, "action_slot") and walk.animation_data.action_slot is not None:
        armature.animation_data.action_slot = walk.animation_data.action_slot
    layers = {"bare": bare, "ours": ours, "face": _scene("face", cloud, avatar, FACIAL_ACTIONS[:CONTROLS])}
    controls = _controls(count)
    learned = replace(avatar, controls=controls)
    layers["idle"] = _scene("idle", cloud, learned, ())
    layers["learned"] = _scene("learned", cloud, learned, [str(name) for name in controls.names])
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for turn in range(repeats + 3):
        for name, scene in layers.items():
            took = _frame(scene, 1 + turn % 24)
            if turn >= 3:
                seconds[name].append(took)
    blender_addon.unregister()
    print("MEASURED " + json.dumps({"blender_version": bpy.app.version_string, **seconds}))
    return 0


def _controls(count: int) -> Controls:
    """Sliders that move every Gaussian."""
    rng = np.random.default_rng(0)
    deltas = [rng.normal(0, 0.01, (count, 3)) for _ in range(CONTROLS)]
    return pack_controls([Control(f"slider {k}", {"position": values}) for k, values in enumerate(deltas)])


def _scene(name: str, cloud: GaussianCloud, avatar: Avatar, moved: Sequence[str]) -> bpy.types.Scene:
    """A scene with a walking avatar some of whose sliders move in every frame."""
    scene = bpy.data.scenes.new(name)
    bpy.context.window.scene = scene
    rig = insert_avatar(name, cloud, avatar, "WALK", ViewportDisplay.POINTS).armature
    for slider in moved:
        for frame, value in ((1, 0.2), (30, 0.9)):
            rig[slider] = value
            rig.keyframe_insert(f'["{slider}"]', frame=frame)
    return scene


def _frame(scene: bpy.types.Scene, frame: int) -> float:
    bpy.context.window.scene = scene
    start = time.perf_counter()
    scene.frame_set(frame)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
